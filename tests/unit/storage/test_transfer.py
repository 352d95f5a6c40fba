"""Streams of volumes: the header, which formats go with what, and raw data into and out of images."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvetools.storage import pump, transfer, volumes
from pvetools.storage.driver import Capabilities
from pvetools.storage.transfer import NOW, State
from pvetools.system import log, nbd, paths, run
from pvetools.system.errors import PveError, Refused
from pvetools.system.streams import FileSource

MIB = 1 << 20


def in_pieces(data: bytes, cuts: list[int]) -> int:
    """A descriptor that gives the bytes in pieces, as a network does."""
    reader, writer = os.pipe()

    def write() -> None:
        places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for start, end in pairwise(places):
            os.write(writer, data[start:end])
        os.close(writer)

    threading.Thread(target=write).start()
    return reader


# The header.


@given(st.integers(0, 1 << 62), st.lists(st.integers(0, 8), max_size=4))
def test_the_size_is_read_back_however_it_arrives(size: int, cuts: list[int]) -> None:
    stream = in_pieces(transfer.HEADER.pack(size) + b"data", cuts)
    assert transfer.read_header(stream) == size
    assert os.read(stream, 100) == b"data", "nothing more is taken"
    os.close(stream)


@given(st.integers(0, (1 << 64) - 1))
def test_the_size_is_eight_bytes_with_the_lowest_first(size: int) -> None:
    assert transfer.HEADER.pack(size) == size.to_bytes(8, "little")


@given(st.binary(max_size=7))
def test_less_than_a_header_is_told(data: bytes) -> None:
    stream = in_pieces(data, [])
    with pytest.raises(PveError, match="the stream ended before the size of the volume"):
        transfer.read_header(stream)
    os.close(stream)


@given(st.integers((1 << 62) + 1, (1 << 64) - 1))
def test_sizes_that_no_volume_has_are_refused(size: int) -> None:
    stream = in_pieces(struct.pack("<Q", size), [])
    with pytest.raises(PveError, match=f"{size} bytes are too many"):
        transfer.read_header(stream)
    os.close(stream)


# Raw data and images.


def _noise(length: int) -> bytes:
    return os.urandom(length)


PIECES = st.lists(st.tuples(st.booleans(), st.integers(1, 90_000)), max_size=8)


@settings(max_examples=25, deadline=None)
@given(PIECES, st.lists(st.integers(0, 1 << 22), max_size=3))
def test_raw_data_goes_into_an_image_and_out_again(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bool, int]], cuts: list[int]
) -> None:
    data = b"".join(_noise(length) if noise else bytes(length * 10) for noise, length in pieces)
    data += bytes(-len(data) % 512) or bytes(512)
    image = tmp_path_factory.mktemp("images") / "disk.qcow2"
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(len(data))])
    stream = in_pieces(data, cuts)
    with nbd.image(image, "qcow2", read_only=False, known_zero=True) as export:
        pump.fill(stream, export, len(data))
    pump.check_end(stream)
    os.close(stream)
    reader, writer = os.pipe()
    came: list[bytes] = []

    def read() -> None:
        while block := os.read(reader, 50_000):
            came.append(block)

    thread = threading.Thread(target=read)
    thread.start()
    with nbd.image(image, "qcow2") as export:
        pump.drain(export, writer)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert b"".join(came) == data


@pytest.mark.parametrize("size", [0, 1, 511, MIB - 9, MIB - 8, MIB - 7, MIB, 3 * MIB + 5, 4 * MIB - 8])
@pytest.mark.parametrize("head", [b"", b"12345678"])
def test_a_file_goes_out_behind_a_head(tmp_path: Path, size: int, head: bytes) -> None:
    data = _noise(size)
    (tmp_path / "disk").write_bytes(data)
    with (tmp_path / "disk").open("rb") as disk, (tmp_path / "out").open("wb") as out:
        pump.copy_out(FileSource(disk.fileno()), out.fileno(), head)
    assert (tmp_path / "out").read_bytes() == head + data


def test_a_file_that_becomes_shorter_meanwhile_is_told(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(_noise(3 * MIB))
    with (tmp_path / "disk").open("r+b") as file, (tmp_path / "out").open("wb") as out:
        disk = FileSource(file.fileno(), "vm-100-disk-0")
        file.truncate(MIB)
        with pytest.raises(PveError, match=f"'vm-100-disk-0' became shorter while it was read: no data at {MIB}"):
            pump.copy_out(disk, out.fileno(), b"12345678")


def test_zeros_take_no_space_in_an_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"])
    stream = in_pieces(bytes(20 * MIB) + b"x" + bytes(44 * MIB - 1), [])
    with nbd.image(image, "qcow2", read_only=False, known_zero=True) as export:
        pump.fill(stream, export, 64 * MIB)
    os.close(stream)
    assert image.stat().st_blocks * 512 < MIB


# Which formats go.


@pytest.fixture
def storages(root: Path) -> None:
    paths.storage_config().write_text(
        f"dir: dir\n\tpath {root}/dir\n\nlvm: lvm\n\tvgname vg\n\nzfspool: zfs\n\tpool tank\n\n"
        f"btrfs: btrfs\n\tpath {root}/btrfs\n\niscsi: iscsi\n\tportal 192.0.2.1\n\ttarget iqn.2003-01.org.x:y\n"
    )


AT = State("one")
SINCE = State("two", "one")
WITH = State(with_snapshots=True)
ALL = State("two", with_snapshots=True)


@pytest.mark.parametrize(
    ("volid", "state", "formats"),
    [
        ("dir:100/vm-100-disk-0.raw", NOW, "raw+size"),
        ("dir:100/vm-100-disk-0.raw", AT, ""),
        ("dir:100/vm-100-disk-0.raw", WITH, ""),
        ("dir:100/vm-100-disk-0.qcow2", NOW, "raw+size"),
        ("dir:100/vm-100-disk-0.qcow2", WITH, "qcow2+size"),
        ("dir:100/vm-100-disk-0.qcow2", State(with_snapshots=True, snapshots=("one",)), ""),
        ("dir:100/vm-100-disk-0.vmdk", WITH, "vmdk+size"),
        ("dir:100/vm-100-disk-0.vmdk", SINCE, ""),
        ("dir:100/subvol-100-disk-0.subvol", NOW, "tar+size"),
        ("lvm:vm-100-disk-0", NOW, "raw+size"),
        ("lvm:vm-100-disk-0", ALL, ""),
        ("zfs:vm-100-disk-0", NOW, "raw+size"),
        ("zfs:vm-100-disk-0", AT, "zfs"),
        ("zfs:vm-100-disk-0", ALL, "zfs"),
        ("zfs:subvol-100-disk-0", NOW, "tar+size"),
        ("zfs:subvol-100-disk-0", SINCE, "zfs"),
        ("btrfs:100/vm-100-disk-0.raw", NOW, "raw+size"),
        ("btrfs:100/vm-100-disk-0.raw", SINCE, "btrfs"),
        ("btrfs:100/subvol-100-disk-0.subvol", ALL, "btrfs"),
        ("btrfs:100/vm-100-disk-0.qcow2", WITH, "qcow2+size"),
    ],
)
@pytest.mark.usefixtures("storages")
def test_the_state_of_a_volume_decides_how_it_can_be_written(volid: str, state: State, formats: str) -> None:
    assert " ".join(transfer.exports(volid, state)) == formats


@pytest.mark.usefixtures("storages")
def test_what_is_made_elsewhere_can_be_written_but_not_be_made() -> None:
    volid = "iscsi:0.0.1.scsi-36001405f3a"
    assert transfer.exports(volid) == ("raw+size",)
    assert transfer.imports(volid) == ()


@pytest.mark.parametrize(
    ("source", "target", "state", "form"),
    [
        ("dir:100/vm-100-disk-0.qcow2", "lvm:vm-100-disk-0", NOW, "raw+size"),
        ("lvm:vm-100-disk-0", "dir:100/vm-100-disk-0.qcow2", NOW, "raw+size"),
        ("dir:100/vm-100-disk-0.qcow2", "dir:101/vm-101-disk-0.qcow2", WITH, "qcow2+size"),
        ("zfs:vm-100-disk-0", "zfs:vm-101-disk-0", NOW, "raw+size"),
        ("zfs:vm-100-disk-0", "zfs:vm-101-disk-0", AT, "zfs"),
        ("btrfs:100/subvol-100-disk-0.subvol", "zfs:subvol-100-disk-0", NOW, "tar+size"),
    ],
)
@pytest.mark.usefixtures("storages")
def test_the_best_common_format_is_taken(source: str, target: str, state: State, form: str) -> None:
    assert transfer.common_format(source, target, state) == form


@pytest.mark.usefixtures("storages")
def test_without_a_common_format_both_sides_are_told() -> None:
    with pytest.raises(Refused) as caught:
        transfer.common_format("zfs:vm-100-disk-0", "btrfs:100/vm-100-disk-0.raw", SINCE)
    assert str(caught.value) == (
        "can't transfer volume 'zfs:vm-100-disk-0' to 'btrfs:100/vm-100-disk-0.raw': the first can be written as zfs "
        "(at snapshot 'two' since snapshot 'one'), the second be read from btrfs"
    )
    with pytest.raises(Refused, match=r"written as raw\+size, the second be read from tar\+size"):
        transfer.common_format("lvm:vm-100-disk-0", "dir:100/subvol-100-disk-0.subvol")


def test_the_formats_follow_from_the_capabilities() -> None:
    block = Capabilities(files=False, alloc=frozenset({"raw", "qcow2"}), resize=frozenset())
    assert block.exports("raw") == block.imports("raw") == ("raw+size",)
    assert block.exports("qcow2") == ("raw+size",), "a device is no file with snapshots"
    own = block._replace(export={"raw": ("own", "raw+size")})
    assert own.exports("raw") == ("own", "raw+size")
    assert own.imports("raw") == ("raw+size",)
    assert own.imports("vmdk") == ()


# Progress.


def test_progress_is_told_in_steps_and_to_the_end() -> None:
    from pvetools.storage.streaming import Meter

    lines: list[str] = []
    with log.console(lines.append):
        meter = Meter(100 * MIB)
        for done in range(0, 100 * MIB + 1, MIB):
            meter.at(done)
        meter.at(200 * MIB)
    assert len(lines) == 10
    assert lines[0] == "transferred 10.00 MiB of 100.00 MiB (10.00%)"
    assert lines[-1] == "transferred 100.00 MiB of 100.00 MiB (100.00%)"


# What comes and is not whole.


def archive(folder: Path) -> bytes:
    """Two files in an archive that ends as every archive does."""
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).write_bytes(name.encode() * 1000)
    return subprocess.run(["tar", "-C", folder, "-cf", "-", "one", "two"], capture_output=True, check=True).stdout


FOLDER = "local:100/subvol-100-disk-0.subvol"


@pytest.mark.parametrize("cuts", [[], [7, 9, 3000, 10_000], [*range(9000, 15_000, 511)]])
def test_an_archive_fills_a_folder(root: Path, cuts: list[int]) -> None:
    stream = in_pieces(bytes(8) + archive(root / "files"), cuts)
    assert transfer.import_(FOLDER, "tar+size", stream) == FOLDER
    assert (volumes.path(FOLDER) / "two").read_bytes() == b"two" * 1000
    os.close(stream)


@pytest.mark.parametrize("length", [512 + 3072, 2 * (512 + 3072), 2 * (512 + 3072) + 512])
def test_an_archive_that_ends_between_two_files_is_not_whole(root: Path, length: int) -> None:
    stream = in_pieces(bytes(8) + archive(root / "files")[:length], [])
    with pytest.raises(PveError, match="the stream ended before the end of its archive"):
        transfer.import_(FOLDER, "tar+size", stream)
    assert not volumes.exists(FOLDER)
    os.close(stream)


def test_what_tar_says_is_told_while_the_stream_goes_on(root: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(8) + b"\x1f\x8b\x08" + bytes(20_000))
    with pytest.raises(PveError, match="Archive is compressed"):
        transfer.import_(FOLDER, "tar+size", reader)
    os.close(reader)
    os.close(writer)


def test_a_stream_that_can_not_be_read_is_told(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname(), timeout=10)
        link, _ = server.accept()
    with link:
        sender.sendall(bytes(8) + archive(root / "files")[:512])
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        threading.Timer(0.2, sender.close).start()  # resets the connection
        with pytest.raises(PveError, match=r"the stream can't be read: Connection reset|Unexpected EOF"):
            transfer.import_(FOLDER, "tar+size", link.fileno())
    assert not volumes.exists(FOLDER)


def test_an_image_that_only_takes_too_much_space_is_taken(root: Path) -> None:
    image, cluster = root / "image.qcow2", 65536
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"])
    data = bytearray(image.read_bytes().ljust(6 * cluster, b"\0"))
    (table,) = struct.unpack_from(">Q", data, 48)
    (counts,) = struct.unpack_from(">Q", data, table)
    struct.pack_into(">H", data, counts + 2 * 5, 1)
    image.write_bytes(data)
    assert run.run(["qemu-img", "check", "-f", "qcow2", image], check=False).code == 3
    stream = in_pieces(transfer.HEADER.pack(MIB) + data, [])
    volid = "local:100/vm-100-disk-0.qcow2"
    assert transfer.import_(volid, "qcow2+size", stream, WITH) == volid
    os.close(stream)


# Copies.


def test_a_copy_becomes_a_disk_of_a_guest(root: Path) -> None:
    volid = volumes.alloc("local", 100, MIB)
    assert transfer.copy(volid, "local:101/vm-101-disk-7.qcow2") == "local:101/vm-101-disk-7.qcow2"
    with pytest.raises(Refused, match="is no disk image or folder of a guest"):
        transfer.copy(volid, "local:iso/x.iso")
