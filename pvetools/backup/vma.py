"""Writing and reading VMA archives as forward-only streams, with bounded memory.

The writer keeps several reads under way into a ring of memory, finds zero blocks there and hands the rest of the
very same memory to the pipe of the compressor. The reader checks every claim of the archive before it writes, and
at the end that every cluster of every device came exactly once.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import time
import uuid as uuids
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvetools.backup.vma_format import (
    BLOCK,
    BLOCKS,
    CLUSTER,
    ENTRIES,
    EXTENT_DATA,
    EXTENT_HEADER,
    FIXED,
    FULL,
    SECTOR,
    Device,
    Header,
    Run,
    VmaError,
    build_extent_header,
    build_header,
    entry,
    header_size,
    parse_extent_header,
    parse_header,
    round_up,
)
from pvetools.system.errors import Exists, NotFound
from pvetools.system.streams import MIB, FileTarget, Memory, Output, Source, Target, Throttle, read_full, widen_pipe

Progress = Callable[[str, int, int], None]
"""Called with a device's name, its bytes done so far, and how many of these are zero."""

REQUESTS = 16  # reads under way
# QEMU serves larger ones from memory that it gives back to the kernel after each: a third of its time is page faults.
REQUEST = MIB // 2
RING = 16 * MIB  # two extents (one being written, one being filled) and all reads under way
SLACK = 4 * MIB  # a target may be that much larger than its device
_ZERO_BLOCK, _ZERO_CLUSTER = bytes(BLOCK), bytes(CLUSTER)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk to be archived under a device name such as ``drive-scsi0``."""

    name: str
    source: Source


# --- writing -----------------------------------------------------------------------------------------------------


def write(
    fd: int,
    configs: Mapping[str, bytes],
    disks: Sequence[Disk],
    *,
    limit: int = 0,
    requests: int = REQUESTS,
    progress: Progress | None = None,
    uuid: bytes | None = None,
    ctime: int | None = None,
) -> None:
    """Write a complete archive to a descriptor, normally the pipe of a compressor.

    Args:
        fd: where to write; not closed.
        configs: names and contents of the configuration files.
        disks: the disks, in the order of their ids; one is read after the other.
        limit: bytes a second read from the disks; 0 = unlimited.
        requests: most reads under way at a time; more than ``REQUESTS`` bring nothing.
        progress: told about every stretch that was read.
        uuid: 16 bytes; random unless given. Together with ``ctime`` it makes the output reproducible.
        ctime: seconds since the epoch; now unless given.

    Raises:
        VmaError: the contents cannot be stored, or a source did not deliver all of its data.
        PveError: a source failed.
        BrokenPipeError: the reading side of ``fd`` went away.
    """
    devices = [
        Device(dev_id, disk.name, round_up(disk.source.size, SECTOR)) for dev_id, disk in enumerate(disks, start=1)
    ]
    header = Header(
        uuid or uuids.uuid4().bytes,
        int(time.time()) if ctime is None else ctime,
        configs,
        {device.dev_id: device for device in devices},
    )
    start = build_header(header)
    with Output(fd).non_blocking() as output, Memory.borrow(RING) as memory:
        output.put([memoryview(start)], 0)
        ring = _Ring(output, memory)
        extents = ExtentWriter(output, header.uuid, memory)
        throttle = Throttle(limit)
        for device, disk in zip(devices, disks, strict=True):
            copy = _DeviceCopy(device, disk.source, ring, extents, throttle, progress)
            copy.run(max(1, min(requests, REQUESTS)))
        extents.finish()
        output.drain()


class ExtentWriter:
    """Collects clusters whose blocks lie in a buffer, and writes an extent whenever 59 are together."""

    def __init__(self, output: Output, uuid: bytes, memory: Memory) -> None:
        self.output = output
        self._uuid, self._memory = uuid, memory
        self._entries: list[int] = []
        self._spans: list[list[int]] = []
        self._mark = 0
        self._written = False

    def add(self, dev_id: int, cluster: int, mask: int, at: int, mark: int) -> None:
        """Add one cluster whose data begins at ``at`` in the buffer; ``mark`` is released when it has left."""
        self._entries.append(entry(dev_id, cluster, mask))
        self._mark = mark
        if mask == FULL:
            self._add_span(at, at + CLUSTER)
        else:
            for first, last in _set_bits(mask):
                self._add_span(at + first * BLOCK, at + last * BLOCK)
        if len(self._entries) == ENTRIES:
            self.flush()

    def _add_span(self, start: int, end: int) -> None:
        if self._spans and self._spans[-1][1] == start:
            self._spans[-1][1] = end
        else:
            self._spans.append([start, end])

    def add_zeros(self, dev_id: int, first: int, count: int) -> None:
        """Add a stretch of clusters that are zero; no data belongs to them."""
        while count:
            part = min(count, ENTRIES - len(self._entries))
            base = entry(dev_id, first, 0)
            self._entries.extend(range(base, base + part))
            first, count = first + part, count - part
            if len(self._entries) == ENTRIES:
                self.flush()

    def flush(self) -> None:
        """Write what is there as an extent, even when it is nothing."""
        blocks = sum(end - start for start, end in self._spans) // BLOCK
        head = build_extent_header(self._uuid, blocks, self._entries)
        pieces = [self._memory.view(start, end - start) for start, end in self._spans]
        self._entries, self._spans, self._written = [], [], True
        self.output.put([memoryview(head), *pieces], self._mark)

    def finish(self) -> None:
        """Write the last extent; an archive without any cluster has one that is empty."""
        if self._entries or not self._written:
            self.flush()


def _set_bits(mask: int) -> Iterator[tuple[int, int]]:
    """Stretches of set bits as (first, behind the last)."""
    first = 0
    while mask >> first:
        while not mask >> first & 1:
            first += 1
        last = first
        while mask >> last & 1:
            last += 1
        yield first, last
        first = last


def block_mask(buffer: mmap.mmap, at: int) -> int:
    """Which of the 16 blocks of the cluster at ``at`` are not zero.

    The first byte of each block answers most questions about data that is not zero; comparing slices with constant
    zeros is a ``memcmp``.
    """
    probe = buffer[at : at + CLUSTER : BLOCK]
    if 0 not in probe:
        return FULL
    if not any(probe) and buffer[at : at + CLUSTER] == _ZERO_CLUSTER:
        return 0
    mask = 0
    for block, first in enumerate(probe):
        start = at + block * BLOCK
        if first or buffer[start : start + BLOCK] != _ZERO_BLOCK:
            mask |= 1 << block
    return mask


def cluster_runs(extents: Iterable[tuple[int, bool]], size: int) -> Iterator[tuple[int, int, bool]]:
    """Turn extents in bytes into runs of whole clusters: first cluster, count, known to be zero.

    A cluster counts as zero only when one zero extent covers it. Data is passed on as soon as it is known.

    Raises:
        VmaError: the extents end before ``size``.
    """
    total = -(-size // CLUSTER)
    at = done = 0
    for length, zero in extents:
        end = min(at + length, size)
        behind = total if end == size else end // CLUSTER
        first = -(-at // CLUSTER) if zero else behind
        if first > done:
            yield done, min(first, behind) - done, False
            done = min(first, behind)
        if zero and behind > done:
            yield done, behind - done, True
            done = behind
        at = end
        if at >= size:
            return
    raise VmaError(f"the source tells about {at} of {size} bytes only")


class _Ring:
    """Memory that is handed out in order and comes back when the output has written it.

    Positions only ever grow; the place in memory is the position modulo the size.
    """

    def __init__(self, output: Output, memory: Memory) -> None:
        self.memory = memory
        self.head = 0
        self._output = output

    def allocate(self, most: int) -> tuple[int, int]:
        """Room for up to ``most`` clusters in one piece: where it begins, and for how many.

        Blocks until there is room. What is not yet queued for output, reads under way and clusters that wait for
        their extent to fill up, takes less than the ring, so room always comes.
        """
        while RING - (self.head - self._output.released) < REQUEST:
            self._output.step()
        at = self.head % RING
        count = min(most, REQUEST // CLUSTER, (RING - at) // CLUSTER)
        self.head += count * CLUSTER
        return at, count


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of clusters: zeros, or a read under way into the ring at ``at``, to be released as ``mark``."""

    cluster: int
    count: int
    ticket: int | None = None
    at: int = 0
    mark: int = 0


