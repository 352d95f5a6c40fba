"""Headers of disk images, read in this process: starting ``qemu-img`` for each image of a list takes far too long."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import IO, NamedTuple

from pvetools.system import files
from pvetools.system.errors import PveError, Refused

_QCOW2 = struct.Struct(">4sIQIIQ")  # magic, version, offset and length of the backing name, cluster bits, size
_L1 = struct.Struct(">4s36xQ")  # magic, offset of the first table
_VMDK = struct.Struct("<4sIIQQQQ")  # magic, version, flags, capacity, grain, offset and length of the descriptor
_COWD = struct.Struct("<4sIII")  # magic, version, flags, capacity
_EXTENT = re.compile(rb"^\s*(?:RW|RDONLY|NOACCESS)\s+(\d{1,15})\s+\w+", re.MULTILINE)
# As QEMU searches: anywhere, with any two characters before the name.
_PARENT = re.compile(rb'parentFileNameHint..([^"\0]*)', re.DOTALL)
_EXTERNAL_DATA = 1 << 2
_MAX_TEXT = 64 << 10
SECTOR = 512


_MAGIC = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"COWD": "vmdk"}


class ImageInfo(NamedTuple):
    """What a header says: virtual size in bytes, name of the backing file, whether other files hold the data."""

    size: int
    backing: str = ""
    external: bool = False


def format_of(path: Path) -> str:
    """The format that an image of unknown origin begins with; raw for everything that is none of the others."""
    with files.open_regular(path) as file:
        head = file.read(1024)
    return "vmdk" if b"# Disk DescriptorFile" in head else _MAGIC.get(head[:4], "raw")


def inspect(path: Path, form: str) -> ImageInfo:
    """Read an image's header. The format comes from the caller and is never guessed from the content.

    Raises:
        PveError: the header is damaged. FileNotFoundError.
    """
    with files.open_regular(path) as file:
        if form == "qcow2":
            return _qcow2(file, path)
        if form == "vmdk":
            return _vmdk(file, path)
        return ImageInfo(file.seek(0, 2))


def is_laid_out(path: Path) -> bool:
    """Whether a new qcow2 image has a place for its first bytes, as one with preallocated metadata has for all.

    Raises:
        PveError: it is no file. FileNotFoundError.
    """
    with files.open_regular(path) as file:
        head = file.read(_L1.size)
        if len(head) < _L1.size or head[:4] != b"QFI\xfb":
            return False
        return any(_read_at(file, _L1.unpack(head)[1], 8))


def _damaged(path: Path, form: str, why: str) -> PveError:
    return PveError(f"'{path}' is not a valid {form} image: {why}")


def _read_at(file: IO[bytes], offset: int, length: int) -> bytes:
    """Bytes at a place that the header names; nothing when there is no such place."""
    if offset >= file.seek(0, 2):
        return b""
    file.seek(offset)
    return file.read(length)


def _qcow2(file: IO[bytes], path: Path) -> ImageInfo:
    head = file.read(80)
    if len(head) < 72 or head[:4] != b"QFI\xfb":
        raise _damaged(path, "qcow2", "it does not begin with a qcow2 header")
    _, version, offset, length, _, size = _QCOW2.unpack_from(head)
    if version not in (2, 3):
        raise _damaged(path, "qcow2", f"unknown version {version}")
    if length > 1023:
        raise _damaged(path, "qcow2", f"name of the backing file has {length} bytes")
    features = struct.unpack_from(">Q", head, 72)[0] if version == 3 and len(head) >= 80 else 0
    backing = _read_at(file, offset, length) if offset and length else b""
    if b"\0" in backing:
        raise _damaged(path, "qcow2", "the name of its backing file is none")
    return ImageInfo(size, backing.decode("utf-8", "surrogateescape"), bool(features & _EXTERNAL_DATA))


def _vmdk(file: IO[bytes], path: Path) -> ImageInfo:
    head = file.read(_MAX_TEXT)
    near = _parent(head[SECTOR : 21 * SECTOR])  # where QEMU looks for a parent, whatever the header says
    if head[:4] == b"KDMV" and len(head) >= _VMDK.size:
        _, _, _, capacity, _, offset, length = _VMDK.unpack_from(head)
        if not capacity:  # QEMU would take the extents of the descriptor instead: any file of the host
            raise _damaged(path, "vmdk", "its header gives no size")
        text = _read_at(file, offset * SECTOR, min(length * SECTOR, _MAX_TEXT)) if offset else b""
        return ImageInfo(capacity * SECTOR, _parent(text) or near, len(_EXTENT.findall(text)) > 1)
    if head[:4] == b"COWD" and len(head) >= _COWD.size:
        return ImageInfo(_COWD.unpack_from(head)[3] * SECTOR, near)
    sizes = _EXTENT.findall(head) if b"# Disk DescriptorFile" in head[:1024] else []
    if not sizes:
        raise _damaged(path, "vmdk", "it begins neither with a sparse header nor with a descriptor")
    return ImageInfo(sum(int(size) for size in sizes) * SECTOR, _parent(head), external=True)


def _parent(text: bytes) -> str:
    match = _PARENT.search(text)
    return match[1].decode("utf-8", "surrogateescape") if match else ""


def check_foreign(path: Path, form: str) -> ImageInfo:
    """Read the header of an image of unknown origin and refuse what would read other files of the host.

    Raises:
        Refused: it names a backing or data file. PveError: damaged.
    """
    info = inspect(path, form)
    if info.backing:
        raise Refused(f"image '{path}' has the backing file '{info.backing}': only images without one can be imported")
    if info.external:
        raise Refused(f"image '{path}' keeps its data in other files: only images in one file can be imported")
    return info
