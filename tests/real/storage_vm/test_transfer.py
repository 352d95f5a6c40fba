"""Volumes go from storage to storage of every kind, byte for byte, as streams and as copies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
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
Use = Callable[..., None]
QCOW2, RAW, VMDK = "dir:100/vm-100-disk-0.qcow2", "dir:100/vm-100-disk-1.raw", "dir:100/vm-100-disk-2.vmdk"
LVM, THIN, ZFS, RBD = (f"{name}:vm-100-disk-0" for name in ("lvm", "lvmthin", "zfspool", "rbd"))
BTRFS = "btrfs:100/vm-100-disk-0.raw"
# Every storage is read and written, and every kind of place becomes every other one.
PAIRS = [
    (QCOW2, LVM), (LVM, ZFS), (ZFS, THIN), (THIN, BTRFS), (BTRFS, RAW), (RAW, ZFS), (ZFS, QCOW2), (VMDK, THIN),
    (THIN, VMDK), (QCOW2, RBD), (RBD, THIN), (ZFS, RBD), (RBD, QCOW2),
]  # fmt: skip
FOLDERS = (
    "dir:100/subvol-100-disk-0.subvol", "zfspool:subvol-100-disk-0", "btrfs:100/subvol-100-disk-0.subvol",
    "dir:101/subvol-101-disk-0.subvol",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(module_root: Path) -> Iterator[Use]:
    """Makes a storage of a kind, named after it, when the first test needs it."""
    with contextlib.ExitStack() as beds:

        def use(*names: str) -> None:
            for kind in dict.fromkeys(name.partition(":")[0] for name in names):
                if kind not in volumes.storages():
                    section = beds.enter_context(BEDS[kind]()).section.replace(f": {STORAGE}", f": {kind}", 1)
                    with paths.storage_config().open("a") as file:
                        file.write(f"{section}\tcontent images,rootdir\n\n")

        yield use


@pytest.fixture
def use(made: Use) -> Iterator[Use]:
    """Says which storages (or volumes on them) a test needs; nothing is left on them."""
    yield made
    for storage in volumes.storages():
        if storage != "local":
            for volume in volumes.list_volumes(storage):
                volumes.free(volume.volid)
            assert volumes.list_volumes(storage) == []


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


def export(source: str, form: str, place: Path, state: State = transfer.NOW) -> None:
    with place.open("wb") as file:
        transfer.export(source, form, file.fileno(), state)


def fetch(target: str, form: str, place: Path, state: State = transfer.NOW, *, rename: bool = False) -> str:
    with place.open("rb") as file:
        return transfer.import_(target, form, file.fileno(), state, rename=rename)


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda name: name.replace("/", "."))
def test_a_disk_goes_to_another_storage_byte_by_byte(use: Use, tmp_path: Path, source: str, target: str) -> None:
    use(source, target)
    data, stream = content(1), tmp_path / "stream"
    disk(source, data, tmp_path / "data")
    export(source, "raw+size", stream)
    came = stream.read_bytes()
    assert struct.unpack("<Q", came[:8]) == (len(came) - 8,) == (volumes.info(source).size,)
    assert came[8 : 8 + SIZE] == data
    assert fetch(target, "raw+size", stream) == target
    assert read(target, tmp_path / "data") == data
    assert volumes.info(target).size >= SIZE
    if not target.startswith(("lvm:", "rbd:")):
        assert volumes.info(target).used < 12 * MIB, "sparse stays sparse"
    volumes.free(target)
    assert transfer.common_format(source, target) == "raw+size"
    assert transfer.copy(source, target) == target
    assert read(target, tmp_path / "data") == data


def test_folders_go_to_every_storage_that_has_them(use: Use, tmp_path: Path) -> None:
    use(*FOLDERS)
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
    for source, target in pairwise(FOLDERS):
        if target.startswith("dir"):
            assert transfer.copy(source, target) == target
        else:
            export(source, "tar+size", tmp_path / "stream")
            assert fetch(target, "tar+size", tmp_path / "stream") == target
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


def test_zfs_sends_snapshots_and_what_has_changed_since(use: Use, tmp_path: Path, cli: Callable[..., str]) -> None:
    use(ZFS)
    target, stream, place = "zfspool:vm-200-disk-4", tmp_path / "stream", tmp_path / "data"
    disk(ZFS, content(1), place)
    volumes.snapshot(ZFS, "one")
    cli("pvesm", "export", ZFS, "zfs", stream, "--snapshot", "one")
    assert cli("pvesm", "import", target, "zfs", stream, "--snapshot", "one") == f"successfully imported '{target}'\n"
    assert read(target, place) == content(1)
    assert [found.name for found in volumes.snapshots(target)] == ["one"]

    write(ZFS, content(2), place)
    volumes.snapshot(ZFS, "two")
    volumes.snapshot(ZFS, "three")
    state = State("three", "one", with_snapshots=True)
    export(ZFS, "zfs", stream, state)
    assert stream.stat().st_size < 6 * MIB
    write(target, content(9), place)  # what is not in a snapshot goes
    cli("pvesm", "import", target, "zfs", stream, "--snapshot", "three", "--base", "one", "--delete-snapshot", "two")
    assert read(target, place) == content(2)
    assert [found.name for found in volumes.snapshots(target)] == ["one", "three"]
    volumes.delete_snapshot(target, "three")
    volumes.rollback(target, "one")
    assert read(target, place) == content(1)

    state = State("three", with_snapshots=True)
    export(ZFS, "zfs", stream, state)
    assert fetch(target, "zfs", stream, state, rename=True) == "zfspool:vm-200-disk-0"
    assert [found.name for found in volumes.snapshots("zfspool:vm-200-disk-0")] == ["one", "two", "three"]
    assert read("zfspool:vm-200-disk-0", place) == content(2)


def test_folders_of_zfs_are_sent_too(use: Use, tmp_path: Path) -> None:
    use("zfspool")
    volumes.alloc("zfspool", 100, 64 * MIB, format="subvol", content="rootdir")
    source, target = "zfspool:subvol-100-disk-0", "zfspool:subvol-101-disk-0"
    (volumes.source(source).path / "file").write_text("data")
    volumes.snapshot(source, "__migration__")
    assert transfer.copy(source, target, State("__migration__")) == target
    assert (volumes.source(target).path / "file").read_text() == "data"
    assert volumes.info(target).size == 64 * MIB
    volumes.delete_snapshot(target, "__migration__")
    use("dir")
    with pytest.raises(Refused, match="the second be read from nothing"):
        transfer.copy(source, "dir:100/subvol-100-disk-0.subvol", State("__migration__"))


def test_streams_of_another_kind_or_that_are_cut_off_leave_nothing(use: Use, tmp_path: Path) -> None:
    use(ZFS)
    stream, at = tmp_path / "stream", State("one")
    disk(ZFS, content(1), tmp_path / "data")
    volumes.snapshot(ZFS, "one")
    export(ZFS, "zfs", stream, at)
    with pytest.raises(PveError):
        fetch("zfspool:subvol-101-disk-0", "zfs", stream, at)
    for data in (stream.read_bytes()[:500_000], b"no stream" * 1000):
        stream.write_bytes(data)
        with pytest.raises(PveError):
            fetch("zfspool:vm-101-disk-0", "zfs", stream, at)
    assert [volume.volid for volume in volumes.list_volumes("zfspool")] == [ZFS]


@pytest.mark.parametrize("target", [LVM, THIN, ZFS, RBD, BTRFS])
def test_an_interrupted_import_leaves_nothing(use: Use, target: str) -> None:
    use(target)
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


@pytest.mark.parametrize("target", [LVM, THIN, ZFS, RBD])
def test_a_stream_that_ends_too_early_leaves_nothing(use: Use, tmp_path: Path, target: str) -> None:
    use(target)
    (tmp_path / "stream").write_bytes(struct.pack("<Q", SIZE) + content(1)[: 2 * MIB])
    with (tmp_path / "stream").open("rb") as stream, pytest.raises(PveError, match="the stream ended after 2097152 of"):
        transfer.import_(target, "raw+size", stream.fileno())
    assert volumes.list_volumes(target.partition(":")[0]) == []
