"""Storages that answer late or never: nobody waits for them but those that need them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import defining, probe, volumes
from pvetools.system import log, paths
from pvetools.system.errors import PveError
from tests.real.storage.fuse import Slow
from tests.sandbox.root import Result, Root
from tests.unit.cli.bash_completion import complete

MIB = 1 << 20


def section(name: str, place: Path, content: str = "images") -> str:
    return f"dir: {name}\n\tpath {place}\n\tcontent {content}\n\tmkdir 0\n\n"


@pytest.fixture
def dead(root: Root) -> Iterator[Slow]:
    """A storage ``dead`` that never answers, one that does, and ``local``."""
    (root / "good/images").mkdir(parents=True)
    with Slow(root / "dead", None) as slow:
        paths.storage_config().write_text(section("dead", slow.point) + section("good", root / "good"))
        yield slow


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    with log.sink(lines.append):
        yield lines


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds are enough for a test."""
    for name in ("STATUS_TIMEOUT", "PROOF_TIMEOUT", "LIST_TIMEOUT"):
        monkeypatch.setattr(probe, name, 2.0)


def hung() -> list[int]:
    """Processes that wait in the kernel for a file system of ours."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state == "D" and "fuse" in (entry / "stack").read_text():
                found.append(int(entry.name))
    return found


def test_a_hanging_storage_is_inactive_and_the_others_are_there(dead: Slow, patient: None) -> None:
    start = time.monotonic()
    rows = {row.definition.id: row for row in volumes.status()}
    assert time.monotonic() - start < 15
    assert dead.asked.is_set()
    assert {name: row.active for name, row in rows.items()} == {"dead": False, "good": True, "local": True}
    assert rows["dead"].reason == "storage 'dead': no answer within 2 seconds"
    assert hung()


def test_what_hangs_already_is_not_asked_again(dead: Slow, patient: None) -> None:
    volumes.status()
    waiting = hung()
    start = time.monotonic()
    (row,) = volumes.status("dead")
    assert time.monotonic() - start < 10
    assert f"process {waiting[0]} hangs in it since an earlier time" in row.reason
    with pytest.raises(PveError, match="storage 'dead' does not answer: process"):
        volumes.alloc("dead", 100, MIB)
    assert time.monotonic() - start < 10
    assert hung() == waiting


def test_a_storage_that_comes_back_is_active_again(dead: Slow, patient: None) -> None:
    volumes.status()
    dead.close()
    with Slow(dead.point, 0.0):
        deadline = time.monotonic() + 10
        while not (row := volumes.status("dead")[0]).active:
            assert time.monotonic() < deadline, f"still inactive after 10 s: {row.reason}"
            time.sleep(0.05)
        assert not hung()


def test_the_tool_ends_although_a_child_of_it_cannot(dead: Slow, root: Root, cli: Callable[..., Result]) -> None:
    """Also its output ends: the child that is left behind holds neither the pipe nor a lock."""
    start = time.monotonic()
    ran = cli("pvesm", "status", ok=True)
    assert probe.STATUS_TIMEOUT <= time.monotonic() - start < probe.STATUS_TIMEOUT + 20
    rows = {line.split()[0]: line.split()[2] for line in ran.stdout.splitlines()[1:]}
    assert rows == {"dead": "inactive", "good": "active", "local": "active"}
    assert f"WARN: storage 'dead': no answer within {probe.STATUS_TIMEOUT:g} seconds" in ran.stderr
    assert hung()
    start = time.monotonic()
    cli("pvesm", "status", ok=True)
    cli("pvesm", "set", "good", "--content", "images,iso", ok=True)
    cli("pvesm", "alloc", "good", "100", "", "1M", ok=True)
    assert time.monotonic() - start < probe.STATUS_TIMEOUT


def test_what_a_guest_owns_is_found_on_the_storages_that_answer(dead: Slow, patient: None) -> None:
    volid = volumes.alloc("good", 100, MIB)
    with warnings() as lines:
        assert volumes.owned_by(100) == [volid]
    assert lines == ["WARN: storage 'dead' is skipped: storage 'dead': no answer within 2 seconds"]


def test_a_volume_elsewhere_is_freed_although_guests_have_disks_there(
    dead: Slow, root: Root, cli: Callable[..., Result]
) -> None:
    volid = volumes.alloc("good", 100, MIB)
    name = "100/vm-100-disk-0.raw"
    root.config(100).write_text(f"scsi0: dead:{name}\nscsi1: {dead.point}/images/{name}\n")
    cli("pvesm", "free", volid, ok=True, timeout=30)
    assert not volumes.exists(volid)
    assert not hung()


def test_a_storage_that_hangs_is_not_defined(dead: Slow, root: Root, patient: None) -> None:
    before = paths.storage_config().read_text()
    with pytest.raises(PveError, match="storage 'new': no answer within 2 seconds"):
        defining.add("new", "dir", {"path": str(dead.point), "content": "iso", "mkdir": "0"})
    assert paths.storage_config().read_text() == before


def test_twenty_slow_storages_are_asked_at_once(root: Root) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(20):
            stack.enter_context(Slow(root / f"slow{number}", 1.5))
        paths.storage_config().write_text("".join(section(f"s{n}", root / f"slow{n}") for n in range(20)))
        start = time.monotonic()
        rows = volumes.status()
        took = time.monotonic() - start
    assert [row.active for row in rows] == [True] * 21, [row.reason for row in rows]
    assert took < 20 * 1.5 / 2  # one after the other would take 30 s
    assert all(row.space and row.space.total == 4 << 30 for row in rows if row.definition.id != "local")


def test_an_interrupted_question_leaves_no_child_behind(dead: Slow, root: Root) -> None:
    """Ctrl-C ends the tool at once; the child is one more that hangs, not one that runs."""
    tool = subprocess.Popen(
        root.argv("pvesm", "status"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert dead.asked.wait(20), "the storage was not asked within 20 s"
    start = time.monotonic()
    tool.send_signal(2)
    out, err = tool.communicate(timeout=10)
    assert time.monotonic() - start < 10
    assert tool.returncode == 130, err
    assert out == ""


def test_tab_does_not_wait_for_a_server_that_hangs(root: Root) -> None:
    with Slow(root / "dead", None, names=True) as slow:
        paths.storage_config().write_text(section("dead", slow.point))
        start = time.monotonic()
        assert complete("pvesm free dead:", root.path) == []
        assert slow.asked.is_set()
        assert complete("pvesm free de", root.path) == ["dead:"]
        assert time.monotonic() - start < 10
