"""Volumes go from storage to storage of every kind, byte for byte, as streams and as copies."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import transfer, volumes
from pvetools.storage.transfer import State
from pvetools.system import paths
from pvetools.system.errors import PveError, Refused
from tests.real.storage_vm.beds import BEDS, STORAGE, sh
from tests.real.storage_vm.conftest import ENTRY
from tests.real.storage_vm.contract import MIB

SIZE = 16 * MIB
KINDS = ("dir", "lvm", "lvmthin", "zfspool", "rbd", "btrfs")
# Each volume becomes the next one, so that all storages are read and written.
RING = (
    "dir:100/vm-100-disk-0.qcow2", "lvm:vm-100-disk-0", "zfspool:vm-100-disk-0", "rbd:vm-100-disk-0",
    "lvmthin:vm-100-disk-0", "btrfs:100/vm-100-disk-0.raw", "dir:100/vm-100-disk-1.raw", "rbd:vm-101-disk-0",
    "dir:101/vm-101-disk-0.qcow2",
)  # fmt: skip
FOLDERS = (
    "dir:100/subvol-100-disk-0.subvol", "zfspool:subvol-100-disk-0", "btrfs:100/subvol-100-disk-0.subvol",
    "dir:101/subvol-101-disk-0.subvol",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def every_kind(module_root: Path) -> Iterator[None]:
    """One storage of each kind, named after it."""
    with contextlib.ExitStack() as beds:
        sections = []
        for kind in KINDS:
            bed = beds.enter_context(BEDS[kind]())
            sections.append(f"{bed.section.replace(f': {STORAGE}', f': {kind}', 1)}\tcontent images,rootdir\n")
        paths.storage_config().write_text("\n".join(sections))
        yield


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    for kind in KINDS:
        for volume in volumes.list_volumes(kind):
            volumes.free(volume.volid)
        assert volumes.list_volumes(kind) == []


def content(seed: int) -> bytes:
    data = bytearray(SIZE)
    noise = hashlib.shake_128(bytes([seed])).digest(MIB)
    data[:300_000] = noise[:300_000]
    data[9 * MIB + 512 : 9 * MIB + 700_000] = noise[: 700_000 - 512]
    data[SIZE - 5000 :] = noise[:5000]
    return bytes(data)


def write(volid: str, data: bytes, place: Path) -> None:
    found = volumes.source(volid)
    place.write_bytes(data)
    sh(f"qemu-img convert -n -f raw -O {found.format} {place} {found.image}")


def read(volid: str, place: Path) -> bytes:
    found = volumes.source(volid)
    sh(f"qemu-img convert -f {found.format} -O raw {found.image} {place}")
    data = place.read_bytes()
    assert not any(data[SIZE:])
    return data[:SIZE]


def disk(volid: str, data: bytes, place: Path) -> str:
    parsed = volumes.parse(volid)
    storage = volid.partition(":")[0]
    assert volumes.alloc(storage, parsed.vmid, SIZE, format=parsed.format, name=parsed.name) == volid
    write(volid, data, place)
    return volid


def test_disks_go_through_files_of_streams_to_every_storage(tmp_path: Path, cli: Callable[..., str]) -> None:
    data = content(1)
    disk(RING[0], data, tmp_path / "data")
    for source, target in itertools.pairwise(RING):
        cli("pvesm", "export", source, "raw+size", tmp_path / "stream")
        stream = (tmp_path / "stream").read_bytes()
        (size,) = struct.unpack("<Q", stream[:8])
        assert size == len(stream) - 8 == volumes.info(source).size
        assert stream[8 : 8 + SIZE] == data
        assert not any(stream[8 + SIZE :])
        assert f"successfully imported '{target}'\n" == cli("pvesm", "import", target, "raw+size", tmp_path / "stream")
        assert read(target, tmp_path / "data") == data
        assert volumes.info(target).size >= SIZE
        if source.partition(":")[0] in ("dir", "btrfs", "zfspool", "lvmthin"):
            assert volumes.info(source).used < 12 * MIB, "sparse stays sparse"


def test_disks_are_copied_to_every_storage(tmp_path: Path) -> None:
    data = content(2)
    backwards = RING[::-1]
    disk(backwards[0], data, tmp_path / "data")
    for source, target in itertools.pairwise(backwards):
        assert transfer.common_format(source, target) == "raw+size"
        assert transfer.copy(source, target) == target
        assert read(target, tmp_path / "data") == data


def test_folders_go_to_every_storage_that_has_them(tmp_path: Path, cli: Callable[..., str]) -> None:
    volumes.alloc("dir", 100, 0, format="subvol", content="rootdir")
    place = volumes.source(FOLDERS[0]).path
    (place / "etc").mkdir()
    (place / "etc/hostname").write_text("guest\n")
    (place / "link").symlink_to("/etc/hostname")
    os.mknod(place / "null", 0o20666, os.makedev(1, 3))
    os.chown(place / "etc", 1234, 100_000)
    os.setxattr(place / "etc/hostname", "user.note", b"kept")
    place.chmod(0o751)
    seen = look(place)
    for source, target in itertools.pairwise(FOLDERS):
        if target.startswith("dir"):
            assert transfer.copy(source, target) == target
        else:
            cli("pvesm", "export", source, "tar+size", tmp_path / "stream")
            cli("pvesm", "import", target, "tar+size", tmp_path / "stream")
        assert look(volumes.source(target).path) == seen


def look(place: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in [place, *sorted(place.rglob("*"))]:
        stat = path.lstat()
        link = str(path.readlink()) if path.is_symlink() else ""
        note = os.getxattr(path, "user.note") if path.name == "hostname" else b""
        data = path.read_bytes() if path.is_file() and not link else b""
        found[str(path.relative_to(place))] = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev, link, note, data)
    return found


def test_zfs_sends_snapshots_and_what_has_changed_since(tmp_path: Path, cli: Callable[..., str]) -> None:
    source, target, stream = "zfspool:vm-100-disk-0", "zfspool:vm-200-disk-4", tmp_path / "stream"
    disk(source, content(1), tmp_path / "data")
    volumes.snapshot(source, "one")
    cli("pvesm", "export", source, "zfs", stream, "--snapshot", "one")
    assert cli("pvesm", "import", target, "zfs", stream, "--snapshot", "one") == f"successfully imported '{target}'\n"
    assert read(target, tmp_path / "data") == content(1)
    assert [found.name for found in volumes.snapshots(target)] == ["one"]

    write(source, content(2), tmp_path / "data")
    volumes.snapshot(source, "two")
    volumes.snapshot(source, "three")
    cli("pvesm", "export", source, "zfs", stream, "--snapshot", "three", "--base", "one", "--with-snapshots", 1)
    assert stream.stat().st_size < 6 * MIB
    write(target, content(9), tmp_path / "data")  # what is not in a snapshot goes
    cli("pvesm", "import", target, "zfs", stream, "--snapshot", "three", "--base", "one", "--delete-snapshot", "two")
    assert read(target, tmp_path / "data") == content(2)
    assert [found.name for found in volumes.snapshots(target)] == ["one", "three"]
    volumes.delete_snapshot(target, "three")
    volumes.rollback(target, "one")
    assert read(target, tmp_path / "data") == content(1)

    cli("pvesm", "export", source, "zfs", stream, "--snapshot", "three", "--with-snapshots", 1)
    said = cli(
        "pvesm", "import", target, "zfs", stream, "--snapshot", "three", "--with-snapshots", 1, "--allow-rename", 1
    )
    assert said == "successfully imported 'zfspool:vm-200-disk-0'\n"
    assert [found.name for found in volumes.snapshots("zfspool:vm-200-disk-0")] == ["one", "two", "three"]
    assert read("zfspool:vm-200-disk-0", tmp_path / "data") == content(2)


def test_folders_of_zfs_are_sent_too(tmp_path: Path) -> None:
    volumes.alloc("zfspool", 100, 64 * MIB, format="subvol", content="rootdir")
    source, target = "zfspool:subvol-100-disk-0", "zfspool:subvol-101-disk-0"
    (volumes.source(source).path / "file").write_text("data")
    volumes.snapshot(source, "__migration__")
    assert transfer.copy(source, target, State("__migration__")) == target
    assert (volumes.source(target).path / "file").read_text() == "data"
    assert volumes.info(target).size == 64 * MIB
    volumes.delete_snapshot(target, "__migration__")
    with pytest.raises(Refused, match="the second be read from nothing"):
        transfer.copy(source, "dir:100/subvol-100-disk-0.subvol", State("__migration__"))


def test_the_streams_of_another_volume_or_kind_leave_nothing(tmp_path: Path, cli: Callable[..., str]) -> None:
    stream = tmp_path / "stream"
    disk("zfspool:vm-100-disk-0", content(1), tmp_path / "data")
    volumes.snapshot("zfspool:vm-100-disk-0", "one")
    cli("pvesm", "export", "zfspool:vm-100-disk-0", "zfs", stream, "--snapshot", "one")
    before = [volume.volid for volume in volumes.list_volumes("zfspool")]
    cli("pvesm", "import", "zfspool:subvol-101-disk-0", "zfs", stream, "--snapshot", "one", status=255)
    stream.write_bytes(stream.read_bytes()[:500_000])
    cli("pvesm", "import", "zfspool:vm-101-disk-0", "zfs", stream, "--snapshot", "one", status=255)
    stream.write_bytes(b"no stream" * 1000)
    cli("pvesm", "import", "zfspool:vm-101-disk-0", "zfs", stream, "--snapshot", "one", status=255)
    assert [volume.volid for volume in volumes.list_volumes("zfspool")] == before


@pytest.mark.parametrize("target", [name for name in RING if ":vm-100" in name or "btrfs" in name])
def test_an_interrupted_import_leaves_nothing(target: str) -> None:
    storage = target.partition(":")[0]
    argv = [sys.executable, "-c", ENTRY.format(tool="pvesm"), "import", target, "raw+size", "-"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(struct.pack("<Q", SIZE) + content(1)[: 2 * MIB])
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not volumes.exists(target):
            assert time.monotonic() < deadline, "no volume appears within 60 s"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130, process.stderr.read()
    assert volumes.list_volumes(storage) == []


@pytest.mark.parametrize("target", [name for name in RING if ":vm-100" in name])
def test_a_stream_that_ends_too_early_leaves_nothing(tmp_path: Path, target: str) -> None:
    (tmp_path / "stream").write_bytes(struct.pack("<Q", SIZE) + content(1)[: 2 * MIB])
    with (tmp_path / "stream").open("rb") as stream, pytest.raises(PveError, match="the stream ended after 2097152 of"):
        transfer.import_(target, "raw+size", stream.fileno())
    assert volumes.list_volumes(target.partition(":")[0]) == []
