"""Real web servers on loopback: plain and with TLS, which can be slow, redirect, cheat, and stop in the middle."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar


@dataclass
class Page:
    """What a server says to one path."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0  # the connection is closed after so many bytes
    hold: threading.Event | None = None  # half of the body comes first, the rest when this is set


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pages: ClassVar[dict[str, Page]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        page = self.pages.get(self.path.partition("?")[0], Page(status=404))
        self.send_response(page.status)
        headers = {"Content-Length": str(len(page.body)), **page.headers}
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if body:
            self._send(page)
        self.close_connection = True

    def _send(self, page: Page) -> None:
        with contextlib.suppress(OSError):
            if page.hold:
                self.wfile.write(page.body[: len(page.body) // 2])
                self.wfile.flush()
                page.hold.wait(60)
                self.wfile.write(page.body[len(page.body) // 2 :])
            else:
                self.wfile.write(page.body[: page.cut] if page.cut else page.body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@dataclass
class Server:
    """A running server: its address, its pages, and what it was asked for."""

    url: str
    port: int
    pages: dict[str, Page]
    asked: list[str]


@contextlib.contextmanager
def serving(certificate: Path | None = None, address: str = "127.0.0.1") -> Iterator[Server]:
    """A server, with TLS where a certificate with its key is given."""
    handler = type("Handler", (_Handler,), {"pages": {}, "asked": []})
    server = http.server.ThreadingHTTPServer((address, 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    port = server.server_address[1]
    try:
        yield Server(f"{'https' if certificate else 'http'}://localhost:{port}", port, handler.pages, handler.asked)
    finally:
        server.shutdown()
        server.server_close()


def certificate(folder: Path, *names: str) -> Path:
    """A certificate that signs itself, with its key in the same file."""
    path = folder / "server.pem"
    subject = ",".join(f"{'IP' if name[0].isdigit() else 'DNS'}:{name}" for name in names)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={names[0]}",
         "-addext", f"subjectAltName={subject}", "-keyout", str(folder / "key.pem"), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + (folder / "key.pem").read_text())
    return path
