"""Volumes as streams between directories and btrfs: byte for byte, sparse, incremental, and never by halves."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from pvetools.storage import inuse, transfer, volumes
from pvetools.storage.transfer import State
from pvetools.system import paths, run
from pvetools.system.errors import Exists, PveError, Refused
from tests.real.test_storage_contract import btrfs_file_system
from tests.sandbox.root import Result, Root
from tests.sandbox.steps import Walk

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture(scope="module")
def file_system() -> Iterator[str]:
    with btrfs_file_system() as point:
        yield point


@pytest.fixture
def storages(root: Root, file_system: str) -> Iterator[Root]:
    """Storages one and two (dir), snaps and more (btrfs)."""
    place = Path(file_system)
    paths.storage_config().write_text(
        "".join(
            f"{kind}: {name}\n\tpath {path}\n\tcontent images,rootdir\n\n"
            for kind, name, path in (
                ("dir", "one", root / "one"), ("dir", "two", root / "two"),
                ("btrfs", "snaps", place / "snaps"), ("btrfs", "more", place / "more"),
            )
        )
    )  # fmt: skip
    yield root
    for name in ("snaps", "more"):
        for volume in volumes.list_volumes(name):
            volumes.free(volume.volid)
        left = [str(path) for path in (place / name / "images").glob("**/*")]
        assert not left


def content(seed: int) -> bytes:
    """A disk of 24 MiB with data at both ends and in the middle, in odd places."""
    data = bytearray(SIZE)
    noise = hashlib.shake_128(bytes([seed])).digest(2 * MIB)
    data[:300_000] = noise[:300_000]
    data[9 * MIB + 512 : 10 * MIB] = noise[: MIB - 512]
    data[SIZE - 5000 :] = noise[:5000]
    return bytes(data)


def disk(storage: str, form: str, data: bytes, vmid: int = 100) -> str:
    """A volume that holds these bytes."""
    volid = volumes.alloc(storage, vmid, len(data), format=form)
    write(volid, data)
    return volid


def write(volid: str, data: bytes) -> None:
    found = volumes.source(volid)
    raw = Path(os.environ["TMPDIR"], "content.raw")
    raw.write_bytes(data)
    run.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", found.format, raw, found.path])
    raw.unlink()


def read(volid: str) -> bytes:
    found = volumes.source(volid)
    raw = Path(os.environ["TMPDIR"], "content.raw")
    run.run(["qemu-img", "convert", "-f", found.format, "-O", "raw", found.path, raw])
    data = raw.read_bytes()
    raw.unlink()
    return data


def folder(storage: str, vmid: int = 100) -> str:
    """A folder with what containers have: a hole, a link, a device, other owners, an attribute."""
    volid = volumes.alloc(storage, vmid, 0, format="subvol", content="rootdir")
    place = volumes.source(volid).path
    (place / "etc").mkdir()
    (place / "etc/hostname").write_text("guest\n")
    (place / "link").symlink_to("/etc/hostname")
    with (place / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"x" * 4096)
    os.mknod(place / "null", 0o20666, os.makedev(1, 3))
    os.chown(place / "etc", 1234, 100_000)
    os.setxattr(place / "etc/hostname", "user.note", b"kept")
    place.chmod(0o751)
    return volid


def look(volid: str) -> dict[str, object]:
    """All that a folder holds."""
    place = volumes.source(volid).path
    found: dict[str, object] = {}
    for path in [place, *sorted(place.rglob("*"))]:
        stat = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        link = str(path.readlink()) if path.is_symlink() else ""
        note = os.getxattr(path, "user.note") if path.name == "hostname" else b""
        found[str(path.relative_to(place))] = (
            stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev, int(stat.st_mtime), link, note,
            hashlib.sha256(data).digest(),
        )  # fmt: skip
    assert place.joinpath("sparse").stat().st_blocks * 512 < MIB
    return found


# Through files, by the commands.

DISKS = [
    ("one:100/vm-100-disk-0.raw", "raw"), ("one:100/vm-100-disk-0.qcow2", "qcow2"),
    ("one:100/vm-100-disk-0.vmdk", "vmdk"), ("snaps:100/vm-100-disk-0.raw", "raw"),
]  # fmt: skip
TARGETS = [
    "two:200/vm-200-disk-5.raw", "two:200/vm-200-disk-5.qcow2", "two:200/vm-200-disk-5.vmdk",
    "more:200/vm-200-disk-5.raw",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("source", "form"), DISKS, ids=[f"{source}" for source, _ in DISKS])
def test_a_disk_goes_from_storage_to_storage_byte_by_byte(
    storages: Root, cli: Callable[..., Result], source: str, form: str, target: str
) -> None:
    data = content(1)
    assert disk(source.partition(":")[0], form, data) == source
    stream = storages / "stream"
    ran = cli("pvesm", "export", source, "raw+size", stream, ok=True)
    assert ran.stdout == ""
    assert "transferred 24.00 MiB of 24.00 MiB (100.00%)" in ran.stderr
    assert stream.read_bytes() == struct.pack("<Q", SIZE) + data
    ran = cli("pvesm", "import", target, "raw+size", stream, ok=True)
    assert ran.stdout == f"successfully imported '{target}'\n"
    assert read(target) == data
    assert volumes.info(target).used < 4 * MIB, "sparse stays sparse"


def test_a_folder_goes_from_storage_to_storage_with_all_that_it_holds(
    storages: Root, cli: Callable[..., Result]
) -> None:
    seen = look(folder("one"))
    for source, target in (
        ("one:100/subvol-100-disk-0.subvol", "snaps:100/subvol-100-disk-7.subvol"),
        ("snaps:100/subvol-100-disk-7.subvol", "two:101/subvol-101-disk-0.subvol"),
    ):
        cli("pvesm", "export", source, "tar+size", storages / "stream", ok=True)
        assert (storages / "stream").read_bytes()[:8] == bytes(8)
        cli("pvesm", "import", target, "tar+size", storages / "stream", ok=True)
        assert look(target) == seen


@pytest.mark.parametrize("form", ["qcow2", "vmdk"])
def test_whole_image_files_go_with_their_snapshots(storages: Root, cli: Callable[..., Result], form: str) -> None:
    source, target = disk("one", form, content(1)), f"two:101/vm-101-disk-0.{form}"
    if form == "qcow2":
        volumes.snapshot(source, "before")
        write(source, content(2))
    before = read(source)
    cli("pvesm", "export", source, f"{form}+size", storages / "stream", "--with-snapshots", 1, ok=True)
    assert (storages / "stream").read_bytes() == struct.pack("<Q", SIZE) + volumes.path(source).read_bytes()
    cli("pvesm", "import", target, f"{form}+size", storages / "stream", "--with-snapshots", 1, ok=True)
    assert read(target) == before
    if form == "qcow2":
        volumes.rollback(target, "before")
        assert read(target) == content(1)


@pytest.mark.parametrize("target", ["snaps:100/vm-100-disk-0.raw", "two:100/vm-100-disk-0.qcow2"])
def test_a_pipe_carries_a_volume(storages: Root, target: str) -> None:
    data = content(3)
    disk("one", "qcow2", data)
    export = storages.argv("pvesm", "export", "one:100/vm-100-disk-0.qcow2", "raw+size", "-")
    fetch = storages.argv("pvesm", "import", target, "raw+size", "-")
    environment = storages.environment()
    with subprocess.Popen(export, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as first:
        done = subprocess.run(fetch, stdin=first.stdout, capture_output=True, text=True, env=environment, timeout=60)
        assert done.stdout == f"successfully imported '{target}'\n", done.stderr
        assert b"\r" not in first.stderr.read()
    assert read(target) == data


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("size", [1000, 3 * MIB, 3 * MIB + 512])
def test_a_file_on_standard_input_is_read_from_where_it_stands(storages: Root, form: str, size: int) -> None:
    """The stream may stand in the middle of a file that has lost its name, and end within a sector."""
    data, volid = content(4)[:size], f"two:100/vm-100-disk-0.{form}"
    argv = storages.argv("pvesm", "import", volid, "raw+size", "-")
    (storages / "stream").write_bytes(b"before" + struct.pack("<Q", size) + data)
    with (storages / "stream").open("rb", 0) as file:
        file.seek(6)
        (storages / "stream").unlink()
        environment = storages.environment()
        done = subprocess.run(argv, stdin=file, capture_output=True, text=True, env=environment, timeout=60)
        assert done.stdout == f"successfully imported '{volid}'\n", done.stderr
        assert file.tell() == 14 + size
    assert read(volid)[:size] == data


@pytest.mark.parametrize("place", ["tcp://127.0.0.1", "tcp://127.0.0.0/24", "unix"])
def test_a_connection_brings_a_volume(storages: Root, place: str) -> None:
    data = content(4)
    name = f"unix://{storages / 'socket'}" if place == "unix" else place
    argv = storages.argv("pvesm", "import", "one:100/vm-100-disk-0.raw", "raw+size", name)
    environment = storages.environment()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        if place == "unix":
            assert process.stdout.readline() == "ready\n"
            link = socket.socket(socket.AF_UNIX)
            link.connect(str(storages / "socket"))
        else:
            address, port = process.stdout.readline().strip(), int(process.stdout.readline())
            assert address == "127.0.0.1"
            assert 60000 <= port <= 60050
            link = socket.create_connection((address, port), timeout=30)
        with link:
            link.sendall(struct.pack("<Q", SIZE) + data)
        out, err = process.communicate(timeout=60)
    assert out == "successfully imported 'one:100/vm-100-disk-0.raw'\n", err
    assert read("one:100/vm-100-disk-0.raw") == data
    assert not (storages / "socket").exists()


# btrfs' own streams.


def test_btrfs_sends_snapshots_and_what_has_changed_since(storages: Root, cli: Callable[..., Result]) -> None:
    source, target, stream = disk("snaps", "raw", content(1)), "more:100/vm-100-disk-0.raw", storages / "stream"
    volumes.snapshot(source, "one")
    cli("pvesm", "export", source, "btrfs", stream, "--snapshot", "one", ok=True)
    cli("pvesm", "import", target, "btrfs", stream, "--snapshot", "one", ok=True)
    assert read(target) == content(1)
    assert [found.name for found in volumes.snapshots(target)] == ["one"]

    changed = content(1)[: SIZE - 10] + b"0123456789"
    write(source, changed)
    run.run(["sync"])
    volumes.snapshot(source, "two")
    cli("pvesm", "export", source, "btrfs", stream, "--snapshot", "two", "--base", "one", ok=True)
    write(target, content(9))  # what is not in a snapshot goes
    cli("pvesm", "import", target, "btrfs", stream, "--snapshot", "two", "--base", "one", ok=True)
    assert read(target) == changed
    assert [found.name for found in volumes.snapshots(target)] == ["one", "two"]
    volumes.rollback(target, "one")
    assert read(target) == content(1)


def test_btrfs_sends_all_snapshots_at_once(storages: Root, cli: Callable[..., Result]) -> None:
    source, target, stream = disk("snaps", "raw", content(1)), "more:100/vm-100-disk-3.raw", storages / "stream"
    for number, name in enumerate(("zero", "one", "two"), 1):
        write(source, content(number))
        volumes.snapshot(source, name)
    words = ["--snapshot", "two", "--with-snapshots", 1]
    cli("pvesm", "export", source, "btrfs", stream, *words, ok=True)
    cli("pvesm", "import", target, "btrfs", stream, *words, ok=True)
    for number, name in enumerate(("zero", "one", "two"), 1):
        volumes.rollback(target, name)
        assert read(target) == content(number)
    cli("pvesm", "export", source, "btrfs", stream, *words, "--snapshot-list", "one,two", ok=True)
    cli("pvesm", "import", target, "btrfs", stream, *words, "--allow-rename", 1, "--delete-snapshot", "one", ok=True)
    assert [found.name for found in volumes.snapshots("more:100/vm-100-disk-0.raw")] == ["two"]
    assert read("more:100/vm-100-disk-0.raw") == content(3)


def test_folders_of_btrfs_are_sent_too(storages: Root, cli: Callable[..., Result]) -> None:
    source, target, stream = folder("snaps"), "more:101/subvol-101-disk-0.subvol", storages / "stream"
    volumes.snapshot(source, "__migration__")
    words = ["--snapshot", "__migration__"]
    cli("pvesm", "export", source, "btrfs", stream, *words, ok=True)
    cli("pvesm", "import", target, "btrfs", stream, *words, "--delete-snapshot", "__migration__", ok=True)
    assert look(target) == look(source)
    assert volumes.snapshots(target) == []
    (volumes.path(target) / "new").write_text("it can be written")


def btrfs_stream(*commands: tuple[int, dict[int, bytes]]) -> bytes:
    """A stream as any program could make it: commands by number, with their attributes."""
    stream = b"btrfs-stream\0" + struct.pack("<I", 1)
    for number, attributes in commands:
        data = b"".join(struct.pack("<HH", key, len(value)) + value for key, value in attributes.items())
        sum_ = crc32c(struct.pack("<IHI", len(data), number, 0) + data)
        stream += struct.pack("<IHI", len(data), number, sum_) + data
    return stream


def crc32c(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_SUBVOLUME, _MAKE_FILE, _SYMLINK, _END = 1, 3, 8, 21
_UUID, _TRANSACTION, _INODE, _PATH, _LINK = 1, 2, 3, 15, 17


def test_a_stream_of_btrfs_writes_nowhere_else(storages: Root, cli: Callable[..., Result]) -> None:
    target, stream, outside = "more:100/subvol-100-disk-0.subvol", storages / "stream", storages / "outside"
    outside.mkdir()
    number = bytes(8)
    stream.write_bytes(btrfs_stream(
        (_SUBVOLUME, {_PATH: b"subvol-100-disk-0.subvol@one", _UUID: os.urandom(16), _TRANSACTION: number}),
        (_SYMLINK, {_PATH: b"link", _INODE: number, _LINK: bytes(outside)}),
        (_MAKE_FILE, {_PATH: b"link/file", _INODE: number}),
        (_END, {}),
    ))  # fmt: skip
    ran = cli("pvesm", "import", target, "btrfs", stream, "--snapshot", "one")
    assert ran.status == 255
    assert "No such file or directory" in ran.stderr
    assert [*outside.iterdir()] == []
    assert not volumes.exists(target)


# What is refused, and what is left when something goes wrong.


def below(root: Root) -> list[str]:
    return sorted(str(path) for name in ("one", "two") for path in (root / name).rglob("vm-*"))


@pytest.mark.parametrize(
    ("volume", "words", "why"),
    [
        ("one:100/vm-100-disk-0.raw", ["tar+size", "-"], "in format 'tar+size', only: raw+size"),
        ("one:100/vm-100-disk-0.raw", ["qcow2+size", "-"], "in format 'qcow2+size', only: raw+size"),
        ("one:100/vm-100-disk-0.raw", ["btrfs", "-", "--snapshot", "x"], "at snapshot 'x'"),
        ("one:100/vm-100-disk-0.raw", ["raw+size", "-", "--with-snapshots"], "with snapshots"),
        ("one:100/vm-100-disk-0.raw", ["raw+size", "-", "--base", "x"], "since snapshot 'x'"),
        ("one:100/vm-100-disk-7.raw", ["raw+size", "-"], "volume 'one:100/vm-100-disk-7.raw' does not exist"),
        ("snaps:100/vm-100-disk-0.raw", ["btrfs", "-"], "in format 'btrfs', only: raw+size"),
        ("snaps:100/vm-100-disk-0.raw", ["btrfs", "-", "--snapshot", "x"], "has no snapshot 'x'"),
        ("one:100/vm-100-disk-0.raw", ["raw+size", "/gone/x"], "can't open '/gone/x': No such file or directory"),
        ("one:100/vm-100-disk-0.raw", ["raw+size", "-", "--snapshot-list", "a"], "snapshot-list: is for use with"),
    ],
)
def test_an_export_that_does_not_go_is_refused(
    storages: Root, cli: Callable[..., Result], volume: str, words: list[str], why: str
) -> None:
    for storage in ("one", "snaps"):
        volumes.alloc(storage, 100, MIB, format="raw")
    ran = cli("pvesm", "export", volume, *words)
    assert ran.status in (2, 255)
    assert why in ran.stderr
    assert ran.stdout == ""


HEAD = struct.pack("<Q", MIB)


@pytest.mark.parametrize(
    ("volume", "form", "data", "why"),
    [
        ("two:100/vm-100-disk-0.raw", "raw+size", b"", "the stream ended before the size of the volume"),
        ("two:100/vm-100-disk-0.raw", "raw+size", HEAD[:7], "the stream ended before the size of the volume"),
        ("two:100/vm-100-disk-0.raw", "raw+size", bytes(8), "the size of a volume must be larger than 0"),
        ("two:100/vm-100-disk-0.raw", "raw+size", b"\xff" * 8, "does not begin with the size of a volume"),
        ("two:100/vm-100-disk-0.raw", "raw+size", HEAD + b"x" * 1000, "the stream ended after 1000 of 1048576 bytes"),
        ("two:100/vm-100-disk-0.qcow2", "raw+size", HEAD + b"x" * 1000, "the stream ended after 1000 of 1048576 bytes"),
        ("two:100/vm-100-disk-0.raw", "raw+size", HEAD + b"x" * (MIB + 1), "more data than its header says"),
        ("two:100/vm-100-disk-0.qcow2", "raw+size", HEAD + b"x" * (MIB + 1), "more data than its header says"),
        ("two:100/subvol-100-disk-0.subvol", "tar+size", bytes(8) + b"x" * 5000, "tar"),
        ("two:100/subvol-100-disk-0.subvol", "tar+size", bytes(8), "tar"),
        ("two:100/vm-100-disk-0.raw", "tar+size", HEAD, "can't be imported in format 'tar+size', only: raw+size"),
        ("two:100/base-100-disk-0.raw", "raw+size", HEAD + bytes(MIB), "new volumes can't be base volumes"),
        ("two:iso/x.iso", "raw+size", HEAD + bytes(MIB), "is no disk image or folder of a guest"),
        ("snaps:100/vm-100-disk-0.raw", "raw+size", HEAD + b"x", "the stream ended after 1 of 1048576 bytes"),
    ],
)
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_damaged_stream_leaves_nothing(
    storages: Root, cli: Callable[..., Result], volume: str, form: str, data: bytes, why: str, way: str
) -> None:
    (storages / "stream").write_bytes(data)
    given = "-" if way == "pipe" else storages / "stream"
    ran = cli("pvesm", "import", volume, form, given, stdin=data)
    assert ran.status == 255
    assert why in ran.stderr
    assert below(storages) == []
    assert not (storages / "two/images/100").exists()


@pytest.mark.parametrize("form", ["raw", "qcow2", "subvol"])
def test_an_export_that_nobody_reads_on_ends_quietly(storages: Root, cli: Callable[..., Result], form: str) -> None:
    if form == "subvol":
        source, kind = folder("one"), "tar+size"
        (volumes.path(source) / "big").write_bytes(os.urandom(2 * MIB))
    else:
        source, kind = disk("one", form, content(1)), "raw+size"
    ran = cli("pvesm", "export", source, kind, "/dev/full")
    assert (ran.status, ran.stderr) == (255, "the stream can't be written: No space left on device\n")
    argv, environment = storages.argv("pvesm", "export", source, kind, "-"), storages.environment()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_a_volume_is_not_written_into_itself(storages: Root, cli: Callable[..., Result]) -> None:
    volid, link = disk("one", "raw", content(1)), storages / "link"
    link.symlink_to(volumes.path(volid))
    for name in (volumes.path(volid), link):
        ran = cli("pvesm", "export", volid, "raw+size", name)
        said = f"'{name}' is the volume itself: it would be overwritten while it is read\n"
        assert (ran.status, ran.stderr) == (255, said)
    assert read(volid) == content(1)
    link.unlink()
    link.write_bytes(bytes(2 * SIZE))
    cli("pvesm", "export", volid, "raw+size", link, ok=True)
    assert link.read_bytes() == struct.pack("<Q", SIZE) + content(1)


def test_what_a_volume_lies_on_is_not_written_either(storages: Root, cli: Callable[..., Result]) -> None:
    volid = disk("one", "raw", content(1))
    base, folder = volumes.path(volid), volumes.path(volid).parent
    make = ["qemu-img", "create", "-q", "-f"]
    subprocess.run([*make, "qcow2", "-b", base, "-F", "raw", folder / "vm-100-over.qcow2"], check=True)
    subprocess.run([*make, "vmdk", "-o", "subformat=monolithicFlat", folder / "vm-100-flat.vmdk", "1M"], check=True)
    for name, below in (("over.qcow2", base), ("flat.vmdk", folder / "vm-100-flat-flat.vmdk")):
        ran = cli("pvesm", "export", f"one:100/vm-100-{name}", "raw+size", below)
        assert ran.stderr == f"'{below}' is the volume itself: it would be overwritten while it is read\n"
    assert read(volid) == content(1)


def test_a_refused_export_leaves_its_target_as_it_was(storages: Root, cli: Callable[..., Result]) -> None:
    folder = volumes.path(disk("one", "raw", content(1))).parent
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b"]
    subprocess.run([*make, folder / "vm-100-disk-0.raw", folder / "vm-100-over.qcow2"], check=True)
    imported = storages / "one/import/over.qcow2"
    imported.parent.mkdir(exist_ok=True)
    subprocess.run([*make, "/etc/hostname", imported], check=True)
    imported.with_name("box.ova").touch()
    old, new = storages / "old", storages / "new"
    old.write_text("precious")
    chained, foreign = ("one:100/vm-100-over.qcow2", "qcow2+size"), ("one:import/over.qcow2", "raw+size")
    for path in (old, new):
        assert "as one file" in cli("pvesm", "export", *chained, path, "--with-snapshots").stderr
        assert "has the backing file" in cli("pvesm", "export", *foreign, path).stderr
        assert "is no disk image or folder" in cli("pvesm", "export", "one:import/box.ova", "raw+size", path).stderr
    assert old.read_text() == "precious"
    assert not new.exists()


def test_a_stream_goes_behind_what_the_shell_appends_to(storages: Root, cli: Callable[..., Result]) -> None:
    volid, target = disk("one", "raw", content(1)), storages / "target"
    target.write_text("before")
    argv, environment = storages.argv("pvesm", "export", volid, "raw+size", "-"), storages.environment()
    with target.open("ab") as file:
        subprocess.run(argv, stdout=file, env=environment, check=True)
    assert target.read_bytes() == b"before" + struct.pack("<Q", SIZE) + content(1)


@pytest.mark.parametrize(
    ("target", "form"),
    [("two:100/vm-100-disk-0.raw", "raw+size"), ("snaps:100/vm-100-disk-0.raw", "raw+size"),
     ("two:100/vm-100-disk-0.qcow2", "raw+size"), ("two:100/vm-100-disk-0.qcow2", "qcow2+size"),
     ("two:100/subvol-100-disk-0.subvol", "tar+size")],
)  # fmt: skip
def test_a_volume_that_is_being_filled_stays(
    storages: Root, cli: Callable[..., Result], target: str, form: str
) -> None:
    source = folder("one") if form == "tar+size" else disk("one", form.removesuffix("+size"), content(1))
    stream = storages / "stream"
    words = ["--with-snapshots", 1] if form == "qcow2+size" else []
    cli("pvesm", "export", source, form, stream, *words, ok=True)
    data = stream.read_bytes()
    argv = storages.argv("pvesm", "import", target, form, "-", *words)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=storages.environment()) as process:
        process.stdin.write(data[: len(data) // 2])
        process.stdin.flush()
        deadline, said = time.monotonic() + 30, ""
        while "is in use by" not in said:
            assert time.monotonic() < deadline, f"not in use within 30 s: {said}"
            time.sleep(0.05)
            if volumes.exists(target) and inuse.user_of(volumes.path(target)):
                said = cli("pvesm", "free", target).stderr
        process.stdin.write(data[len(data) // 2 :])
        process.stdin.close()
        assert process.wait(60) == 0, process.stderr.read()
    assert volumes.exists(target)
    volumes.free(target)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_stream_that_can_not_be_read_is_told(storages: Root, cli: Callable[..., Result], form: str) -> None:
    ran = cli("pvesm", "import", f"one:100/vm-100-disk-0.{form}", "raw+size", "/etc")
    assert (ran.status, ran.stderr) == (255, "the stream can't be read: Is a directory\n")
    assert volumes.list_volumes("one") == []


def test_an_image_file_that_is_cut_off_or_not_what_it_says_leaves_nothing(
    storages: Root, cli: Callable[..., Result]
) -> None:
    source, stream = disk("one", "qcow2", content(1)), storages / "stream"
    image = volumes.path(source).read_bytes()
    base = volumes.make_base(disk("one", "qcow2", bytes(MIB)))
    linked = volumes.path(volumes.clone(base, 101)).read_bytes()
    for data, why in (
        (struct.pack("<Q", SIZE) + image[: len(image) // 2], "qemu-img"),
        (struct.pack("<Q", SIZE * 2) + image, "has 25165824 bytes, its header says 50331648"),
        (struct.pack("<Q", SIZE) + bytes(len(image)), "is not a valid qcow2 image"),
        (HEAD + linked, "has the backing file '../100/base-100-disk-1.qcow2'"),
    ):
        stream.write_bytes(data)
        ran = cli("pvesm", "import", "two:100/vm-100-disk-0.qcow2", "qcow2+size", stream, "--with-snapshots", 1)
        assert ran.status == 255
        assert why in ran.stderr
        assert not (storages / "two/images/100").exists()


def test_a_linked_clone_is_no_file_that_stands_alone(storages: Root, cli: Callable[..., Result]) -> None:
    clone = volumes.clone(volumes.make_base(disk("one", "qcow2", content(1))), 101)
    ran = cli("pvesm", "export", clone, "qcow2+size", "-", "--with-snapshots", 1)
    assert "can't be exported as one file: its data lies in other files as well" in ran.stderr
    cli("pvesm", "export", clone, "raw+size", storages / "stream", ok=True)
    assert (storages / "stream").read_bytes()[8:] == content(1)


@pytest.mark.parametrize(
    "target", ["two:100/vm-100-disk-0.raw", "two:100/vm-100-disk-0.qcow2", "snaps:100/vm-100-disk-0.raw"]
)
def test_an_interrupted_import_leaves_nothing(storages: Root, target: str) -> None:
    argv = storages.argv("pvesm", "import", target, "raw+size", "-")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=storages.environment()) as process:
        process.stdin.write(struct.pack("<Q", SIZE) + content(1)[: 2 * MIB])
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not volumes.exists(target) or volumes.info(target).used < 65536:
            assert time.monotonic() < deadline, "nothing arrives within 30 s"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
    assert not volumes.exists(target)
    assert volumes.list_volumes(target.partition(":")[0]) == []


@pytest.mark.parametrize("target", ["two:100/vm-100-disk-0.raw", "two:100/vm-100-disk-0.qcow2"])
def test_a_killed_import_leaves_no_program_and_what_can_be_removed(storages: Root, target: str) -> None:
    stream = storages / "stream"
    stream.write_bytes(struct.pack("<Q", SIZE) + content(1))
    walk = Walk(storages, "pvesm", "import", target, "raw+size", stream)
    walk.count()
    for number in count(1):
        volumes.free(target, missing_ok=True)
        assert below(storages) == []
        dead = walk.kill_before(number)
        if not dead.killed:
            assert number > 2
            break
        assert not dead.orphans
        assert [volume.volid for volume in volumes.list_volumes("two")] in ([], [target])
    assert read(target) == content(1)


def test_a_volume_that_exists_is_kept(storages: Root, cli: Callable[..., Result]) -> None:
    volid, stream = disk("one", "raw", content(1)), storages / "stream"
    stream.write_bytes(HEAD + b"n" * MIB)
    ran = cli("pvesm", "import", volid, "raw+size", stream)
    assert ran.status == 255
    assert f"volume '{volid}' already exists" in ran.stderr
    assert read(volid) == content(1)
    ran = cli("pvesm", "import", volid, "raw+size", stream, "--allow-rename", 1, ok=True)
    assert ran.stdout == "successfully imported 'one:100/vm-100-disk-1.raw'\n"
    assert read("one:100/vm-100-disk-1.raw") == b"n" * MIB


# Copies.


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("source", "form"), DISKS, ids=[f"{source}" for source, _ in DISKS])
def test_disks_are_copied(storages: Root, source: str, form: str, target: str) -> None:
    disk(source.partition(":")[0], form, content(5))
    assert transfer.common_format(source, target) == "raw+size"
    assert transfer.copy(source, target) == target
    assert read(target) == content(5) == read(source)
    assert volumes.info(target).used < 4 * MIB
    with pytest.raises(Exists):
        transfer.copy(source, target)
    assert read(target) == content(5)


def test_folders_and_snapshots_are_copied(storages: Root) -> None:
    source = folder("one")
    assert transfer.copy(source, "snaps:100/subvol-100-disk-0.subvol") == "snaps:100/subvol-100-disk-0.subvol"
    assert look("snaps:100/subvol-100-disk-0.subvol") == look(source)
    volumes.snapshot("snaps:100/subvol-100-disk-0.subvol", "one")
    state = State("one", with_snapshots=True)
    made = transfer.copy("snaps:100/subvol-100-disk-0.subvol", "more:100/subvol-100-disk-0.subvol", state)
    assert [found.name for found in volumes.snapshots(made)] == ["one"]
    with pytest.raises(Refused, match=r"the first can be written as btrfs .*, the second be read from nothing"):
        transfer.copy(made, "one:101/subvol-101-disk-0.subvol", state)
    with pytest.raises(Refused, match=r"written as tar\+size, the second be read from raw\+size"):
        transfer.copy(made, "one:101/vm-101-disk-0.raw")


def test_a_copy_that_fails_on_either_side_says_why_and_leaves_nothing(storages: Root) -> None:
    source = folder("one")
    (volumes.path(source) / "etc").chmod(0)
    with pytest.raises(PveError, match="does not exist"):
        transfer.copy("one:100/subvol-100-disk-9.subvol", "two:100/subvol-100-disk-0.subvol")
    small = storages / "small"
    small.mkdir()
    run.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", small])
    try:
        with paths.storage_config().open("a") as file:
            file.write(f"dir: small\n\tpath {small}\n\tcontent images,rootdir\n")
        (volumes.path(source) / "big").write_bytes(os.urandom(8 * MIB))
        with pytest.raises(PveError, match="storage 'small' is full: "):
            transfer.copy(source, "small:100/subvol-100-disk-0.subvol")
        with pytest.raises(PveError, match="storage 'small' is full: "):
            transfer.copy(disk("one", "raw", os.urandom(8 * MIB)), "small:100/vm-100-disk-0.raw")
        assert volumes.list_volumes("small") == []
    finally:
        run.run(["umount", small])


def test_the_api_copies_a_volume(storages: Root, cli: Callable[..., Result]) -> None:
    source = disk("one", "raw", content(1))
    path = f"/nodes/localhost/storage/one/content/{source}"
    ran = cli("pvesh", "create", path, "--target", "snaps:101/vm-101-disk-0.raw", ok=True)
    assert "Copied volume 'one:100/vm-100-disk-0.raw' to 'snaps:101/vm-101-disk-0.raw'" in ran.stdout + ran.stderr
    assert read("snaps:101/vm-101-disk-0.raw") == content(1)
    cli("pvesh", "create", path, "--target", "101/vm-101-disk-0.qcow2", ok=True)
    assert read("one:101/vm-101-disk-0.qcow2") == content(1)
    ran = cli("pvesh", "create", path, "--target", "two:101/vm-101-disk-0.raw", "--target_node", "other")
    assert "node 'other' is not this one" in ran.stderr
