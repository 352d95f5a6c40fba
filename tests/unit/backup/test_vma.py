"""VMA archives: the worked example byte by byte, round trips, and how the reader treats whole archives."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvetools.backup import vma
from pvetools.backup.vma_format import BLOCK, CLUSTER, MAX_BLOB, Device, Header, VmaError, build_header
from pvetools.system.errors import Exists, NotFound, PveError
from pvetools.system.streams import FileSource, FileTarget, Output, Throttle
from tests.unit.backup import samples
from tests.unit.backup.samples import CONFIG, CTIME, TINY, TINY_SHA256, UUID, Feed, MemoryTarget, Sink

dissect = pytest.importorskip("dissect.archive.vma")


def with_dissect(data: bytes) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Configs and devices as an independent program reads them."""
    import io

    archive = dissect.VMA(io.BytesIO(data))
    return (
        {name: bytes(config) for name, config in archive.configs().items()},
        {device.name: device.open().read(device.size) for device in archive.devices()},
    )


def test_the_worked_example_is_written_byte_for_byte() -> None:
    data = samples.write_archive({"qemu-server.conf": CONFIG}, TINY, uuid=UUID, ctime=CTIME)
    assert len(data) == 25600
    assert hashlib.sha256(data).hexdigest() == TINY_SHA256


def test_the_worked_example_is_read_back() -> None:
    with Feed(samples.tiny()) as fd:
        reader = vma.Reader(fd)
        assert reader.configs == {"qemu-server.conf": CONFIG}
        assert reader.devices == [Device(1, "drive-scsi0", 131072), Device(2, "drive-virtio1", 70144)]
        assert (reader.header.uuid, reader.header.ctime) == (UUID, CTIME)
    assert samples.read_archive(samples.tiny()) == TINY


BIG = {"drive-scsi0": samples.noisy(9 << 20, 1), "drive-scsi1": samples.noisy((3 << 20) + 512 * 77, 2)}


@pytest.mark.parametrize("order", samples.orders())
@pytest.mark.parametrize("entries", [58, 59])
@pytest.mark.parametrize("known_zero", [False, True])
def test_any_order_of_clusters_is_restored_exactly(order: samples.Order, entries: int, known_zero: bool) -> None:
    data = samples.build({"qemu-server.conf": CONFIG}, BIG, order=order, entries=entries)
    assert samples.read_archive(data, known_zero=known_zero) == BIG


def test_the_writer_fills_extents_with_59_clusters_and_needs_no_padding() -> None:
    data = samples.write_archive({"qemu-server.conf": CONFIG}, BIG, uuid=UUID, ctime=CTIME)
    assert data == samples.build({"qemu-server.conf": CONFIG}, BIG)


def test_another_reader_sees_the_same_disks_and_configs() -> None:
    configs = {"qemu-server.conf": CONFIG, "qemu-server.fw": b"[OPTIONS]\nenable: 1\n"}
    assert with_dissect(samples.write_archive(configs, BIG)) == (configs, BIG)


@pytest.mark.parametrize("order", samples.orders())
def test_the_sample_orders_mean_the_same_to_another_reader(order: samples.Order) -> None:
    assert with_dissect(samples.build({"a": b""}, BIG, order=order)) == ({"a": b""}, BIG)


