"""The VMA container, version 1, as bytes: header, extent headers and their checks. No input or output here.

A stream is one header (device list and configuration files) followed by extents. An extent is a 512-byte header that
describes up to 59 clusters of 64 KiB, and behind it those 4-KiB blocks of the clusters that are not zero. Numbers are
big-endian, only the length in front of a blob is little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pvetools.system.errors import PveError

BLOCK = 4096
CLUSTER = 65536
BLOCKS = CLUSTER // BLOCK
FULL = 0xFFFF
ENTRIES = 59
EXTENT_HEADER = 512
EXTENT_BLOCKS = ENTRIES * BLOCKS
EXTENT_DATA = EXTENT_BLOCKS * BLOCK
SECTOR = 512

MAGIC = b"VMA\0"
EXTENT_MAGIC = b"VMAE"
VERSION = 1
FIXED = 12288
MAX_HEADER_READ = 64 << 20
MAX_HEADER_WRITTEN = 512 << 10  # what the original writer allows itself
MAX_CONFIGS = 256
MAX_DEVICES = 254
MAX_BLOB = 65535
MAX_NAME = 200  # bytes; leaves room for the prefix and suffix of a file name

_START = struct.Struct(">4sI16sq16sIII")
_DEVICE = struct.Struct(">I4xQ16x")
_EXTENT_START = struct.Struct(">4sHH16s16s")
_ENTRIES = struct.Struct(f">{ENTRIES}Q")
_TABLE = struct.Struct(">256I")
_NAMES_AT, _DATA_AT, _DEVICES_AT, _MD5_AT, _EXTENT_MD5_AT = 2044, 3068, 4096, 32, 24
_NO_MD5 = bytes(16)


class VmaError(PveError):
    """The archive is damaged, incomplete, or cannot be written as asked."""


@dataclass(frozen=True, slots=True)
class Device:
    """One disk of an archive; ``size`` in bytes, a multiple of 512."""

    dev_id: int
    name: str
    size: int

    @property
    def clusters(self) -> int:
        return -(-self.size // CLUSTER)


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in front of the data."""

    uuid: bytes
    ctime: int
    configs: Mapping[str, bytes]
    devices: Mapping[int, Device] = field(default_factory=dict)


def entry(dev_id: int, cluster: int, mask: int) -> int:
    """A blockinfo entry as one 64-bit number."""
    return mask << 48 | dev_id << 32 | cluster


def round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def check_name(name: str, what: str) -> str:
    """Refuse a name that is unsafe as a file name.

    Raises:
        VmaError: it is empty, special, too long, or contains a slash or control characters.
    """
    if name in ("", ".", ".."):
        raise VmaError(f"{what} name '{name}' is not allowed")
    if any(char == "/" or not char.isprintable() for char in name):
        raise VmaError(f"{what} name {name!a} contains '/' or control characters")
    if len(name.encode()) > MAX_NAME:
        raise VmaError(f"{what} name '{name[:40]}...' is longer than {MAX_NAME} bytes")
    return name


# --- writing -----------------------------------------------------------------------------------------------------


def _check_contents(configs: Mapping[str, bytes], devices: Sequence[Device]) -> None:
    if len(configs) > MAX_CONFIGS:
        raise VmaError(f"{len(configs)} configuration files, at most {MAX_CONFIGS} are possible")
    for name, data in configs.items():
        check_name(name, "config")
        if len(data) > MAX_BLOB:
            raise VmaError(f"config '{name}' has {len(data)} bytes, at most {MAX_BLOB} are possible")
    seen: set[str] = set()
    for device in devices:
        check_name(device.name, "device")
        if " " in device.name:
            raise VmaError(f"device name '{device.name}' contains a blank")
        if device.name == "vmstate":
            raise VmaError("device name 'vmstate' is reserved")
        if device.name in seen:
            raise VmaError(f"device name '{device.name}' is used twice")
        if not 1 <= device.dev_id <= MAX_DEVICES:
            raise VmaError(f"device id {device.dev_id} of '{device.name}' is not in 1..{MAX_DEVICES}")
        if device.size <= 0 or device.size % SECTOR or device.clusters > 1 << 32:
            raise VmaError(
                f"device '{device.name}' cannot have {device.size} bytes: not a positive multiple of {SECTOR}"
            )
        seen.add(device.name)


