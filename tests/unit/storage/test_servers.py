"""Signs of life of servers: what answers, what is silent, and what speaks something else."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pvetools.storage import servers
from pvetools.system.errors import PveError

Reply = Callable[[bytes], bytes]


@contextlib.contextmanager
def listening(reply: Reply | None) -> Iterator[int]:
    """Something that listens on a port of this host; None: it accepts and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as open_:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = open_.enter_context(server.accept()[0])
                    if reply:
                        client.sendall(reply(client.recv(65536)))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def accepted(call: bytes) -> bytes:
    """An RPC server's answer to a call of its null procedure."""
    body = call[4:8] + struct.pack(">5I", 1, 0, 0, 0, 0)
    return struct.pack(">I", 1 << 31 | len(body)) + body


def negotiated(call: bytes) -> bytes:
    body = call[4:72] + bytes(64)
    return struct.pack(">I", len(body)) + body


CHECKS = pytest.mark.parametrize("check", [servers.nfs, servers.smb], ids=["nfs", "smb"])


def test_a_server_that_answers_is_there() -> None:
    with listening(accepted) as port:
        servers.nfs("127.0.0.1", port)
    with listening(negotiated) as port:
        servers.smb("127.0.0.1", port)


@CHECKS
def test_a_server_that_accepts_and_stays_silent_is_not_waited_for(check: Callable, monkeypatch) -> None:
    monkeypatch.setattr(servers, "TIMEOUT", 0.3)
    start = time.monotonic()
    with listening(None) as port, pytest.raises(PveError, match=r"is not online \(port \d+: no answer within 0.3 sec"):
        check("127.0.0.1", port)
    assert time.monotonic() - start < 10


@CHECKS
def test_a_server_that_drips_is_not_waited_for_either(check: Callable, monkeypatch) -> None:
    """Each byte comes in time, all of them would not."""
    monkeypatch.setattr(servers, "TIMEOUT", 0.3)

    def drip(_: bytes) -> bytes:
        return struct.pack(">I", 1 << 31 | 1000) + b"x" * 10

    with listening(drip) as port, pytest.raises(PveError, match=r"no answer within 0.3 seconds"):
        check("127.0.0.1", port)


@CHECKS
def test_a_closed_port_is_told_at_once(check: Callable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(PveError, match=rf"server '127.0.0.1' is not online \(port {port}: Connection refused\)"):
        check("127.0.0.1", port)


@CHECKS
@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\0", struct.pack(">I", 4) + b"none"]
)
def test_what_speaks_something_else_is_no_server(check: Callable, said: bytes, monkeypatch) -> None:
    monkeypatch.setattr(servers, "TIMEOUT", 0.3)

    with listening(lambda _: said) as port, pytest.raises(PveError, match=r"server .127\.0\.0\.1. is not online"):
        check("127.0.0.1", port)


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(PveError, match=r"server .nowhere\.invalid. is not online"):
        servers.nfs("nowhere.invalid")


@CHECKS
@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_name_that_can_be_none_is_told(check: Callable, host: str) -> None:
    with pytest.raises(PveError, match=rf"^server '{host}' is not online: there can be no such name$"):
        check(host)


def test_the_port_mapper_is_asked_when_nothing_listens_at_the_usual_place(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        unused = free.getsockname()[1]
    with listening(accepted) as nfs:

        def mapped(call: bytes) -> bytes:
            body = call[4:8] + struct.pack(">6I", 1, 0, 0, 0, 0, nfs)
            return struct.pack(">I", 1 << 31 | len(body)) + body

        with listening(mapped) as mapper:
            monkeypatch.setattr(servers, "NFS_PORT", unused)
            monkeypatch.setattr(servers, "RPCBIND_PORT", mapper)
            servers.nfs("127.0.0.1")
            with pytest.raises(PveError, match="Connection refused"):
                servers.nfs("127.0.0.1", mapped=False)
