"""Downloads from real web servers: whole and checked, or not there; never from where nobody should look."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import incoming, web
from pvetools.system import paths
from pvetools.system.errors import PveError, Refused
from tests.real.storage.webserver import Page, Server, certificate, serving
from tests.sandbox.root import Result, Root
from tests.signals import ask_to_end

DATA = b"an ISO image " * 5000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(web.ALLOWED, "127.0.0.0/8, ::1/128")


@pytest.fixture
def server(allowed: None) -> Iterator[Server]:
    with serving() as running:
        running.pages["/a.iso"] = Page(DATA)
        yield running


@pytest.fixture
def folder(root: Root) -> Path:
    return root / "var/lib/vz/template/iso"


def download(root: Root, url: str, *words: object, name: str = "a.iso", content: str = "iso") -> Result:
    path = f"/nodes/{paths.node()}/storage/local/download-url"
    return root.cli("pvesh", "create", path, "--content", content, "--filename", name, "--url", url, *words)


def below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_as_a_task(root: Root, server: Server, folder: Path) -> None:
    ran = download(root, f"{server.url}/a.iso?token=secret", "--checksum", SHA256, "--checksum-algorithm", "sha256")
    assert ran.status == 0, ran
    assert below(folder) == ["a.iso"]
    assert (folder / "a.iso").read_bytes() == DATA
    assert (folder / "a.iso").stat().st_mode & 0o777 == 0o644
    assert server.asked == ["GET /a.iso?token=secret"]
    tasks = json.loads(root.cli("pvesh", "get", f"/nodes/{paths.node()}/tasks", "--output-format", "json").stdout)
    assert [(task["type"], task["id"], task["status"]) for task in tasks] == [("download", "a.iso", "OK")]
    assert "secret" not in ran.stderr
    assert "sha256 checksum is right" in ran.stderr


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha224", "sha256", "sha384", "sha512"])
def test_a_wrong_checksum_leaves_nothing(root: Root, server: Server, folder: Path, algorithm: str) -> None:
    wrong = hashlib.new(algorithm, b"other").hexdigest()
    ran = download(root, f"{server.url}/a.iso", "--checksum", wrong, "--checksum-algorithm", algorithm)
    assert ran.status != 0
    assert f"{algorithm} checksum is {hashlib.new(algorithm, DATA).hexdigest()}, expected {wrong}" in ran.stderr
    assert below(folder) == []


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda data: subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout,
    "lzo": lambda data: subprocess.run(["lzop", "-c"], input=data, capture_output=True, check=True).stdout,
}


@pytest.mark.parametrize("compression", PACKERS)
def test_compressed_files_are_unpacked_after_their_checksum_was_right(
    root: Root, server: Server, folder: Path, compression: str
) -> None:
    packed = PACKERS[compression](DATA)
    server.pages["/packed"] = Page(packed)
    words = ["--checksum", hashlib.md5(packed).hexdigest(), "--checksum-algorithm", "md5", "--compression", compression]
    ran = download(root, f"{server.url}/packed", *words)
    assert ran.status == 0, ran
    assert (folder / "a.iso").read_bytes() == DATA
    server.pages["/packed"] = Page(packed[: len(packed) // 2])
    ran = download(root, f"{server.url}/packed", "--compression", compression, name="b.iso")
    assert ran.status != 0
    assert "cannot decompress" in ran.stderr
    assert below(folder) == ["a.iso"]


def test_an_existing_file_is_never_overwritten(root: Root, server: Server, folder: Path) -> None:
    (folder / "a.iso").write_bytes(DATA)
    right = ["--checksum", SHA256, "--checksum-algorithm", "sha256"]
    assert download(root, f"{server.url}/a.iso", *right).status == 0
    assert server.asked == []
    (folder / "a.iso").write_bytes(b"mine")
    for words in ([], right):
        ran = download(root, f"{server.url}/a.iso", *words)
        assert ran.status != 0
        assert "exists already" in ran.stderr
    assert (folder / "a.iso").read_bytes() == b"mine"


WRONG = [
    ("a.exe", "iso", DATA, "'a.exe' is no name for content type 'iso'"),
    (".iso", "iso", DATA, "is no name for content type 'iso'"),
    ("a.iso", "vztmpl", DATA, "is no name for content type 'vztmpl'"),
    ("a.ovf", "import", DATA, "is no name for content type 'import'"),
    ("a.iso", "iso", b"", "'a.iso' is empty"),
    ("a.tar.gz", "vztmpl", DATA, "'a.tar.gz' does not hold what its name says"),
    ("a.tar.zst", "vztmpl", gzip.compress(DATA), "'a.tar.zst' does not hold what its name says"),
    ("a.tar", "vztmpl", DATA, "'a.tar' does not hold what its name says"),
    ("a.qcow2", "import", DATA, "'a.qcow2' is not a valid qcow2 image"),
    ("a.ova", "import", DATA, "'a.ova' is not a valid OVA archive"),
]


@pytest.mark.parametrize(("name", "content", "body", "sentence"), WRONG)
def test_what_does_not_fit_its_content_type_is_refused(
    root: Root, server: Server, name: str, content: str, body: bytes, sentence: str
) -> None:
    server.pages["/x"] = Page(body)
    before = sorted(root.path.rglob("vz/**/*.*"))
    ran = download(root, f"{server.url}/x", name=name, content=content)
    assert ran.status != 0
    assert sentence in ran.stderr
    assert [path for path in sorted(root.path.rglob("vz/**/*.*")) if path not in before] == []


def test_an_image_that_reads_other_files_of_the_host_is_refused(root: Root, server: Server, tmp_path: Path) -> None:
    evil = tmp_path / "evil.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/shadow", str(evil), "1M"]
    subprocess.run(words, check=True)
    server.pages["/x"] = Page(evil.read_bytes())
    for name, content in (("a.qcow2", "import"), ("a.img", "iso")):
        ran = download(root, f"{server.url}/x", name=name, content=content)
        assert ran.status != 0
        assert "has the backing file '/etc/shadow'" in ran.stderr


def test_names_are_made_plain(root: Root, server: Server, folder: Path) -> None:
    assert download(root, f"{server.url}/a.iso", name="../../etc/my disc(1).iso").status == 0
    assert below(folder) == ["my_disc_1_.iso"]


# Servers that misbehave.


def test_an_answer_that_ends_early_leaves_nothing(root: Root, server: Server, folder: Path) -> None:
    server.pages["/a.iso"] = Page(DATA, cut=1000)
    ran = download(root, f"{server.url}/a.iso")
    assert ran.status != 0
    assert f"ended after 1000 of {len(DATA)} bytes" in ran.stderr
    assert below(folder) == []


def test_errors_and_encodings_are_told(root: Root, server: Server) -> None:
    server.pages["/packed"] = Page(DATA, headers={"Content-Encoding": "gzip"})
    assert "404 Not Found" in download(root, f"{server.url}/nothing").stderr
    assert "with the encoding 'gzip'" in download(root, f"{server.url}/packed").stderr
    assert "not supported" in download(root, f"http://me:secret@localhost:{server.port}/a.iso").stderr


def test_more_than_fits_is_refused_before_anything_is_written(root: Root, server: Server, folder: Path) -> None:
    server.pages["/huge"] = Page(DATA, headers={"Content-Length": str(1 << 60)})
    ran = download(root, f"{server.url}/huge")
    assert ran.status != 0
    assert "no space left in" in ran.stderr
    assert below(folder) == []


def test_a_silent_server_is_given_up(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "IDLE_TIMEOUT", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        pytest.raises(PveError, match=r"no data within 0\.3 seconds"),
    ):
        web.metadata(f"http://127.0.0.1:{deaf.getsockname()[1]}/")


def test_a_server_that_trickles_is_given_up(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LONGEST", 0.5)

    def trickle(server: socket.socket) -> None:
        link, _ = server.accept()
        with link, contextlib.suppress(OSError):
            link.recv(4096)
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                link.sendall(b"x")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=trickle, args=(server,), daemon=True).start()
        with (
            web.opened(f"http://127.0.0.1:{server.getsockname()[1]}/") as answer,
            pytest.raises(PveError, match="took longer than"),
        ):
            for _ in answer.chunks():
                pass


@pytest.mark.parametrize("url", ["http://a b/x", "http://a\x00b/x"])
def test_names_of_servers_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(PveError):
        web.metadata(url)


# Redirects and addresses.


def redirect(to: str, status: int = 302) -> Page:
    return Page(status=status, headers={"Location": to})


def test_redirects_are_followed_some_of_them(root: Root, server: Server, folder: Path) -> None:
    server.pages |= {"/1": redirect("/2", 301), "/2": redirect(f"{server.url}/a.iso", 307), "/loop": redirect("/loop")}
    assert download(root, f"{server.url}/1").status == 0
    assert (folder / "a.iso").read_bytes() == DATA
    assert "more than 10 redirects" in download(root, f"{server.url}/loop", name="b.iso").stderr
    server.pages |= {
        "/file": redirect("file:///etc/passwd"),
        "/ftp": redirect("ftp://localhost/x"),
        "/no": redirect(""),
    }
    for path, sentence in (
        ("file", "only http:// and https://"),
        ("ftp", "only http:// and https://"),
        ("no", "nowhere"),
    ):
        assert sentence in download(root, f"{server.url}/{path}", name="b.iso").stderr


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0",
     "10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "100.64.0.1", "[64:ff9b::7f00:1]",
     "[2002:7f00:1::]", "[::127.0.0.1]", "[::ffff:0:127.0.0.1]"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with serving() as server:
        with pytest.raises(Refused, match="which is not public"):
            web.metadata(f"http://{host}:{server.port}/a.iso")
        assert server.asked == []


def test_a_refused_address_leaves_nothing(root: Root, folder: Path) -> None:
    with serving() as server:
        ran = download(root, f"{server.url}/a.iso")
        assert ran.status != 0
        assert "'localhost' has the address" in ran.stderr
        assert server.asked == []
    assert below(folder) == []


def test_a_redirect_to_an_address_that_is_not_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(web.ALLOWED, "127.0.0.2/32")
    with serving(address="127.0.0.2") as first, serving() as second:
        first.pages["/1"] = redirect(f"http://127.0.0.1:{second.port}/secret")
        with pytest.raises(Refused, match=r"'127\.0\.0\.1' has the address 127\.0\.0\.1, which is not public"):
            web.metadata(f"http://127.0.0.2:{first.port}/1")
        assert second.asked == []


def test_the_address_that_was_checked_is_the_one_that_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that gives another answer to the second question is not asked a second time."""
    answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]])
    real = socket.getaddrinfo

    def answer(host: str, *more: object, **named: object) -> object:
        return next(answers) if host == "rebinding.test" else real(host, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    assert web.metadata(f"http://rebinding.test:{server.port}/a.iso").size == len(DATA)


# TLS.


def test_certificates_are_checked_unless_told_otherwise(
    root: Root, allowed: None, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = certificate(tmp_path, "localhost")
    with serving(trusted) as server:
        server.pages["/a.iso"] = Page(DATA)
        ran = download(root, f"{server.url}/a.iso")
        assert ran.status != 0
        assert "the certificate of 'localhost' is not trusted" in ran.stderr
        assert download(root, f"{server.url}/a.iso", "--verify-certificates", "0").status == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert download(root, f"{server.url}/a.iso", name="b.iso").status == 0
        assert "not trusted" in download(root, f"https://127.0.0.1:{server.port}/a.iso", name="c.iso").stderr
    assert below(folder) == ["a.iso", "b.iso"]


def test_nobody_is_led_from_a_safe_line_to_an_open_one_unless_a_checksum_guards_him(
    root: Root, server: Server, tmp_path: Path
) -> None:
    with serving(certificate(tmp_path, "localhost")) as safe:
        safe.pages["/a.iso"] = redirect(f"{server.url}/a.iso")
        words = ["--verify-certificates", "0"]
        assert "which is not encrypted; give a checksum" in download(root, f"{safe.url}/a.iso", *words).stderr
        words += ["--checksum", SHA256, "--checksum-algorithm", "sha256"]
        assert download(root, f"{safe.url}/a.iso", *words).status == 0


# Ends in the middle.


def started(root: Root, server: Server, folder: Path) -> tuple[subprocess.Popen[bytes], threading.Event]:
    """A download that has half of its file."""
    hold = threading.Event()
    server.pages["/slow"] = Page(DATA * 20, hold=hold)
    path = f"/nodes/{paths.node()}/storage/local/download-url"
    words = ["--content", "iso", "--filename", "slow.iso", "--url", f"{server.url}/slow"]
    process = root.spawn("pvesh", "create", path, *words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (parts := list(folder.glob(".*"))) or not parts[0].stat().st_size:
        assert time.monotonic() < deadline, "nothing arrived within 60 s"
        assert process.poll() is None
        time.sleep(0.02)
    return process, hold


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_download_leaves_nothing(root: Root, server: Server, folder: Path, number: int) -> None:
    process, hold = started(root, server, folder)
    assert ask_to_end(process, number) != 0
    hold.set()
    assert below(folder) == []


def test_what_a_killed_download_left_goes_with_the_next_one(root: Root, server: Server, folder: Path) -> None:
    process, hold = started(root, server, folder)
    process.kill()
    process.wait()
    hold.set()
    assert len(below(folder)) == 1
    assert root.cli("pvesm", "list", "local", ok=True).stdout.count("\n") == 1
    with incoming.part(folder) as running:
        assert download(root, f"{server.url}/a.iso").status == 0
        assert below(folder) == sorted(["a.iso", running.name])


# Metadata.


def test_name_size_and_type_come_from_the_server(root: Root, server: Server) -> None:
    def ask(path: str) -> dict[str, object]:
        where = f"/nodes/{paths.node()}/query-url-metadata"
        ran = root.cli("pvesh", "get", where, "--url", f"{server.url}{path}", "--output-format", "json", ok=True)
        return json.loads(ran.stdout)  # type: ignore[no-any-return]

    named = {"Content-Disposition": 'attachment; filename="x y.iso"', "Content-Type": "application/x-iso; charset=a"}
    server.pages |= {"/get": Page(DATA, headers=named), "/moved": redirect("/d%20e/a.iso"), "/d%20e/a.iso": Page(DATA)}
    assert ask("/get?id=7") == {"filename": "x y.iso", "size": len(DATA), "mimetype": "application/x-iso"}
    assert ask("/moved") == {"filename": "a.iso", "size": len(DATA)}
    assert server.asked == ["HEAD /get?id=7", "HEAD /moved", "HEAD /d%20e/a.iso"]