class _DeviceCopy:
    """Copies one disk into the extents."""

    def __init__(
        self,
        device: Device,
        source: Source,
        ring: _Ring,
        extents: ExtentWriter,
        throttle: Throttle,
        progress: Progress | None,
    ) -> None:
        self._device, self._source, self._ring, self._extents = device, source, ring, extents
        self._throttle, self._progress = throttle, progress
        self._done = self._zero = 0

    def run(self, requests: int) -> None:
        """Keep several reads under way and take their results in order."""
        pieces: deque[_Piece] = deque()
        for piece in self._begin():
            pieces.append(piece)
            if len(pieces) == requests:
                self._take(pieces.popleft())
        while pieces:
            self._take(pieces.popleft())
        if self._done != self._device.size:
            raise VmaError(f"device '{self._device.name}' delivered {self._done} of {self._device.size} bytes")

    def _begin(self) -> Iterator[_Piece]:
        """Start one read after the other."""
        for cluster, count, zero in cluster_runs(self._source.extents(), self._source.size):
            if zero:
                yield _Piece(cluster, count)
                continue
            end = cluster + count
            while cluster < end:
                piece = self._begin_read(cluster, end - cluster)
                cluster += piece.count
                yield piece

    def _begin_read(self, cluster: int, most: int) -> _Piece:
        at, count = self._ring.allocate(most)
        length = min(count * CLUSTER, self._source.size - cluster * CLUSTER)
        self._throttle.pay(length)
        if length % CLUSTER:
            self._ring.memory.map[at + length : at + count * CLUSTER] = bytes(count * CLUSTER - length)
        ticket = self._source.begin_read(cluster * CLUSTER, self._ring.memory.slice(at, length))
        return _Piece(cluster, count, ticket, at, self._ring.head)

    def _take(self, piece: _Piece) -> None:
        """Finish a piece and pass it on."""
        if piece.ticket is None:
            self._extents.add_zeros(self._device.dev_id, piece.cluster, piece.count)
            self._zero += piece.count * CLUSTER
        else:
            self._source.finish_read(piece.ticket, self._extents.output.wait)
            self._take_data(piece)
        self._done = min((piece.cluster + piece.count) * CLUSTER, self._device.size)
        if self._progress:
            self._progress(self._device.name, self._done, min(self._zero, self._done))

    def _take_data(self, piece: _Piece) -> None:
        released = piece.mark - piece.count * CLUSTER
        for index in range(piece.count):
            at = piece.at + index * CLUSTER
            released += CLUSTER
            mask = block_mask(self._ring.memory.map, at)
            self._zero += (BLOCKS - mask.bit_count()) * BLOCK
            self._extents.add(self._device.dev_id, piece.cluster + index, mask, at, released)


