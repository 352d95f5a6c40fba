"""Directory storages on real file systems: full, not mounted, in use, and killed in the middle."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from pvetools.storage import inuse, volumes
from pvetools.system import paths, run
from pvetools.system.errors import PveError, Refused
from tests.sandbox.root import Result, Root
from tests.sandbox.steps import Walk

MIB = 1 << 20


@contextlib.contextmanager
def mounted(source: str, target: Path, kind: str, options: str) -> Iterator[None]:
    target.mkdir(parents=True, exist_ok=True)
    run.run(["mount", "-t", kind, "-o", options, source, target])
    try:
        yield
    finally:
        run.run(["umount", target])


@pytest.fixture
def small(root: Root) -> Iterator[Path]:
    """A storage ``small`` with 16 MiB of space."""
    place = root / "small"
    with mounted("tmpfs", place, "tmpfs", "size=16M"):
        paths.storage_config().write_text(
            f"dir: small\n\tpath {place}\n\tcontent images,rootdir\n\tpreallocation full\n"
        )
        yield place


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_full_storage_is_named_and_nothing_is_left(small: Path, cli: Callable[..., Result], form: str) -> None:
    cli("pvesm", "alloc", "small", "100", "", "1M", ok=True)
    before = below(small)
    ran = cli("pvesm", "alloc", "small", "101", "", "64M", "--format", form)
    assert ran.status == 255
    assert re.search(
        r"^storage 'small' is full: no space for a volume of 64\.00 MiB, 1\d\.\d\d MiB are free$", ran.stderr
    )
    assert below(small) == before
    assert cli("pvesm", "alloc", "small", "101", "", "4M", "--format", form).status == 0


def test_a_volume_that_cannot_grow_keeps_its_size(small: Path) -> None:
    volid = volumes.alloc("small", 100, 12 * MIB, format="qcow2")
    (small / "rest").write_bytes(b"x" * (volumes.status("small")[0].space or pytest.fail("inactive")).avail)
    with pytest.raises(PveError, match="storage 'small' is full"):
        volumes.resize(volid, 1 << 50)
    assert volumes.info(volid).size == 12 * MIB


def test_status_tells_a_full_storage(small: Path, cli: Callable[..., Result]) -> None:
    (small / "rest").write_bytes(b"x" * (16 * MIB))
    line = cli("pvesm", "status", "--storage", "small", ok=True).stdout.splitlines()[1]
    assert line.split() == ["small", "dir", "active", "16384", "16384", "0", "100.00%"]


def test_a_mount_point_is_demanded_where_the_definition_says_so(root: Root, cli: Callable[..., Result]) -> None:
    place = root / "disk"
    paths.storage_config().write_text(f"dir: disk\n\tpath {place}/sub\n\tis_mountpoint {place}\n")
    ran = cli("pvesm", "alloc", "disk", "100", "", "1M")
    assert ran.status == 255
    assert f"directory is expected to be a mount point but is not mounted: '{place}'" in ran.stderr
    assert not place.exists()
    with mounted("tmpfs", place, "tmpfs", "size=16M"):
        cli("pvesm", "alloc", "disk", "100", "", "1M", ok=True)
        assert (place / "sub/images/100/vm-100-disk-0.raw").stat().st_size == MIB


def test_mount_points_with_blanks_are_recognised(root: Root) -> None:
    place = root / "a b\tc"
    with mounted("tmpfs", place, "tmpfs", "size=1M"):
        assert inuse.is_mount_point(place)
    assert not inuse.is_mount_point(place)


@contextlib.contextmanager
def opened_by_qemu(path: Path, form: str) -> Iterator[None]:
    """QEMU's NBD server has the image open for writing."""
    socket = path.with_suffix(".sock")
    server = subprocess.Popen(["qemu-nbd", "-f", form, "-k", str(socket), str(path)])
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < deadline, "qemu-nbd did not open its socket within 20 s"
            assert server.poll() is None, "qemu-nbd ended"
            time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait(20)
        socket.unlink(missing_ok=True)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_image_that_qemu_has_open_is_neither_removed_nor_grown(root: Root, form: str) -> None:
    volid = volumes.alloc("local", 100, 4 * MIB, format=form)
    with opened_by_qemu(volumes.path(volid), form):
        with pytest.raises(Refused, match=f"volume '{volid}' is in use by a running QEMU"):
            volumes.free(volid)
        with pytest.raises(Refused, match="is in use by a running QEMU"):
            volumes.resize(volid, 8 * MIB)
    volumes.resize(volid, 8 * MIB)
    volumes.free(volid)
    assert not volumes.exists(volid)


def test_a_mounted_image_is_not_removed(root: Root) -> None:
    volid = volumes.alloc("local", 101, 8 * MIB, content="rootdir")
    path = volumes.path(volid)
    run.run(["mkfs.ext4", "-q", path])
    with (
        mounted(str(path), root / "mnt", "ext4", "loop"),
        pytest.raises(Refused, match="in use by the loop device /dev/"),
    ):
        volumes.free(volid)
    volumes.free(volid)


