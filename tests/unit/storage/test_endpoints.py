"""Where streams come from and go to: files, connections, and what is said when there are none."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from pvetools.storage import endpoints
from pvetools.system.errors import PveError, Refused


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    name = str(tmp_path / "stream")
    with endpoints.output(name) as out:
        os.write(out, b"content")
    with endpoints.source(name, lambda _line: None) as stream:
        assert os.read(stream, 100) == b"content"


def test_what_fails_before_its_first_byte_leaves_files_as_they_were(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("precious")
    for path in (old, new):
        with pytest.raises(PveError, match="refused"), endpoints.output(str(path)):
            raise PveError("refused")
    assert old.read_text() == "precious"
    assert not new.exists()


def test_no_file_is_written_into_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").symlink_to("one")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("one", "two", "folder/new"):
        with pytest.raises(Refused), endpoints.output(str(tmp_path / name), [tmp_path / "one", folder]):
            raise AssertionError
    assert (tmp_path / "one").read_text() == "1"
    assert not list(folder.iterdir())


def test_standard_output_and_input_are_a_dash() -> None:
    with endpoints.source("-", lambda _line: None) as stream:
        assert stream == 0


def test_a_terminal_gets_no_stream() -> None:
    master, slave = os.openpty()
    kept = os.dup(1)
    try:
        os.dup2(slave, 1)
        with pytest.raises(PveError, match="is not for a terminal"), endpoints.output("-"):
            pass
    finally:
        os.dup2(kept, 1)
        for fd in (master, slave, kept):
            os.close(fd)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/gone/stream", "can't open '/gone/stream': No such file or directory"),
        ("tcp://nowhere", "'nowhere' is not an IP address"),
        ("tcp://10.0.0.0/99", "'10.0.0.0/99' is not a network"),
        ("tcp://203.0.113.0/24", "this host has no addresses in network '203.0.113.0/24', one is needed"),
        ("tcp://203.0.113.7", "can't listen at '203.0.113.7': Cannot assign requested address"),
        ("unix:///gone/socket", "can't listen at '/gone/socket': No such file or directory"),
    ],
)
def test_what_cannot_be_opened_is_named(name: str, why: str) -> None:
    with pytest.raises(PveError) as caught, endpoints.source(name, lambda _line: None):
        pass
    assert why in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_one_connection_is_awaited_on_a_port_for_migrations(address: str) -> None:
    said: list[str] = []

    def announce(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            threading.Thread(target=connect).start()

    def connect() -> None:
        with socket.create_connection((said[0], int(said[1])), timeout=10) as link:
            link.sendall(b"data")

    with endpoints.source(f"tcp://{address}", announce) as stream:
        assert os.read(stream, 100) == b"data"
        assert os.read(stream, 100) == b""
    assert said[0] == address
    assert 60000 <= int(said[1]) <= 60050


def test_a_port_in_use_is_passed_over() -> None:
    ports: list[int] = []

    def announce(line: str) -> None:
        if line.isdecimal():
            ports.append(int(line))
            if len(ports) == 1:
                with endpoints.source("tcp://127.0.0.1", announce):
                    pass
            socket.create_connection(("127.0.0.1", int(line)), timeout=10).close()

    with endpoints.source("tcp://127.0.0.1", announce):
        pass
    assert len({*ports}) == 2


def test_nobody_is_awaited_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_PATIENCE", 0.05)
    for name in ("tcp://127.0.0.1", f"unix://{tmp_path}/socket"):
        why = f"nobody connected to '{name}' within"
        with pytest.raises(PveError, match=why), endpoints.source(name, lambda _line: None):
            pass
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize("place", ["tcp", "unix"])
def test_a_host_that_fails_is_noticed(tmp_path: Path, place: str) -> None:
    said, links = list[str](), list[socket.socket]()

    def announce(line: str) -> None:
        said.append(line)
        if place == "unix":
            links.append(socket.socket(socket.AF_UNIX))
            links[0].connect(str(tmp_path / "socket"))
        elif len(said) == 2:
            links.append(socket.create_connection((said[0], int(said[1])), timeout=10))

    name = "tcp://127.0.0.1" if place == "tcp" else f"unix://{tmp_path}/socket"
    with endpoints.source(name, announce) as stream, socket.socket(fileno=os.dup(stream)) as link:
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    links[0].close()


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    name = f"unix://{tmp_path}/{'x' * 200}"
    with pytest.raises(PveError, match="AF_UNIX path too long"), endpoints.source(name, lambda _line: None):
        pass
