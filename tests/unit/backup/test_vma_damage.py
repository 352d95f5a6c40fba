"""Every damaged variant of an archive that the format description lists, and what the reader says to it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from pvetools.backup import vma
from pvetools.backup.vma_format import VmaError
from tests.unit.backup import samples
from tests.unit.backup.samples import CONFIG, TINY, Feed, read_archive, seal_extent, seal_header, tiny

EXTENT = 0x3200
ENTRIES = EXTENT + 40
Change = Callable[[bytearray], bytearray]


def poke(at: int, data: bytes, seal: Change | None = None) -> Change:
    """Overwrite bytes, and put the checksum right again where asked."""

    def change(raw: bytearray) -> bytearray:
        raw[at : at + len(data)] = data
        return seal(raw) if seal else raw

    return change


def header(at: int, data: bytes) -> Change:
    return poke(at, data, seal_header)


def extent(at: int, data: bytes) -> Change:
    return poke(at, data, seal_extent)


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def duplicate_names(raw: bytearray) -> bytearray:
    raw[0x1040:0x1044] = raw[0x1020:0x1024]
    return seal_header(raw)


def config_name(name: bytes) -> Change:
    """Rename the config in place; the name is 17 bytes with its NUL."""
    return header(0x3003, name.ljust(16, b"x") + b"\0")


def second_config(raw: bytearray) -> bytearray:
    raw[2048:2052], raw[3072:3076] = raw[2044:2048], raw[3068:3072]
    return seal_header(raw)


def blocks(change: int) -> Change:
    return extent(EXTENT + 6, struct.pack(">H", 3 + change))


DAMAGED: dict[str, tuple[Change, str]] = {
    "magic": (poke(0, b"VMB"), "not a vma file - wrong magic number"),
    "empty file": (lambda raw: bytearray(), "not a vma file - wrong magic number"),
    "cut in the fixed header": (lambda raw: raw[:5000], "wrong vma header size"),
    "cut in the blobs": (lambda raw: raw[:12500], "wrong vma header size"),
    "header checksum": (poke(2000, b"\1"), "wrong vma header chechsum"),
    "header checksum over the filler": (poke(0x31FF, b"\1"), "wrong vma header chechsum"),
    "header size too small": (poke(56, u32(12288)), "wrong vma header size"),
    "header size huge": (poke(56, u32(0xFFFFFE00)), "wrong vma header size"),
    "header size above the cap": (poke(56, u32((64 << 20) + 512)), "wrong vma header size"),
    "header size not in sectors": (poke(56, u32(12801)), "wrong vma header size"),
    "version": (header(4, u32(2)), "wrong vma version 2"),
    "blob buffer inside the fixed part": (header(48, u32(12287)), "wrong vma header size"),
    "blob buffer past the header": (header(52, u32(513)), "wrong vma header size"),
    "blob buffer overflow": (header(52, u32(0xFFFFFFFF)), "wrong vma header size"),
    "config name not at a blob": (header(0x7FC, u32(2)), "the name of config 0 is damaged"),
    "config data not at a blob": (header(0xBFC, u32(21)), "the content of config 0 .*missing"),
    "config name without NUL": (header(0x3013, b"x"), "the name of config 0 is damaged"),
    "config name outside of the folder": (config_name(b"../../etc/passwd"), "contains '/'"),
    "config name with NUL inside": (config_name(b"qemu\0server.conf"), "control characters"),
    "config name with a control character": (config_name(b"qemu\nserver.conf"), "control characters"),
    "config name not text": (config_name(b"\xff\xfe"), "the name of config 0 is damaged"),
    "config name twice": (second_config, "config name 'qemu-server.conf' is used twice"),
    "device name outside of the folder": (header(0x30F8, b"../"), "contains '/'"),
    "device size zero": (header(0x1028, bytes(8)), "got wrong dev id 1"),
    "device name not at a blob": (header(0x1020, u32(247)), "got wrong dev id 1"),
    "device name without NUL": (header(0x3103, b"x"), "got wrong dev id 1"),
    "device size not in sectors": (header(0x1048, struct.pack(">Q", 70145)), "70145 bytes is not a multiple of 512"),
    "device size above 256 TiB": (header(0x1048, struct.pack(">Q", (1 << 48) + 512)), "not a multiple of 512 up to"),
    "device names twice": (duplicate_names, "device name 'drive-scsi0' is used twice"),
    "RAM state": (header(0x30F6, b"\x08\0vmstate\0"), "RAM state"),
    "extent checksum": (poke(ENTRIES + 8, b"\1"), "wrong vma extent header chechsum"),
    "extent magic": (extent(EXTENT, b"VMAX"), "wrong vma extent header magic number"),
    "extent uuid": (extent(EXTENT + 8, b"\0"), "wrong vma extent uuid"),
    "extent reserved": (extent(EXTENT + 4, b"\0\1"), "reserved field is 1"),
    "one block more than described": (blocks(1), "vma extent error - missing blocks"),
    "one block less than described": (blocks(-1), "vma extent error - missing blocks"),
    "more blocks than possible": (blocks(942), "945 blocks, at most 944"),
    "cluster twice": (extent(ENTRIES + 12, u32(0)), "found duplicated cluster 0 of device 'drive-scsi0'"),
    "zero cluster twice": (
        extent(ENTRIES + 32, bytes.fromhex("0000000200000000")),
        "found duplicated cluster 0 of device 'drive-virtio1'",
    ),
    "cluster missing": (extent(ENTRIES + 8, bytes(8)), "detected missing cluster 1 of device 'drive-scsi0'"),
    "zero cluster just past the end": (extent(ENTRIES + 12, u32(2)), "write beyond end of device 'drive-scsi0'"),
    "zero cluster far past the end": (extent(ENTRIES + 12, u32(0xFFFFFFFF)), "write beyond end of device"),
    "stored block past the end": (extent(ENTRIES + 24, b"\0\x04"), "write beyond end of device 'drive-virtio1'"),
    "unknown device": (extent(ENTRIES + 11, b"\x07"), "got wrong dev id 7"),
    "reserved device 255": (extent(ENTRIES + 11, b"\xff"), "got wrong dev id 255"),
    "cut inside an extent's data": (lambda raw: raw[:-1], "short vma extent"),
    "cut inside an extent header": (lambda raw: raw[: EXTENT + 100], "short vma extent"),
    "cut after the header": (lambda raw: raw[:EXTENT], "detected missing cluster 0 of device 'drive-scsi0'"),
    "garbage appended": (lambda raw: raw + b"\x5a" * 600, "wrong vma extent header magic number"),
    "little garbage appended": (lambda raw: raw + b"\x5a" * 3, "short vma extent"),
    "zeros appended": (lambda raw: raw + bytes(512), "wrong vma extent header magic number"),
}


@pytest.mark.parametrize("variant", DAMAGED)
@pytest.mark.parametrize("action", ["restore", "verify"])
def test_damage_is_reported_in_one_sentence(variant: str, action: str) -> None:
    change, message = DAMAGED[variant]
    raw = change(tiny())
    with pytest.raises(VmaError, match=message) as caught:
        if action == "restore":
            read_archive(raw)
        else:
            with Feed(raw) as fd:
                vma.Reader(fd).verify()
    assert "\n" not in str(caught.value)


def empty_extent(raw: bytearray) -> bytearray:
    return raw + samples.build_extent_header(samples.UUID, 0, [])


def holes(raw: bytearray) -> bytearray:
    """Move the last entry five places back."""
    at = ENTRIES + 3 * 8
    raw[at + 40 : at + 48] = raw[at : at + 8]
    raw[at : at + 8] = bytes(8)
    return seal_extent(raw)


def full_last_cluster(raw: bytearray) -> bytearray:
    """As old writers did: the last, short cluster stored in full, with rubbish behind the end of the device."""
    raw[ENTRIES + 24 : ENTRIES + 26] = b"\xff\xff"
    raw[EXTENT + 6 : EXTENT + 8] = struct.pack(">H", 2 + 16)
    tail = bytearray(16 * 4096)
    tail[4096:4100] = b"TAIL"
    tail[4608:] = b"\xee" * (len(tail) - 4608)
    return seal_extent(raw[:-4096] + tail)


TOLERATED: dict[str, Change] = {
    "unchanged": lambda raw: raw,
    "reserved byte of an entry": extent(ENTRIES + 2, b"\x99"),
    "holes in the table": holes,
    "extra empty extent": empty_extent,
    "dev_info[0] filled": header(0x1000, u32(246) + bytes(4) + struct.pack(">Q", 512)),
    "full mask on a short last cluster": full_last_cluster,
    "reserved header bytes": header(60, b"\xff" * 100),
}


@pytest.mark.parametrize("variant", TOLERATED)
def test_harmless_oddities_are_accepted(variant: str) -> None:
    assert read_archive(TOLERATED[variant](tiny())) == TINY


def test_half_a_config_pair_is_skipped() -> None:
    with Feed(header(0xBFC, u32(0))(tiny())) as fd:
        assert vma.Reader(fd).configs == {}


def test_an_unused_damaged_device_entry_is_ignored() -> None:
    raw = tiny()
    raw[0x1060:0x1064] = u32(3)
    raw[0x1068:0x1070] = struct.pack(">Q", 512)
    assert read_archive(seal_header(raw)) == TINY


def test_two_references_to_one_blob_are_legal() -> None:
    raw = tiny()
    raw[0xBFC:0xC00] = raw[0x7FC:0x800]
    with Feed(seal_header(raw)) as fd:
        assert vma.Reader(fd).configs == {"qemu-server.conf": b"qemu-server.conf\0"}


def test_a_changed_data_block_cannot_be_noticed() -> None:
    """The format has no checksum over data: the compressor's must catch this."""
    raw = tiny()
    raw[0x3400] ^= 1
    assert read_archive(raw)["drive-scsi0"] != TINY["drive-scsi0"]


def test_the_sample_is_the_worked_example() -> None:
    import hashlib

    assert hashlib.sha256(tiny()).hexdigest() == samples.TINY_SHA256
    assert bytes(tiny()[0x3016:0x30F6]) == CONFIG