def test_a_folder_with_something_mounted_inside_is_not_removed(root: Root) -> None:
    volid = volumes.alloc("local", 101, 0, format="subvol", content="rootdir")
    inner = volumes.path(volid) / "srv"
    with mounted("tmpfs", inner, "tmpfs", "size=1M"):
        (inner / "data").write_text("precious")
        with pytest.raises(Refused, match=f"is in use by the mount '{inner}'"):
            volumes.free(volid)
        assert (inner / "data").read_text() == "precious"
    volumes.free(volid)
    assert not volumes.exists(volid)


def test_a_folder_that_is_shown_elsewhere_is_not_removed(root: Root) -> None:
    volid = volumes.alloc("local", 101, 0, format="subvol", content="rootdir")
    folder, place = volumes.path(volid), root / "elsewhere"
    (folder / "data").write_text("precious")
    with mounted(str(folder), place, "none", "bind"), pytest.raises(Refused, match=f"in use by the mount '{place}'"):
        volumes.free(volid)
    with (
        in_a_name_space_of_its_own(folder, place) as pid,
        pytest.raises(Refused, match=f"is in use by the mount '{place}' of process {pid}"),
    ):
        volumes.free(volid)
    assert (folder / "data").read_text() == "precious"
    volumes.free(volid)


@contextlib.contextmanager
def in_a_name_space_of_its_own(folder: Path, place: Path) -> Iterator[int]:
    """A process that sees a folder at another place, as containers do."""
    script = 'mount --bind "$0" "$1" && echo there && exec sleep 60'
    words = ["unshare", "--mount", "sh", "-c", script, str(folder), str(place)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "there\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_killed_allocation_leaves_no_volume_unseen(root: Root, form: str) -> None:
    images = root / "var/lib/vz/images"
    walk = Walk(root, "pvesm", "alloc", "local", "100", "", "4M", "--format", form)
    walk.count()
    volumes.free(f"local:100/vm-100-disk-0.{form}")
    for number in count(1):
        if not walk.kill_before(number).killed:
            assert number > 2
            break
        left = [path for path in images.rglob("*") if path.is_file()]
        assert sorted(volumes.owned_by(100)) == sorted(f"local:100/{path.name}" for path in left)
        made = volumes.alloc("local", 100, MIB)
        for volid in volumes.owned_by(100):
            volumes.free(volid)
        assert not volumes.exists(made)


@pytest.mark.parametrize("kind", ["image", "backup"])
def test_a_killed_removal_can_be_repeated(root: Root, kind: str) -> None:
    volid = "local:backup/vzdump-lxc-100-2020_03_30-21_12_40.tar"

    def make() -> str:
        if kind == "image":
            return volumes.alloc("local", 100, MIB)
        for suffix in (".tar", ".log", ".tar.notes"):
            (root / f"var/lib/vz/dump/vzdump-lxc-100-2020_03_30-21_12_40{suffix}").write_text("x")
        return volid

    walk = Walk(root, "pvesm", "free", make())
    walk.count()
    for number in count(1):
        again = make()
        if not walk.kill_before(number).killed:
            assert number > 1
            break
        if volumes.exists(again):
            volumes.free(again)
        assert not volumes.exists(again)


def test_a_definition_is_written_whole_or_not_at_all(root: Root) -> None:
    walk = Walk(root, "pvesm", "add", "dir", "more", "--path", str(root / "more"))
    steps = walk.count()
    whole = paths.storage_config().read_text()
    for number in range(1, len(steps) + 1):
        paths.storage_config().unlink(missing_ok=True)
        walk.kill_before(number)
        found = paths.storage_config()
        assert not found.exists() or found.read_text() == whole


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_import_that_fills_the_storage_says_so_and_leaves_nothing(
    small: Path, root: Root, cli: Callable[..., Result], form: str, way: str
) -> None:
    paths.storage_config().write_text(f"dir: small\n\tpath {small}\n\tcontent images\n")
    stream = root / "stream"
    stream.write_bytes(struct.pack("<Q", 32 * MIB) + os.urandom(32 * MIB))
    given = {"stdin": stream.read_bytes()} if way == "pipe" else {}
    ran = cli(
        "pvesm", "import", f"small:100/vm-100-disk-0.{form}", "raw+size", stream if way == "file" else "-", **given
    )
    assert ran.status == 255
    assert "\nstorage 'small' is full: " in f"\n{ran.stderr}"
    assert volumes.list_volumes("small") == []


def test_a_base_that_proxmox_ve_made_immutable_can_be_removed(root: Root) -> None:
    volid = volumes.make_base(volumes.alloc("local", 100, MIB))
    path = volumes.path(volid)
    run.run(["chattr", "+i", path])
    try:
        volumes.free(volid)
        assert not path.exists()
    finally:
        run.run(["chattr", "-i", path], check=False)


def test_a_volume_that_the_file_system_keeps_is_told(root: Root) -> None:
    volid = volumes.alloc("local", 100, MIB)
    path = volumes.path(volid)
    run.run(["chattr", "+i", path])
    try:
        with pytest.raises(PveError, match=f"^storage 'local': Operation not permitted: '{path}'$"):
            volumes.free(volid)
    finally:
        run.run(["chattr", "-i", path])
    volumes.free(volid)