# --- reading -----------------------------------------------------------------------------------------------------


class _Seen:
    """Which clusters of a device came already: bits in chunks, so that memory follows what really came."""

    _CHUNK = 1024

    def __init__(self, device: Device) -> None:
        self._device = device
        self._chunks: dict[int, int] = {}
        self.count = 0

    def mark(self, first: int, count: int) -> None:
        """Note clusters.

        Raises:
            VmaError: one of them was there already.
        """
        self.count += count
        while count:
            chunk, bit = divmod(first, self._CHUNK)
            part = min(count, self._CHUNK - bit)
            bits = ((1 << part) - 1) << bit
            old = self._chunks.get(chunk, 0)
            if old & bits:
                cluster = chunk * self._CHUNK + ((old & bits) & -(old & bits)).bit_length() - 1
                raise VmaError(f"found duplicated cluster {cluster} of device '{self._device.name}'")
            self._chunks[chunk] = old | bits
            first, count = first + part, count - part

    def check_complete(self) -> None:
        """Raises VmaError naming the first cluster that never came."""
        if self.count == self._device.clusters:
            return
        chunk = 0
        while self._chunks.get(chunk, 0) == (1 << self._CHUNK) - 1:
            chunk += 1
        bits = ~self._chunks.get(chunk, 0)
        cluster = chunk * self._CHUNK + (bits & -bits).bit_length() - 1
        missing = self._device.clusters - self.count
        raise VmaError(
            f"detected missing cluster {cluster} of device '{self._device.name}' ({missing} in all): "
            "the archive is incomplete"
        )


