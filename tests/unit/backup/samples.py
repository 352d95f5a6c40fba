"""Small archives for the tests, laid out by hand so that reader and writer check each other."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pvetools.backup import vma
from pvetools.backup.vma_format import BLOCK, CLUSTER, ENTRIES, Device, Header, build_extent_header, build_header, entry
from pvetools.system.streams import FileSource, Target

UUID = bytes(range(16, 32))
CTIME = 1700000000
CONFIG = b"""boot: order=scsi0
memory: 512
name: tiny
scsi0: local:100/vm-100-disk-0.qcow2,size=128K
virtio1: local:100/vm-100-disk-1.raw,size=70144
#qmdump#map:scsi0:drive-scsi0:local:qcow2:
#qmdump#map:virtio1:drive-virtio1:local:raw:
"""
TINY_SHA256 = "69f4ff10fee99abde2202ef0b42b037d03c7fb58adb940abc8ef8261fe675cf8"


def image(size: int, *patches: tuple[int, bytes]) -> bytes:
    """A disk of zeros with some data in it."""
    data = bytearray(size)
    for offset, piece in patches:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


TINY = {
    "drive-scsi0": image(131072, (0, b"BOOT"), (20480, b"abc")),
    "drive-virtio1": image(70144, (69632, b"TAIL")),
}


def noisy(size: int, seed: int) -> bytes:
    """A disk with random, half-filled and empty clusters."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        kind = rng.randrange(4)
        if kind == 0:
            out += bytes(CLUSTER)
        elif kind == 1:
            out += rng.randbytes(CLUSTER)
        else:
            out += b"".join(rng.choice((bytes(BLOCK), rng.randbytes(BLOCK))) for _ in range(16))
    return bytes(out[:size])


Order = Callable[[list[tuple[int, int]]], list[tuple[int, int]]]


def straight(clusters: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return clusters


def interleaved(clusters: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(clusters, key=lambda pair: (pair[1], pair[0]))


def shuffled(clusters: list[tuple[int, int]]) -> list[tuple[int, int]]:
    random.Random(7).shuffle(clusters)
    return clusters


def build(
    configs: dict[str, bytes],
    disks: dict[str, bytes],
    *,
    order: Order = straight,
    entries: int = ENTRIES,
    uuid: bytes = UUID,
) -> bytes:
    """An archive with its clusters in any order, made without the streaming writer."""
    names = list(disks)
    devices = {i: Device(i, name, len(disks[name])) for i, name in enumerate(names, 1)}
    out = io.BytesIO(build_header(Header(uuid, CTIME, configs, devices)))
    out.seek(0, 2)
    clusters = order([(dev, n) for dev, device in devices.items() for n in range(device.clusters)])
    for at in range(0, len(clusters), entries) if clusters else [0]:
        table, blocks = [], []
        for dev, n in clusters[at : at + entries]:
            data = disks[names[dev - 1]][n * CLUSTER : (n + 1) * CLUSTER]
            mask = 0
            for j in range(0, -(-len(data) // BLOCK)):
                block = data[j * BLOCK : (j + 1) * BLOCK].ljust(BLOCK, b"\0")
                if any(block):
                    mask |= 1 << j
                    blocks.append(block)
            table.append(entry(dev, n, mask))
        out.write(build_extent_header(uuid, len(blocks), table) + b"".join(blocks))
    return out.getvalue()


def tiny() -> bytearray:
    return bytearray(build({"qemu-server.conf": CONFIG}, TINY))


def seal_header(raw: bytearray) -> bytearray:
    """Put the right MD5 into a header that was changed."""
    size = struct.unpack_from(">I", raw, 56)[0]
    raw[32:48] = bytes(16)
    raw[32:48] = hashlib.md5(raw[:size]).digest()
    return raw


def seal_extent(raw: bytearray, at: int = 0x3200) -> bytearray:
    raw[at + 24 : at + 40] = bytes(16)
    raw[at + 24 : at + 40] = hashlib.md5(raw[at : at + 512]).digest()
    return raw


def stored(data: bytes | bytearray, folder: Path) -> Path:
    path = folder / "sample.vma"
    path.write_bytes(data)
    return path


class Feed:
    """Bytes that arrive through a pipe, in pieces, as from a decompressor."""

    def __init__(self, data: bytes | bytearray, piece: int = 1 << 20) -> None:
        self._data, self._piece = bytes(data), piece

    def __enter__(self) -> int:
        self.fd, self._inlet = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self.fd

    def _run(self) -> None:
        try:
            for at in range(0, len(self._data), self._piece):
                view = memoryview(self._data)[at : at + self._piece]
                while view:
                    view = view[os.write(self._inlet, view) :]
        except BrokenPipeError:
            pass
        finally:
            os.close(self._inlet)

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
        self._thread.join(30)


class Sink:
    """Collects what is written into a pipe."""

    def __enter__(self) -> Sink:
        self._outlet, self.fd = os.pipe()
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        while part := os.read(self._outlet, 1 << 20):
            self._parts.append(part)

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
        self._thread.join(30)
        os.close(self._outlet)

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)


def write_archive(configs: dict[str, bytes], disks: dict[str, bytes], **options: object) -> bytes:
    """What the streaming writer makes of disks that lie in files."""
    with Sink() as sink:
        files = []
        for data in disks.values():
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
            file.write(data)
            file.flush()
            files.append(file)
        sources = [vma.Disk(name, FileSource(file.fileno(), name)) for name, file in zip(disks, files, strict=True)]
        try:
            vma.write(sink.fd, configs, sources, **options)  # type: ignore[arg-type]
        finally:
            for file in files:
                file.close()
    return sink.data


class MemoryTarget:
    """A target that remembers what it was told."""

    def __init__(self, size: int, *, fill: int = 0xAA, known_zero: bool = False) -> None:
        self.data = bytearray(size) if known_zero else bytearray([fill]) * size
        self.capacity, self.known_zero = size, known_zero
        self.written = self.zeroed = 0
        self.completed = False

    def begin_write(self, offset: int, data: memoryview) -> int:
        assert offset + len(data) <= self.capacity
        self.data[offset : offset + len(data)] = data
        self.written += len(data)
        return 0

    def begin_zero(self, offset: int, length: int) -> int:
        assert offset + length <= self.capacity
        self.data[offset : offset + length] = bytes(length)
        self.zeroed += length
        return 0

    def finish_write(self, ticket: int) -> None:
        assert ticket == 0

    def complete(self) -> None:
        self.completed = True


def read_archive(data: bytes | bytearray, *, piece: int = 1 << 20, known_zero: bool = False) -> dict[str, bytes]:
    """Devices of an archive, read through a pipe."""
    with Feed(data, piece) as fd:
        reader = vma.Reader(fd)
        made = {device.name: MemoryTarget(device.size, known_zero=known_zero) for device in reader.devices}
        targets: dict[str, Target | None] = dict(made)
        reader.copy(targets)
    assert all(target.completed for target in made.values())
    return {name: bytes(target.data) for name, target in made.items()}


def orders() -> Sequence[Order]:
    return straight, interleaved, shuffled
