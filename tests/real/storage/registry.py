"""A real OCI registry on loopback (docker-registry), with TLS, and open or with tokens; and images for it."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import http.server
import io
import json
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.real.storage.webserver import certificate

SERVICE = "registry.test"
_CONFIG = """version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http:
  addr: 127.0.0.1:{port}
  tls: {{certificate: {cert}, key: {folder}/key.pem}}
{auth}"""
_TOKENS = """auth:
  token: {{realm: "https://localhost:{port}/token", service: {service}, issuer: test, rootcertbundle: {cert}}}
"""


def installed() -> bool:
    return shutil.which("docker-registry") is not None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _token(folder: Path, cert: Path, scope: str) -> str:
    """A signed token for what a client asks for (`repository:NAME:ACTIONS`)."""
    kind, name, actions = scope.split(":")
    der = ssl.PEM_cert_to_DER_cert(cert.read_text().partition("-----BEGIN PRIVATE")[0])
    now = int(time.time())
    head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
    claims = {
        "iss": "test", "sub": "", "aud": SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now, "jti": "1",
        "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
    }  # fmt: skip
    signed = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
    words = ["openssl", "dgst", "-sha256", "-sign", str(folder / "key.pem")]
    done = subprocess.run(words, input=signed.encode(), capture_output=True, check=True)
    return f"{signed}.{_base64(done.stdout)}"


@dataclass(frozen=True)
class Registry:
    """A running registry; `token` makes one that lets a client push."""

    folder: Path
    port: int
    certificate: Path
    tokens: bool

    @property
    def name(self) -> str:
        return f"localhost:{self.port}"

    def _ask(self, verb: str, path: str, scope: str, body: bytes = b"", kind: str = "application/octet-stream") -> str:
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=30, context=context)
        headers = {"Content-Type": kind}
        if self.tokens:
            headers["Authorization"] = f"Bearer {_token(self.folder, self.certificate, scope)}"
        with contextlib.closing(connection):
            connection.request(verb, path, body=body, headers=headers)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status < 300, f"{verb} {path}: {answer.status} {said!r}"
            return answer.headers.get("Location", "")

    def push(self, repository: str, data: bytes) -> dict[str, object]:
        """Push a part; gives its descriptor without a kind."""
        digest, scope = f"sha256:{hashlib.sha256(data).hexdigest()}", f"repository:{repository}:pull,push"
        place = urlsplit(self._ask("POST", f"/v2/{repository}/blobs/uploads/", scope))
        self._ask("PUT", f"{place.path}?{place.query}&digest={digest}", scope, data)
        return {"digest": digest, "size": len(data)}

    def tag(self, repository: str, tag: str, manifest: dict[str, object]) -> dict[str, object]:
        """Push a manifest under a tag; gives its descriptor."""
        data, kind = json.dumps(manifest).encode(), str(manifest["mediaType"])
        self._ask("PUT", f"/v2/{repository}/manifests/{tag}", f"repository:{repository}:pull,push", data, kind)
        return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}

    def damage(self, digest: str) -> None:
        """Change a byte of a part behind the registry's back."""
        name = digest.partition(":")[2]
        path = self.folder / f"data/docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def layer(files: dict[str, bytes]) -> bytes:
    """A layer: a packed tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(out.getvalue(), mtime=0)


@contextlib.contextmanager
def serving(folder: Path, *, tokens: bool = False) -> Iterator[Registry]:
    """A registry below a folder; with tokens, it sends its clients to fetch one."""
    cert = certificate(folder, "localhost", "127.0.0.1")
    port = _free_port()
    with contextlib.ExitStack() as stack:
        auth = ""
        if tokens:
            auth = _TOKENS.format(port=stack.enter_context(_token_server(folder, cert)), service=SERVICE, cert=cert)
        (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=port, cert=cert, auth=auth))
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log)
        stack.callback(process.wait, 20)
        stack.callback(process.kill)
        deadline = time.monotonic() + 30
        while not _listens(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the registry does not listen after 30 s"
            time.sleep(0.05)
        yield Registry(folder, port, cert, tokens)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _token_server(folder: Path, cert: Path) -> Iterator[int]:
    """Gives every guest a token to pull, as the public registries do."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            data = json.dumps({"token": _token(folder, cert, query["scope"][0])}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
