"""Atomic writing, durable removing, locks between processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from pvetools.system import files, lock, paths
from pvetools.system.errors import LockTimeout, Refused


def test_a_file_is_replaced_with_its_mode_and_nothing_beside_it_remains(tmp_path: Path) -> None:
    path = tmp_path / "storage.cfg"
    path.write_text("old")
    files.write_atomic(path, "new ä", 0o600)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new ä", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_undecodable_bytes_are_read_and_written_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\xffb")
    text = files.read_text(path)
    assert text is not None
    files.write_atomic(path, text)
    assert path.read_bytes() == b"a\xffb"


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "child").touch()
    with pytest.raises(OSError, match="target"):
        files.write_atomic(folder, "x")  # a folder cannot be replaced by a file
    assert list(tmp_path.iterdir()) == [folder]


def test_a_reader_sees_the_old_or_the_new_content_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "x"
    code = (
        "import sys; from pathlib import Path; from pvetools.system import files\n"
        "for n in range(60): files.write_atomic(Path(sys.argv[1]), str(n % 10) * 20000)"
    )
    files.write_atomic(path, "0" * 20000)
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    seen = set()
    while process.poll() is None:
        text = files.read_text(path)
        assert text is not None
        assert len(text) == 20000
        assert len(set(text)) == 1
        seen.add(text[0])
    assert process.returncode == 0
    assert len(seen) > 1


def test_a_missing_file_reads_as_none_and_is_not_removed_twice(tmp_path: Path) -> None:
    assert files.read_text(tmp_path / "x") is None
    (tmp_path / "x").touch()
    assert (files.remove(tmp_path / "x"), files.remove(tmp_path / "x")) == (True, False)


def _asking(call: str) -> subprocess.Popen[str]:
    """A process that wants a lock, and keeps it."""
    code = f"import time\nfrom pvetools.system import lock\nwith {call}:\n  print('held', flush=True)\n  time.sleep(60)"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def _says_held(process: subprocess.Popen[str]) -> bool:
    return process.stdout is not None and process.stdout.readline() == "held\n"


def _holder(call: str) -> subprocess.Popen[str]:
    process = _asking(call)
    assert _says_held(process)
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=20)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("lock.guest_lock(100)", "guest 100 is in use by another process"),
        ("lock.storage_lock('local')", "storage 'local' is in use by another process"),
        ("lock.group_lock('pve')", "volume group 'pve' is in use by another process"),
        ("lock.config_lock('storage.cfg')", "file 'storage.cfg' is in use by another process"),
    ],
)
def test_a_lock_is_held_by_one_process_at_a_time_and_released_by_its_death(root: Path, call: str, words: str) -> None:
    process = _holder(call)
    start = time.monotonic()
    with pytest.raises(LockTimeout, match=words), eval(call[:-1] + ", timeout=0.3)"):
        pass
    assert 0.25 < time.monotonic() - start < 10
    process.kill()
    process.wait(20)
    with eval(call[:-1] + ", timeout=5)"):
        pass


def _queued(path: Path, count: int) -> None:
    """Wait until so many stand in the kernel's queue for a lock."""
    inode, deadline = path.stat().st_ino, time.monotonic() + 20
    while sum("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "nobody stands in the queue after 20 s"
        time.sleep(0.02)


def test_whoever_waits_stands_in_the_kernels_queue(root: Path) -> None:
    process = _holder("lock.guest_lock(100)")
    waiting = subprocess.Popen(
        [sys.executable, "-c", "from pvetools.system import lock\nwith lock.guest_lock(100): pass"]
    )
    _queued(paths.lock_dir() / "guest-100.lock", 1)
    process.kill()
    process.wait(20)
    assert waiting.wait(20) == 0


def test_the_time_to_wait_for_a_storage_is_for_each_holder_not_for_the_whole_queue(root: Path) -> None:
    path, timeout = paths.lock_dir() / "storage-local.lock", 2
    first = _holder("lock.storage_lock('local')")
    second = _asking("lock.storage_lock('local')")
    _queued(path, 1)
    last = _asking(f"lock.storage_lock('local', timeout={timeout})")
    _queued(path, 2)
    over = time.monotonic() + timeout + 0.3
    _kill(first)
    assert _says_held(second)
    time.sleep(max(0.0, over - time.monotonic()))
    _kill(second)
    assert _says_held(last)
    _kill(last)


def test_one_that_gave_up_lets_go_when_its_turn_comes(root: Path) -> None:
    process = _holder("lock.guest_lock(100)")
    with pytest.raises(LockTimeout), lock.guest_lock(100, timeout=0.1):
        pass
    process.kill()
    process.wait(20)
    for _ in range(2):
        with lock.guest_lock(100, timeout=5):
            pass


def test_locks_of_two_guests_do_not_meet(root: Path) -> None:
    with lock.guest_lock(100), lock.guest_lock(101, timeout=0):
        pass


def test_locks_of_two_roots_do_not_meet(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock.guest_lock(100):
        monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path / "other"))
        with lock.guest_lock(100, timeout=0):
            pass


def test_the_tree_is_made_with_its_links_once(root: Path) -> None:
    node = paths.node()
    paths.ensure_tree()
    assert (root / "etc/pve/qemu-server").resolve() == root / "etc/pve/nodes" / node / "qemu-server"
    assert (root / "etc/pve/lxc").is_dir()
    assert (root / "etc/pve/priv").stat().st_mode & 0o777 == 0o700


def test_on_a_real_proxmox_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    monkeypatch.setattr(paths, "is_real_proxmox", lambda: True)
    with pytest.raises(Refused, match="runs Proxmox VE"):
        paths.ensure_tree()
    assert list(tmp_path.iterdir()) == []


def test_two_roots_have_two_tags_and_the_hosts_own_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PVETOOLS_ROOT", raising=False)
    assert paths.root_tag() == ""
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    one = paths.root_tag()
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path / "b"))
    assert len({"", one, paths.root_tag()}) == 3


def _make_tree(root: str, ready: Barrier, failed: SimpleQueue[str]) -> None:
    os.environ["PVETOOLS_ROOT"] = root
    ready.wait(30)
    try:
        paths.ensure_tree()
    except OSError as error:
        failed.put(str(error))


def test_first_commands_at_once_make_one_tree(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    failed: SimpleQueue[str] = fork.SimpleQueue()
    for number in range(40):
        ready = fork.Barrier(4)
        makers = [fork.Process(target=_make_tree, args=(str(tmp_path / str(number)), ready, failed)) for _ in range(4)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join(30)
        assert [maker.exitcode for maker in makers] == [0] * 4
    assert failed.empty(), failed.get()
