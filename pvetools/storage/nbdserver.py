"""A read-only NBD server on a local socket: QEMU's tools read what this process fetches from elsewhere.

QEMU has drivers of its own for web servers, but they hang now and then, need secrets on disk, and have no words for
what went wrong.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pvetools.system import paths
from pvetools.system.errors import PveError

Read = Callable[[int, int], bytes]  # offset, length -> exactly so many bytes

WORKERS = 6
_MAGIC, _OPTIONS = b"NBDMAGIC", 0x49484156454F5054
_OPTION_REPLY, _REQUEST, _REPLY = 0x3E889045565A9, 0x25609513, 0x67446698
_FIXED, _NO_ZEROES = 1, 2
_READ_ONLY = 1 | 2 | 1 << 8  # the flags are there; no writing; several connections see the same
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _ABOUT, _UNKNOWN = 1, 3, (1 << 31) + 1
_READING, _WRITING, _END = 0, 1, 2
_IO_ERROR, _INVALID = 5, 22
_LONGEST = 32 << 20
_NO_ZEROES_LENGTH = 124


class _Request(NamedTuple):
    kind: int
    handle: int
    offset: int
    length: int


class _Client:
    """A connection to a reader."""

    def __init__(self, connection: socket.socket, size: int, read: Read) -> None:
        self._socket, self._size, self._read = connection, size, read
        self._sending = threading.Lock()

    def serve(self, pool: ThreadPoolExecutor) -> None:
        """Answer until the other side has enough."""
        with self._socket, contextlib.suppress(OSError, EOFError):
            if self._agree():
                while (request := self._next()).kind != _END:
                    pool.submit(self._answer, request)

    def _take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self._socket.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _agree(self) -> bool:
        """Talk about what is read; False: the other side does not want to."""
        self._socket.sendall(_MAGIC + struct.pack(">QH", _OPTIONS, _FIXED | _NO_ZEROES))
        (flags,) = struct.unpack(">I", self._take(4))
        export = struct.pack(">QH", self._size, _READ_ONLY)
        while True:
            _, option, length = struct.unpack(">QII", self._take(16))
            self._take(min(length, _LONGEST))
            if option == _EXPORT_NAME:
                self._socket.sendall(export + (b"" if flags & _NO_ZEROES else bytes(_NO_ZEROES_LENGTH)))
                return True
            if option in (_INFO, _GO):
                self._say(option, _ABOUT, struct.pack(">H", 0) + export)
                self._say(option, _ABOUT, struct.pack(">HIII", 3, 1, 4096, _LONGEST))  # sizes of requests
            self._say(option, _ACK if option in (_INFO, _GO, _ABORT) else _UNKNOWN)
            if option in (_GO, _ABORT):
                return bool(option == _GO)

    def _say(self, option: int, kind: int, data: bytes = b"") -> None:
        self._socket.sendall(struct.pack(">QIII", _OPTION_REPLY, option, kind, len(data)) + data)

    def _next(self) -> _Request:
        magic, _, kind, handle, offset, length = struct.unpack(">IHHQQI", self._take(28))
        if magic != _REQUEST or (kind == _WRITING and length > _LONGEST):
            raise EOFError
        if kind == _WRITING:
            self._take(length)  # it comes along, though the answer will be no
        return _Request(kind, handle, offset, length)

    def _answer(self, request: _Request) -> None:
        error, data = _INVALID, b""
        if request.kind == _READING and request.length <= min(_LONGEST, self._size - request.offset):
            try:
                error, data = 0, self._read(request.offset, request.length)
            except Exception:  # whatever it is, the other side waits for an answer
                error = _IO_ERROR
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(struct.pack(">IIQ", _REPLY, error, request.handle) + data)


@contextlib.contextmanager
def serving(size: int, read: Read) -> Iterator[str]:
    """Serve bytes for the block; gives what QEMU's tools open.

    When the block fails after a read has failed, the error of that read is raised: it is the cause.

    Args:
        size: how many there are.
        read: gives a part of them; runs in several threads at a time.

    Raises:
        PveError: of ``read``.
    """
    failed: list[PveError] = []

    def noted(offset: int, length: int) -> bytes:
        try:
            return read(offset, length)
        except Exception as error:
            failed.append(error if isinstance(error, PveError) else PveError(f"reading failed: {error}"))
            raise

    paths.run_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nbd-", dir=paths.run_dir()) as folder:
        place = Path(folder) / "s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
            listener.listen()
            pool = ThreadPoolExecutor(WORKERS, "nbd")
            thread = threading.Thread(target=_accept, args=(listener, pool, size, noted), daemon=True)
            thread.start()
            try:
                yield f"nbd+unix:///?socket={quote(str(place))}"
            except PveError:
                if failed:
                    raise failed[0] from None
                raise
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                pool.shutdown(wait=False, cancel_futures=True)
                thread.join()


def _accept(listener: socket.socket, pool: ThreadPoolExecutor, size: int, read: Read) -> None:
    with contextlib.suppress(OSError):  # that the listener was closed
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_Client(connection, size, read).serve, args=(pool,), daemon=True).start()