class _Buffer:
    """Memory for the data of one extent, and the writes out of it that are under way."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._writes: list[tuple[Target, int]] = []

    def write(self, target: Target, offset: int, at: int, length: int) -> None:
        """Start writing data that lies at ``at``, in pieces aligned to their own size, so that these are few."""
        while length >= BLOCK:
            piece = min(REQUEST, at & -at or REQUEST, 1 << length.bit_length() - 1)
            self._writes.append((target, target.begin_write(offset, self.memory.slice(at, piece))))
            at, offset, length = at + piece, offset + piece, length - piece
        if length:
            self._writes.append((target, target.begin_write(offset, self.memory.slice(at, length))))

    def zero(self, target: Target, offset: int, length: int) -> None:
        """Start writing zeros, unless they are there already."""
        if not target.known_zero:
            self._writes.append((target, target.begin_zero(offset, length)))

    def settle(self) -> None:
        """Wait until the memory may be used again."""
        for target, ticket in self._writes:
            target.finish_write(ticket)
        self._writes.clear()


class Reader:
    """An archive that arrives on a descriptor; the header is read and checked at once.

    Raises:
        VmaError: not a VMA stream, or a damaged header.
    """

    def __init__(self, fd: int) -> None:
        widen_pipe(fd)
        self._fd = fd
        fixed = memoryview(bytearray(FIXED))
        got = read_full(fd, fixed)
        start = bytes(fixed[:got])
        rest = memoryview(bytearray(header_size(start) - FIXED))
        got = read_full(fd, rest)
        self.header: Header = parse_header(start + bytes(rest[:got]))

    @property
    def configs(self) -> Mapping[str, bytes]:
        return self.header.configs

    @property
    def devices(self) -> list[Device]:
        """In the order of their ids."""
        return list(self.header.devices.values())

    def copy(self, targets: Mapping[str, Target | None], *, limit: int = 0, progress: Progress | None = None) -> None:
        """Read all data, check it and write it to the targets.

        Args:
            targets: by device name, for every device; None reads and checks without writing.
            limit: bytes a second read from the stream; 0 = unlimited.
            progress: told about every extent.

        Raises:
            VmaError: anything about the archive is wrong, also a missing cluster, or a target does not fit.
            PveError: a target could not be written.
        """
        self._check_targets(targets)
        seen = {device.name: _Seen(device) for device in self.devices}
        counters = {device.name: [0, 0] for device in self.devices}
        with Memory.borrow(EXTENT_DATA) as one, Memory.borrow(EXTENT_DATA) as other:
            for runs, buffer in self._extents((_Buffer(one), _Buffer(other)), Throttle(limit)):
                for run in runs:
                    seen[run.device.name].mark(run.cluster, run.count)
                _write_runs(runs, buffer, targets)
                _report(runs, counters, progress)
        for clusters in seen.values():
            clusters.check_complete()
        for target in targets.values():
            if target is not None:
                target.complete()

    def _extents(self, buffers: Sequence[_Buffer], throttle: Throttle) -> Iterator[tuple[list[Run], _Buffer]]:
        """One extent after the other, its data in one of the buffers in turn."""
        head = memoryview(bytearray(EXTENT_HEADER))
        turn = itertools.cycle(buffers)
        while got := read_full(self._fd, head):
            blocks, runs = parse_extent_header(bytes(head[:got]), self.header)
            throttle.pay(got + blocks * BLOCK)
            buffer = next(turn)
            buffer.settle()
            if read_full(self._fd, buffer.memory.view(0, blocks * BLOCK)) < blocks * BLOCK:
                raise VmaError("short vma extent: the archive ends within the data of an extent")
            yield runs, buffer
        for buffer in buffers:
            buffer.settle()

    def verify(self, *, progress: Progress | None = None) -> None:
        """Check everything that can be checked, without writing; data blocks have no checksum of their own."""
        self.copy({device.name: None for device in self.devices}, progress=progress)

    def _check_targets(self, targets: Mapping[str, Target | None]) -> None:
        for device in self.devices:
            if device.name not in targets:
                raise VmaError(f"no target for device '{device.name}' of the archive")
            target = targets[device.name]
            if target is not None and not device.size <= target.capacity <= device.size + SLACK:
                raise VmaError(
                    f"target for device '{device.name}' has {target.capacity} bytes, "
                    f"it must have {device.size} or at most {SLACK} more"
                )
        for name in targets.keys() - {device.name for device in self.devices}:
            raise VmaError(f"the archive has no device '{name}'")


def _write_runs(runs: Iterable[Run], buffer: _Buffer, targets: Mapping[str, Target | None]) -> None:
    """Start the writes of one extent. Data lies in the buffer in the order of the runs."""
    at = 0
    for run in runs:
        target = targets[run.device.name]
        place = at
        at += run.blocks * BLOCK
        if target is None:
            continue
        for offset, length, zero in _stretches(run):
            if zero:
                buffer.zero(target, offset, length)
            else:
                buffer.write(target, offset, place, length)
                place += round_up(length, BLOCK)


def _stretches(run: Run) -> Iterator[tuple[int, int, bool]]:
    """Stretches of data and of zeros inside a run, cut at the end of the device: offset, length, is zero."""
    start = run.cluster * CLUSTER
    if run.mask in (0, FULL):
        yield start, min(run.count * CLUSTER, run.device.size - start), not run.mask
        return
    first = 0
    while first < BLOCKS and start + first * BLOCK < run.device.size:
        stored = run.mask >> first & 1
        last = first + 1
        while last < BLOCKS and run.mask >> last & 1 == stored:
            last += 1
        offset = start + first * BLOCK
        yield offset, min((last - first) * BLOCK, run.device.size - offset), not stored
        first = last


def _report(runs: Iterable[Run], counters: Mapping[str, list[int]], progress: Progress | None) -> None:
    if not progress:
        return
    touched: set[str] = set()
    for run in runs:
        device, counter = run.device, counters[run.device.name]
        end = (run.cluster + run.count) * CLUSTER
        counter[0] += run.count * CLUSTER - max(0, end - device.size)
        counter[1] += run.count * CLUSTER - run.blocks * BLOCK
        touched.add(device.name)
    for name in touched:
        progress(name, counters[name][0], min(counters[name][1], counters[name][0]))


def read_config(fd: int, name: str = "qemu-server.conf") -> bytes:
    """One configuration file out of an archive; only the header is read.

    Raises:
        NotFound: there is none of that name.
        VmaError: not a VMA stream, or a damaged header.
    """
    configs = Reader(fd).configs
    if name not in configs:
        raise NotFound(f"the archive contains no config '{name}'")
    return configs[name]


def extract(fd: int, folder: Path, *, progress: Progress | None = None) -> Header:
    """Unpack an archive into a new folder: configs by their names, devices as sparse ``disk-NAME.raw``.

    Raises:
        Exists: the folder is there already.
        VmaError: the archive is damaged, incomplete or has clashing names; the folder is removed again.
    """
    reader = Reader(fd)
    for device in reader.devices:
        if f"disk-{device.name}.raw" in reader.configs:
            raise VmaError(f"config 'disk-{device.name}.raw' has the file name of device '{device.name}'")
    try:
        folder.mkdir()
    except FileExistsError:
        raise Exists(f"folder '{folder}' exists already") from None
    made: list[Path] = []
    try:
        with contextlib.ExitStack() as stack:
            for name, data in reader.configs.items():
                made.append(folder / name)
                made[-1].write_bytes(data)
            targets: dict[str, Target | None] = {}
            for device in reader.devices:
                made.append(folder / f"disk-{device.name}.raw")
                file = stack.enter_context(made[-1].open("xb", buffering=0))
                file.truncate(device.size)
                targets[device.name] = FileTarget(file.fileno(), name=str(made[-1]), known_zero=True)
            reader.copy(targets, progress=progress)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        folder.rmdir()
        raise
    return reader.header
