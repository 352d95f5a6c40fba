"""Block devices of this host: who uses them, and turning parts of them into zeros. The device is a loop one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.storage import blockdev, inuse
from pvetools.storage.disks import facts
from pvetools.system.errors import NotFound, PveError

MIB = 1 << 20


def sh(command: str) -> str:
    return subprocess.run(["/bin/sh", "-ec", command], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A device of 32 MiB full of noise."""
    (tmp_path / "image").write_bytes(os.urandom(32 * MIB))
    made = sh(f"losetup -f --show {tmp_path}/image").strip()
    yield Path(made)
    sh(f"losetup -d {made}")


def content(device: Path, start: int, length: int) -> bytes:
    with device.open("rb") as file:
        file.seek(start)
        return file.read(length)


def test_size_and_kind(device: Path, tmp_path: Path) -> None:
    assert blockdev.size(device) == 32 * MIB
    assert blockdev.is_device(device)
    assert not blockdev.is_device(tmp_path)
    assert not blockdev.is_device(tmp_path / "missing")
    with pytest.raises(NotFound, match="does not exist"):
        blockdev.size(tmp_path / "missing")
    with pytest.raises(PveError, match=r"did not appear within 0\.01 seconds"):
        blockdev.wait_for(tmp_path / "missing", 0.01)


def test_nobody_uses_a_device_or_what_is_none(device: Path, tmp_path: Path) -> None:
    assert blockdev.user_of(device) == ""
    assert blockdev.user_of(tmp_path / "missing") == ""


def test_a_process_that_has_it_open_is_named(device: Path) -> None:
    with device.open("rb"):
        assert blockdev.user_of(device).startswith(f"process {os.getpid()} (")
    with subprocess.Popen(["qemu-io", "-f", "raw", device], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdin
        assert held.stdout
        held.stdin.write(b"length\n")
        held.stdin.flush()
        held.stdout.readline()
        assert blockdev.user_of(device) == f"a running QEMU (process {held.pid})"
        held.stdin.close()
    assert blockdev.user_of(device) == ""


def test_a_mount_is_named_also_one_of_another_mount_namespace(device: Path, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    sh(f"mkfs.ext4 -qF {device}")
    assert blockdev.signature(device) == "ext4"
    sh(f"mount {device} '{tmp_path}/a b'")
    try:
        assert blockdev.user_of(device) == f"the mount '{tmp_path}/a b'"
    finally:
        sh(f"umount '{tmp_path}/a b'")
    script = f"mount {device} '{tmp_path}/a b'; echo up; read wait"
    command = ["unshare", "-m", "/bin/sh", "-ec", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as apart:
        assert apart.stdin
        assert apart.stdout
        assert apart.stdout.readline() == b"up\n"
        assert blockdev.user_of(device) == f"the mount '{tmp_path}/a b' of process {apart.pid}"
        with blockdev.claimed(device) as alone:
            assert not alone
        apart.stdin.close()
    assert blockdev.user_of(device) == ""


@pytest.mark.parametrize("name", [b"a\x0bb", b"a\x1cb", b"a\xc2\x85b", b"a\xe2\x80\xa8b", b"a\xffb", b"a\\b"])
def test_names_that_hold_other_ends_of_lines_disturb_nobody(device: Path, tmp_path: Path, name: bytes) -> None:
    """A container without privileges may mount there, and attach a file of such a name."""
    place = tmp_path / os.fsdecode(name)
    place.mkdir()
    image = place / os.fsdecode(name)
    image.write_bytes(bytes(MIB))
    above = subprocess.run(
        ["losetup", "-f", "--show", image], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    with contextlib.ExitStack() as after:
        after.callback(sh, f"losetup -d {above}")
        subprocess.run(["mount", "-t", "tmpfs", os.fsencode(place), place], check=True, timeout=60)
        with contextlib.ExitStack() as mounted:
            mounted.callback(subprocess.run, ["umount", place], check=True, timeout=60)
            assert blockdev.user_of(device) == ""
            assert str(place) in inuse.mount_points()
            assert str(device) not in facts.mounts()
        assert inuse.user_of(image) == f"the loop device {above}"
    assert inuse.user_of(image) == ""


def test_a_device_on_top_and_one_who_claimed_it_are_seen(device: Path) -> None:
    above = sh(f"losetup -f --show {device}").strip()
    try:
        assert blockdev.user_of(device) == f"the loop device {Path(above).name}"
    finally:
        sh(f"losetup -d {above}")
    with blockdev.claimed(device) as alone, blockdev.claimed(device) as second:
        assert alone
        assert not second


def test_only_the_part_that_is_meant_becomes_zeros(device: Path) -> None:
    before = content(device, 0, 32 * MIB)
    assert blockdev.zero_fast(device, 4 * MIB, 2 * MIB)
    blockdev.overwrite(device, 8 * MIB, 4 * MIB, step=MIB)
    after = content(device, 0, 32 * MIB)
    assert after[4 * MIB : 6 * MIB] == bytes(2 * MIB)
    assert after[8 * MIB : 12 * MIB] == bytes(4 * MIB)
    for start, end in ((0, 4), (6, 8), (12, 32)):
        assert after[start * MIB : end * MIB] == before[start * MIB : end * MIB]
    blockdev.zero(device)
    assert content(device, 0, 32 * MIB) == bytes(32 * MIB)


def test_overwriting_goes_in_steps_and_keeps_to_its_limit(device: Path) -> None:
    seen: list[tuple[int, int]] = []
    began = time.monotonic()
    blockdev.overwrite(
        device, 0, 8 * MIB, step=2 * MIB, per_second=16 * MIB, report=lambda done, whole: seen.append((done, whole))
    )
    assert time.monotonic() - began >= 0.5
    assert seen == [(done * MIB, 8 * MIB) for done in (2, 4, 6, 8)]
