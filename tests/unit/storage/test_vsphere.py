"""Pieces of a file on a VMware host, read from a server that cuts its answers off."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pvetools.storage import vsphere

DATA = bytes(range(256)) * 4


class Session:
    """As much of a session as a reader asks for: connections to a server, without a login."""

    cookie = ""

    def __init__(self, port: int) -> None:
        self.port = port

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def headers(self, more: dict[str, str]) -> dict[str, str]:
        return more


@pytest.fixture
def cutting() -> Iterator[tuple[Session, list[str]]]:
    """A server that breaks its first answer off after ten bytes."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            first, last = (int(text) for text in self.headers["Range"].removeprefix("bytes=").split("-"))
            data = DATA[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:10] if len(asked) == 1 else data)
            self.close_connection = len(asked) == 1

        def log_message(self, *_: object) -> None:
            """Nothing on the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Session(server.server_port), asked
    server.shutdown()
    server.server_close()


def test_an_answer_that_is_cut_off_is_asked_for_again(cutting: tuple[Session, list[str]]) -> None:
    session, asked = cutting
    reader = vsphere.Reader(session, vsphere.Place("dc", "store", "a-flat.vmdk"))  # type: ignore[arg-type]
    assert reader.read(100, 500) == DATA[100:600]
    assert len(asked) == 2