def build_header(header: Header) -> bytes:
    """The bytes in front of the first extent.

    Raises:
        VmaError: too many, too large or badly named configs or devices.
    """
    devices = list(header.devices.values())
    _check_contents(header.configs, devices)
    blobs = bytearray(1)

    def blob(data: bytes) -> int:
        place = len(blobs)
        blobs.extend(struct.pack("<H", len(data)) + data)
        return place

    names, contents = [0] * 256, [0] * 256
    for index, (name, data) in enumerate(header.configs.items()):
        names[index] = blob(name.encode() + b"\0")
        contents[index] = blob(data)
    fixed = bytearray(FIXED)
    for device in devices:
        place = blob(device.name.encode() + b"\0")
        _DEVICE.pack_into(fixed, _DEVICES_AT + device.dev_id * _DEVICE.size, place, device.size)
    size = FIXED + round_up(len(blobs), SECTOR)
    if size > MAX_HEADER_WRITTEN:
        raise VmaError(
            f"configuration files are too large together: header of {size} bytes, at most {MAX_HEADER_WRITTEN}"
        )
    _START.pack_into(fixed, 0, MAGIC, VERSION, header.uuid, header.ctime, _NO_MD5, FIXED, len(blobs), size)
    _TABLE.pack_into(fixed, _NAMES_AT, *names)
    _TABLE.pack_into(fixed, _DATA_AT, *contents)
    whole = fixed + blobs + bytes(size - FIXED - len(blobs))
    whole[_MD5_AT : _MD5_AT + 16] = _md5(whole)
    return bytes(whole)


def build_extent_header(uuid: bytes, block_count: int, entries: Sequence[int]) -> bytes:
    """The 512 bytes in front of ``block_count`` blocks; at most 59 entries."""
    raw = bytearray(_EXTENT_START.pack(EXTENT_MAGIC, 0, block_count, uuid, _NO_MD5))
    raw += _ENTRIES.pack(*entries, *(0 for _ in range(ENTRIES - len(entries))))
    raw[_EXTENT_MD5_AT : _EXTENT_MD5_AT + 16] = _md5(raw)
    return bytes(raw)


def _md5(data: bytes | bytearray) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


# --- reading -----------------------------------------------------------------------------------------------------


def header_size(fixed: bytes) -> int:
    """Check the first bytes of a stream and return the full length of the header.

    Raises:
        VmaError: not a VMA stream, or an impossible length.
    """
    if not fixed.startswith(MAGIC):
        raise VmaError("not a vma file - wrong magic number")
    if len(fixed) < FIXED:
        raise VmaError(f"wrong vma header size: the file ends after {len(fixed)} bytes")
    size: int = _START.unpack_from(fixed)[7]
    if size <= FIXED or size > MAX_HEADER_READ or size % SECTOR:
        raise VmaError(f"wrong vma header size: {size} bytes")
    return size


def parse_header(raw: bytes) -> Header:
    """Check and read a complete header.

    Raises:
        VmaError: damaged, of another version, or with unsafe or contradicting contents.
    """
    size = header_size(raw[:FIXED])
    if len(raw) < size:
        raise VmaError(f"wrong vma header size: the file ends after {len(raw)} of {size} bytes")
    _, version, uuid, ctime, md5, blob_at, blob_size, _ = _START.unpack_from(raw)
    if md5 != _md5(raw[:_MD5_AT] + _NO_MD5 + raw[_MD5_AT + 16 : size]):
        raise VmaError("wrong vma header chechsum (the header is damaged)")
    if version != VERSION:
        raise VmaError(f"wrong vma version {version}, only {VERSION} can be read")
    if blob_at < FIXED or blob_at + blob_size > size:
        raise VmaError("wrong vma header size: the blob buffer lies outside of the header")
    blobs = _walk_blobs(raw[blob_at : blob_at + blob_size])
    return Header(uuid, ctime, _parse_configs(raw, blobs), _parse_devices(raw, blobs))


def _walk_blobs(buffer: bytes) -> dict[int, bytes]:
    """All blobs by their offset; a pointer must hit one of these exactly."""
    blobs: dict[int, bytes] = {}
    at = 1
    while at + 2 <= len(buffer):
        end = at + 2 + int.from_bytes(buffer[at : at + 2], "little")
        if end > len(buffer):
            break
        blobs[at] = buffer[at + 2 : end]
        at = end
    return blobs


def _text(blob: bytes | None) -> str | None:
    """A NUL-terminated name, or None when the blob is none."""
    if not blob or blob[-1]:
        return None
    try:
        return blob[:-1].decode()
    except UnicodeDecodeError:
        return None


def _parse_configs(raw: bytes, blobs: Mapping[int, bytes]) -> dict[str, bytes]:
    configs: dict[str, bytes] = {}
    pointers = zip(_TABLE.unpack_from(raw, _NAMES_AT), _TABLE.unpack_from(raw, _DATA_AT), strict=True)
    for index, (name_at, data_at) in enumerate(pointers):
        if not name_at or not data_at:  # half a pair is skipped, as the original reader does
            continue
        name, data = _text(blobs.get(name_at)), blobs.get(data_at)
        if name is None:
            raise VmaError(f"the name of config {index} is damaged")
        if data is None:
            raise VmaError(f"the content of config {index} ('{name}') is missing")
        if check_name(name, "config") in configs:
            raise VmaError(f"config name '{name}' is used twice")
        configs[name] = data
    return configs


