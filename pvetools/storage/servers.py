"""Signs of life of file servers, asked for in this process and within seconds, before anything touches their mounts.

A connection alone says little: the kernel of a server accepts it also for a program that hangs.  So each server is
asked the smallest question that its protocol knows.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import NoReturn

from pvetools.system.errors import PveError

TIMEOUT = 3.0
NFS_PORT, RPCBIND_PORT, SMB_PORT = 2049, 111, 445
_NFS, _RPCBIND = 100003, 100000
_GETPORT, _TCP = 3, 6
_SMB2_HEADER = struct.Struct("<4sHHIHHIIQIIQ16s")
_SMB2_NEGOTIATE = struct.Struct("<HHHHI16sQ4H")
_SMB2_DIALECTS = (0x0202, 0x0210, 0x0300, 0x0302)


class _Talk:
    """One connection; the whole exchange has to be over by the same time."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        try:
            self.socket = socket.create_connection((host, port), TIMEOUT)
        except UnicodeError:
            raise PveError(f"server '{host}' is not online: there can be no such name") from None
        except OSError as error:
            self.fail(error)
        self.deadline = time.monotonic() + TIMEOUT

    def exchange(self, data: bytes) -> bytes:
        """Send a message with its length before it; gives the reply without that."""
        try:
            with self.socket:
                self.socket.sendall(data)
                (length,) = struct.unpack(">I", self._receive(4))
                return self._receive(min(length & 0xFFFFFF, 1 << 16))
        except OSError as error:
            self.fail(error)

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            self.socket.settimeout(max(self.deadline - time.monotonic(), 0.001))
            more = self.socket.recv(length - len(data))
            if not more:
                raise ConnectionError("it closed the connection")
            data += more
        return data

    def fail(self, error: OSError) -> NoReturn:
        late = isinstance(error, TimeoutError) or error.errno == 110
        why = f"no answer within {TIMEOUT:g} seconds" if late else error.strerror or str(error)
        raise PveError(f"server '{self.host}' is not online (port {self.port}: {why})") from None


def _rpc(host: str, port: int, program: int, version: int, procedure: int = 0, arguments: bytes = b"") -> bytes:
    """Call a procedure of ONC RPC without credentials; gives what stands behind the reply's header."""
    number = int.from_bytes(os.urandom(4))
    call = struct.pack(">10I", number, 0, 2, program, version, procedure, 0, 0, 0, 0) + arguments
    reply = _Talk(host, port).exchange(struct.pack(">I", 1 << 31 | len(call)) + call)
    if len(reply) < 12 or struct.unpack_from(">2I", reply) != (number, 1):
        raise PveError(f"server '{host}' is not online (port {port}: what answers there does not speak RPC)")
    return reply[24:]


def _nfs_port(host: str) -> int:
    """Ask a server's port mapper where NFS is; 0: nowhere."""
    result = _rpc(host, RPCBIND_PORT, _RPCBIND, 2, _GETPORT, struct.pack(">4I", _NFS, 3, _TCP, 0))
    return int.from_bytes(result[:4])


def nfs(host: str, port: int = 0, *, mapped: bool = True) -> None:
    """Ask an NFS server whether it is there.

    Args:
        host: its name or address.
        port: where it listens; 0: at the usual place, or where its port mapper says.
        mapped: ask the port mapper where nothing listens at the usual place (version 4 knows none).

    Raises:
        PveError: it does not answer.
    """
    try:
        _rpc(host, port or NFS_PORT, _NFS, 3 if mapped else 4)
    except PveError as error:
        if port or not mapped or "Connection refused" not in str(error):
            raise
        other = _nfs_port(host)
        if other in (0, NFS_PORT):
            raise
        _rpc(host, other, _NFS, 3)


def smb(host: str, port: int = 0) -> None:
    """Ask an SMB server whether it is there.

    Raises:
        PveError: it does not answer.
    """
    header = _SMB2_HEADER.pack(b"\xfeSMB", 64, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, bytes(16))
    negotiate = _SMB2_NEGOTIATE.pack(36, len(_SMB2_DIALECTS), 1, 0, 0, os.urandom(16), 0, *_SMB2_DIALECTS)
    message = header + negotiate
    reply = _Talk(host, port or SMB_PORT).exchange(struct.pack(">I", len(message)) + message)
    if not reply.startswith(b"\xfeSMB"):
        raise PveError(
            f"server '{host}' is not online (port {port or SMB_PORT}: what answers there does not speak SMB 2)"
        )