@pytest.mark.parametrize("size", [1, 511, 512, 4095, 4096, 4097, 65535, 65536, 65537, 70000, (1 << 20) + 1])
def test_sizes_are_rounded_up_to_sectors_and_filled_with_zeros(size: int) -> None:
    disk = random.Random(size).randbytes(size)
    rounded = disk.ljust(-(-size // 512) * 512, b"\0")
    data = samples.write_archive({}, {"drive-ide0": disk})
    assert samples.read_archive(data) == {"drive-ide0": rounded}
    assert with_dissect(data)[1] == {"drive-ide0": rounded}


def test_stale_memory_never_leaks_into_the_padding_of_the_last_block() -> None:
    """The ring is reused: what an earlier disk left there must not show behind the end of a later one."""
    disks = {"drive-scsi0": b"\xff" * (40 << 20), "drive-scsi1": b"\x01" * 600}
    data = samples.write_archive({}, disks)
    assert data[-BLOCK:] == disks["drive-scsi1"].ljust(BLOCK, b"\0")


def test_an_archive_without_devices_has_one_empty_extent() -> None:
    data = samples.write_archive({"qemu-server.conf": CONFIG}, {})
    assert len(data) == 12800 + 512
    assert samples.read_archive(data) == {}
    assert samples.read_archive(data[:12800]) == {}  # the header alone is accepted too


@st.composite
def archives(draw: st.DrawFn) -> tuple[dict[str, bytes], dict[str, bytes], int]:
    names = st.text(
        st.characters(codec="utf-8", categories=("L", "N"), include_characters="-_."), min_size=1, max_size=20
    )
    good = names.filter(lambda name: name not in (".", "..", "vmstate") and len(name.encode()) <= 60)
    configs = draw(st.dictionaries(good, st.binary(max_size=3000), max_size=5))
    disks = {}
    for name in draw(st.lists(good, unique=True, max_size=4)):
        size = draw(st.integers(1, 700)) * 512
        spots = draw(st.lists(st.tuples(st.integers(0, size - 1), st.binary(min_size=1, max_size=9000)), max_size=6))
        disks[name] = samples.image(size, *((at, piece[: size - at]) for at, piece in spots))
    return configs, disks, draw(st.integers(0, 1 << 30))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(archives())
def test_whatever_is_written_comes_back(sample: tuple[dict[str, bytes], dict[str, bytes], int]) -> None:
    configs, disks, seed = sample
    written = samples.write_archive(configs, disks, uuid=UUID, ctime=CTIME)
    assert written == samples.build(configs, disks)
    assert samples.read_archive(written, piece=seed % 5000 + 1) == disks

    def order(clusters: list[tuple[int, int]]) -> list[tuple[int, int]]:
        random.Random(seed).shuffle(clusters)
        return clusters

    mixed = samples.build(configs, disks, order=order, entries=seed % 59 + 1)
    assert samples.read_archive(mixed, known_zero=True) == disks
    with Feed(mixed) as fd:
        assert vma.Reader(fd).configs == configs


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_change_of_the_structure_goes_unnoticed(data: st.DataObject) -> None:
    """Any bit of header or extent header, and any cut: an error of ours, never another one, never silence."""
    raw = samples.tiny()
    if data.draw(st.booleans()):
        at = data.draw(st.one_of(st.integers(0, 0x33FF)))
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
        if len(raw) == 0x3200:
            return
    with pytest.raises(VmaError):
        samples.read_archive(raw)


def test_zeros_are_written_only_where_the_target_may_hold_something_else() -> None:
    data = samples.build({}, {"drive-scsi0": samples.image(3 * CLUSTER, (CLUSTER + 4096, b"x"))})
    for known_zero, zeroed in ((True, 0), (False, 3 * CLUSTER - BLOCK)):
        target = MemoryTarget(3 * CLUSTER, known_zero=known_zero)
        with Feed(data) as fd:
            vma.Reader(fd).copy({"drive-scsi0": target})
        assert (target.written, target.zeroed) == (BLOCK, zeroed)


def test_extracted_disks_are_sparse_and_exact(tmp_path: Path) -> None:
    disk = samples.image((64 << 20) + 512, (5 << 20, b"data"), (64 << 20, b"end"))
    with Feed(samples.build({"qemu-server.conf": CONFIG}, {"drive-scsi0": disk})) as fd:
        vma.extract(fd, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["disk-drive-scsi0.raw", "qemu-server.conf"]
    made = tmp_path / "out" / "disk-drive-scsi0.raw"
    assert made.read_bytes() == disk
    assert made.stat().st_blocks * 512 <= 1 << 20


def test_extract_leaves_nothing_behind_after_an_error(tmp_path: Path) -> None:
    with Feed(samples.tiny()[:-4096]) as fd, pytest.raises(VmaError, match="short vma extent"):
        vma.extract(fd, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_extract_never_writes_into_an_existing_folder(tmp_path: Path) -> None:
    with Feed(samples.tiny()) as fd, pytest.raises(Exists, match="exists already"):
        vma.extract(fd, tmp_path)


def test_a_config_that_would_be_named_like_a_disk_is_refused(tmp_path: Path) -> None:
    with (
        Feed(samples.build({"disk-a.raw": b"x"}, {"a": bytes(512)})) as fd,
        pytest.raises(VmaError, match=r"disk-a\.raw"),
    ):
        vma.extract(fd, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_one_config_can_be_read_without_the_data() -> None:
    with Feed(samples.tiny()[:12800]) as fd:
        assert vma.read_config(fd) == CONFIG
    with Feed(samples.tiny()) as fd, pytest.raises(NotFound, match=r"no config 'qemu-server\.fw'"):
        vma.read_config(fd, "qemu-server.fw")


def test_a_file_target_is_overwritten_in_place_also_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"\xaa" * (70144 + 1000))
    with path.open("r+b") as file, Feed(samples.tiny()) as fd:
        vma.Reader(fd).copy({"drive-scsi0": None, "drive-virtio1": FileTarget(file.fileno())})
    assert path.read_bytes() == TINY["drive-virtio1"] + b"\xaa" * 1000


@pytest.mark.parametrize(("extra", "fits"), [(-512, False), (0, True), (4 << 20, True), ((4 << 20) + 1, False)])
def test_a_target_may_be_at_most_4_mib_larger_than_its_device(extra: int, fits: bool) -> None:
    target = MemoryTarget(70144 + extra)
    with Feed(samples.tiny()) as fd:
        reader = vma.Reader(fd)
        if fits:
            reader.copy({"drive-scsi0": None, "drive-virtio1": target})
            assert bytes(target.data[:70144]) == TINY["drive-virtio1"]
        else:
            with pytest.raises(VmaError, match=r"'drive-virtio1' has .* bytes, it must have 70144"):
                reader.copy({"drive-scsi0": None, "drive-virtio1": target})
            assert target.written == 0


def test_every_device_needs_a_target_and_every_target_a_device() -> None:
    with Feed(samples.tiny()) as fd, pytest.raises(VmaError, match="no target for device 'drive-virtio1'"):
        vma.Reader(fd).copy({"drive-scsi0": None})
    with Feed(samples.tiny()) as fd, pytest.raises(VmaError, match="no device 'drive-x'"):
        vma.Reader(fd).copy({"drive-scsi0": None, "drive-virtio1": None, "drive-x": None})


def test_progress_counts_bytes_and_zeros_of_each_device() -> None:
    written: dict[str, tuple[int, int]] = {}
    data = samples.write_archive({}, TINY, progress=lambda name, done, zero: written.update({name: (done, zero)}))
    assert written == {"drive-scsi0": (131072, 131072 - 2 * BLOCK), "drive-virtio1": (70144, 70144)}
    read: dict[str, tuple[int, int]] = {}
    with Feed(data) as fd:
        vma.Reader(fd).verify(progress=lambda name, done, zero: read.update({name: (done, zero)}))
    assert read == written


def test_a_speed_limit_is_kept() -> None:
    import time

    started = time.monotonic()
    samples.write_archive({}, {"drive-scsi0": os.urandom(4 << 20)}, limit=10 << 20)
    assert 0.25 < time.monotonic() - started < 5
    Throttle(0).pay(1 << 60)  # no limit, no waiting


def test_writing_into_a_pipe_that_nobody_reads_fails() -> None:
    outlet, inlet = os.pipe()
    os.close(outlet)
    with pytest.raises(BrokenPipeError):
        vma.write(inlet, {}, [])
    os.close(inlet)


def test_the_pipe_is_blocking_again_afterwards() -> None:
    with Sink() as sink:
        with Output(sink.fd).non_blocking() as output:
            assert not os.get_blocking(sink.fd)
            output.put([memoryview(b"x" * (3 << 20))], 5)
            output.drain()
            assert output.released == 5
        assert os.get_blocking(sink.fd)


class Holey:
    """A source whose extents say what the test wants."""

    def __init__(self, size: int, extents: list[tuple[int, bool]]) -> None:
        self.size, self._extents = size, extents
        self.reads: list[tuple[int, int]] = []

    def extents(self) -> list[tuple[int, bool]]:
        return self._extents

    def begin_read(self, offset: int, buffer: memoryview) -> int:
        self.reads.append((offset, len(buffer)))
        buffer[:] = b"\x55" * len(buffer)
        return 0

    def finish_read(self, ticket: int, wait: object) -> None:
        pass


def test_clusters_inside_known_zeros_are_not_read() -> None:
    source = Holey(10 * CLUSTER, [(CLUSTER + 5, False), (6 * CLUSTER, True), (3 * CLUSTER - 5, False)])
    with Sink() as sink:
        vma.write(sink.fd, {}, [vma.Disk("drive-scsi0", source)])
    read = [n for offset, length in source.reads for n in range(offset // CLUSTER, (offset + length) // CLUSTER)]
    assert read == [0, 1, 7, 8, 9]
    disk = samples.read_archive(sink.data)["drive-scsi0"]
    assert [disk[n * CLUSTER] for n in range(10)] == [0x55] * 2 + [0] * 5 + [0x55] * 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400_000), st.booleans()), min_size=1, max_size=30), st.integers(0, 70_000))
def test_cluster_runs_cover_the_disk_once_and_never_lose_data(extents: list[tuple[int, bool]], excess: int) -> None:
    size = max(1, sum(length for length, _ in extents) - excess)
    runs = list(vma.cluster_runs(extents, size))
    assert [run[0] for run in runs] == [sum(run[1] for run in runs[:n]) for n in range(len(runs))]
    assert sum(run[1] for run in runs) == -(-size // CLUSTER)
    zero = {cluster for first, count, is_zero in runs if is_zero for cluster in range(first, first + count)}
    at = 0
    for length, is_zero in extents:
        end = min(at + length, size)
        if not is_zero and at < end:
            assert not zero & set(range(at // CLUSTER, (end - 1) // CLUSTER + 1))
        at = end


def test_a_source_that_tells_about_a_part_only_fails() -> None:
    with Sink() as sink, pytest.raises(VmaError, match="tells about 65536 of 131072 bytes"):
        vma.write(sink.fd, {}, [vma.Disk("drive-scsi0", Holey(131072, [(65536, False)]))])


def test_a_file_that_shrinks_while_it_is_read_fails(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * CLUSTER * 4)
    with path.open("r+b") as file, Sink() as sink:
        source = FileSource(file.fileno(), str(path))
        file.truncate(100)
        with pytest.raises(PveError, match=r"disk\.raw' became shorter|tells about"):
            vma.write(sink.fd, {}, [vma.Disk("drive-scsi0", source)])


def test_holes_of_a_file_are_found_without_reading(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("w+b") as file:
        file.truncate(8 << 20)
        file.seek(2 << 20)
        file.write(b"x" * (1 << 20))
        file.flush()
        extents = list(FileSource(file.fileno()).extents())
        assert sum(length for length, _ in extents) == 8 << 20
        assert sum(length for length, zero in extents if not zero) <= 2 << 20
        file.truncate(0)
        assert list(FileSource(file.fileno()).extents()) == []


def many_configs(count: int) -> dict[str, bytes]:
    return {f"config{n}": bytes(MAX_BLOB) for n in range(count)}


@pytest.mark.parametrize(
    ("configs", "names", "message"),
    [
        ({"../x": b""}, [], "contains '/'"),
        ({"a\nb": b""}, [], "control characters"),
        ({"": b""}, [], "not allowed"),
        ({"..": b""}, [], "not allowed"),
        ({"x" * 201: b""}, [], "longer than 200"),
        ({"x": bytes(65536)}, [], "'x' has 65536 bytes, at most 65535"),
        (many_configs(8), [], "too large together"),
        ({f"c{n}": b"" for n in range(257)}, [], "257 configuration files"),
        ({}, ["a", "a"], "'a' is used twice"),
        ({}, ["drive scsi0"], "contains a blank"),
        ({}, ["vmstate"], "reserved"),
        ({}, [f"d{n}" for n in range(255)], "device id 255"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(configs: dict[str, bytes], names: list[str], message: str) -> None:
    devices = {n: Device(n, name, 512) for n, name in enumerate(names, 1)}
    with pytest.raises(VmaError, match=message):
        build_header(Header(UUID, CTIME, configs, devices))


@pytest.mark.parametrize("size", [0, 513, (1 << 48) + 512])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(VmaError, match=f"cannot have {size} bytes"):
        build_header(Header(UUID, CTIME, {}, {1: Device(1, "drive-scsi0", size)}))


def test_seven_full_configs_fit() -> None:
    data = samples.write_archive(many_configs(7), {})
    with Feed(data) as fd:
        assert vma.Reader(fd).configs == many_configs(7)
    assert struct.unpack_from(">I", data, 56)[0] <= 524288


def test_254_devices_fit() -> None:
    disks = {f"drive-{n}": bytes([n % 255 + 1]) * 512 for n in range(254)}
    data = samples.write_archive({}, disks)
    assert samples.read_archive(data) == disks
    assert with_dissect(data)[1] == disks


def test_a_huge_sparse_device_takes_little_memory_and_time() -> None:
    """256 TiB of which one cluster comes: memory follows what is there, not what the header claims."""
    header = build_header(Header(UUID, CTIME, {}, {1: Device(1, "drive-scsi0", 1 << 48)}))
    data = header + samples.build_extent_header(UUID, 0, [samples.entry(1, (1 << 32) - 1, 0)])
    with (
        Feed(data) as fd,
        pytest.raises(VmaError, match=r"missing cluster 0 .*4294967295 in all"),
    ):
        vma.Reader(fd).verify()