def _parse_devices(raw: bytes, blobs: Mapping[int, bytes]) -> dict[int, Device]:
    devices: dict[int, Device] = {}
    for dev_id in range(1, 256):
        name_at, size = _DEVICE.unpack_from(raw, _DEVICES_AT + dev_id * _DEVICE.size)
        name = _text(blobs.get(name_at))
        if not size or name is None:  # does not count as a device; its clusters, if any, have a wrong id
            continue
        check_name(name, "device")
        if name == "vmstate":
            raise VmaError("the archive contains a RAM state (device 'vmstate'), which cannot be restored")
        if any(name == other.name for other in devices.values()):
            raise VmaError(f"device name '{name}' is used twice")
        device = Device(dev_id, name, size)
        if size % SECTOR or device.clusters > 1 << 32:
            raise VmaError(
                f"device '{name}' has a wrong size: {size} bytes is not a multiple of {SECTOR} up to 256 TiB"
            )
        devices[dev_id] = device
    return devices


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive clusters of one device with the same mask; several only when all are zero or all are full."""

    device: Device
    cluster: int
    count: int
    mask: int

    @property
    def blocks(self) -> int:
        return self.count * self.mask.bit_count()


def parse_extent_header(raw: bytes, header: Header) -> tuple[int, list[Run]]:
    """Check one extent header; returns its block count and its clusters in order, neighbours put together.

    Raises:
        VmaError: damaged, of another archive, or describing what the devices do not have.
    """
    if len(raw) < EXTENT_HEADER:
        raise VmaError(f"short vma extent: {len(raw)} bytes are left for a header of {EXTENT_HEADER}")
    magic, reserved, block_count, uuid, md5 = _EXTENT_START.unpack_from(raw)
    if magic != EXTENT_MAGIC:
        raise VmaError("wrong vma extent header magic number (foreign data behind the last extent?)")
    if md5 != _md5(raw[:_EXTENT_MD5_AT] + _NO_MD5 + raw[_EXTENT_MD5_AT + 16 :]):
        raise VmaError("wrong vma extent header chechsum (the extent header is damaged)")
    if reserved:
        raise VmaError(f"wrong vma extent header: reserved field is {reserved} instead of 0")
    if uuid != header.uuid:
        raise VmaError("wrong vma extent uuid (the extent belongs to another archive)")
    if block_count > EXTENT_BLOCKS:
        raise VmaError(f"wrong vma extent header: {block_count} blocks, at most {EXTENT_BLOCKS} are possible")
    runs = _parse_entries(_ENTRIES.unpack_from(raw, EXTENT_HEADER - _ENTRIES.size), header.devices)
    described = sum(run.blocks for run in runs)
    if described != block_count:
        raise VmaError(f"vma extent error - missing blocks: {described} are described, {block_count} are stored")
    return block_count, runs


def _parse_entries(entries: Iterable[int], devices: Mapping[int, Device]) -> list[Run]:
    runs: list[Run] = []
    first = previous = -1
    count = 0
    for raw in entries:
        number = raw & 0xFFFF00FFFFFFFFFF  # the reserved byte is ignored
        if number == previous + 1 and count and number & 0xFFFFFFFF and number >> 48 in (0, FULL):
            count += 1
            previous = number
            continue
        if count:
            runs.append(_check_run(first, count, devices))
        count = 1 if number >> 32 & 0xFF else 0
        first = previous = number
    if count:
        runs.append(_check_run(first, count, devices))
    return runs


def _check_run(first: int, count: int, devices: Mapping[int, Device]) -> Run:
    """Hold a run against its device."""
    mask, dev_id, cluster = first >> 48, first >> 32 & 0xFF, first & 0xFFFFFFFF
    device = devices.get(dev_id)
    if device is None:
        raise VmaError(f"got wrong dev id {dev_id}")
    last = cluster + count - 1
    if last >= device.clusters:
        raise VmaError(f"write beyond end of device '{device.name}': cluster {last}, but it has {device.clusters}")
    # Old writers stored the last cluster in full; what lies behind the end is thrown away.
    if mask != FULL and mask >> -(-min(CLUSTER, device.size - last * CLUSTER) // BLOCK):
        raise VmaError(f"write beyond end of device '{device.name}': stored block behind its last byte")
    return Run(device, cluster, count, mask)
