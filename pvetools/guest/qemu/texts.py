"""Values of options as they stand in a file, read without the option tables: fast enough for lists of many guests."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pvetools.system.units import MIB, format_size, parse_size

_VOLUME_KEY = re.compile(r"(?:ide|sata|scsi|virtio|unused)[0-9]{1,3}|efidisk0|tpmstate0|vmstate|cdrom")
_SIZE = re.compile(r"(?:^|,)size=[^,]*")
_CLOUD_INIT = re.compile(r"vm-[0-9]+-cloudinit\b")
_SIZE_OF = re.compile(r"(?:^|,)size=([0-9.]+[KMGT]?)(?:,|$)")
_ORDER = re.compile(r"(?:^|,)order=([^,]*)")
_DISK = re.compile(r"(?:ide|sata|scsi|virtio)[0-9]{1,2}")


def is_volume_key(key: str) -> bool:
    """Whether an option holds a volume."""
    return _VOLUME_KEY.fullmatch(key) is not None


def volume_in(text: str) -> str:
    """The volume or path that a drive's text names."""
    for part in text.split(","):
        key, separator, value = part.partition("=")
        if not separator:
            return part
        if key in ("file", "volume"):
            return value
    return ""


def volumes(section: Mapping[str, str]) -> dict[str, str]:
    """Volumes of a section by key, without CD-ROMs and host paths; a cloud-init drive belongs to the guest, though."""
    found: dict[str, str] = {}
    for key, text in section.items():
        if is_volume_key(key):
            volid = volume_in(text)
            disc = "media=cdrom" in text.split(",") and not _CLOUD_INIT.search(volid)
            if ":" in volid and not volid.startswith("/") and not disc:
                found[key] = volid
    return found


def with_size(text: str, size: int) -> str:
    """A drive's text with another ``size=``, which keeps its place or comes last."""
    word = f"size={format_size(size)}"
    if _SIZE.search(text):
        return _SIZE.sub(lambda match: ("," if match[0].startswith(",") else "") + word, text, count=1)
    return f"{text},{word}"


def memory(section: Mapping[str, str]) -> int:
    """Bytes of memory of a guest."""
    text = section.get("memory", "512").split(",")[0].removeprefix("current=")
    return (int(text) if text.isdecimal() else 512) * MIB


def processors(section: Mapping[str, str]) -> int:
    """Number of processors of a guest."""
    sockets = section.get("sockets") or section.get("smp") or "1"
    now = section.get("vcpus") or "0"
    total = int(sockets) * int(section.get("cores") or "1") if sockets.isdecimal() else 1
    return int(now) if now.isdecimal() and int(now) else total


def boot_disk_size(section: Mapping[str, str]) -> int:
    """Bytes of the disk that a guest boots from, as its file says; 0 when there is none."""
    text = section.get(_boot_disk(section), "")
    match = _SIZE_OF.search(text)
    try:
        return parse_size(match[1]) if match else 0
    except ValueError:
        return 0


def _boot_disk(section: Mapping[str, str]) -> str:
    match = _ORDER.search(section.get("boot", ""))
    if not match:
        return section.get("bootdisk", "")
    for key in match[1].split(";"):
        if _DISK.fullmatch(key) and key in section and "media=cdrom" not in section[key]:
            return key
    return ""
