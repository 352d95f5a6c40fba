"""Volume names of storages that keep files in folders, such as ``100/vm-100-disk-0.qcow2`` or ``iso/debian.iso``.

Parsing refuses everything that could lead out of the storage's folders, before any path is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pvetools.storage import archives
from pvetools.system.errors import PveError

IMAGE_FORMATS = ("raw", "qcow2", "vmdk", "subvol")
_STORAGE = r"[a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]"
_VOLUME_ID = re.compile(rf"({_STORAGE}):([^\x00-\x1f\x7f\ud800-\udfff]+)")
_IMAGE = re.compile(r"((base-)?[^/\s]+\.(raw|qcow2|vmdk|subvol))")
_LINKED = re.compile(r"([1-9]\d*)/(\S+)/([1-9]\d*)/(\S+)", re.ASCII)
_OWNED = re.compile(r"([1-9]\d*)/(\S+)", re.ASCII)
_SAFE = r"[a-zA-Z0-9\-.+=_]"
ISO = re.compile(r"[^/]+\.(?:iso|img)", re.IGNORECASE)
TEMPLATE = re.compile(r"[^/]+\.(?:tar\.(gz|xz|zst|bz2)|tar)", re.IGNORECASE)
BACKUP = re.compile(r"[^/]+\.(tgz|(?:tar|vma)(?:\.(?:gz|lzo|zst|bz2))?)")
SNIPPET = re.compile(r"[^/]+")
IMPORT = re.compile(rf"{_SAFE}+\.(ova|ovf|qcow2|raw|vmdk)")
_IN_OVA = re.compile(r"([a-zA-Z0-9\-.+=_ ]+\.ova)/[a-zA-Z0-9\-.+=_ ]+\.(qcow2|raw|vmdk)")
# those of users begin with a letter, those of programs with two underscores (__migration__)
_SNAPSHOT = re.compile(r"(?:[a-zA-Z]|__)[a-zA-Z0-9_-]{0,58}", re.ASCII)
_OWNER_OF_BACKUP = re.compile(r"vzdump-(?:openvz|lxc|qemu)-(\d+)-.+", re.ASCII)


@dataclass(frozen=True, slots=True)
class VolumeName:
    """What a volume's name says. ``base`` is the image that a linked clone lies on, ``ova+FORMAT`` a disk in an OVA."""

    content: str
    name: str
    format: str = "raw"
    vmid: int | None = None
    base: str = ""
    base_vmid: int | None = None
    is_base: bool = False


def check_snapshot(name: str) -> None:
    """Refuse names of snapshots that could mean something else to the tools.

    Raises:
        PveError: a letter has to be first, then letters, digits, ``-`` and ``_``, 60 at most.
    """
    if not _SNAPSHOT.fullmatch(name):
        raise PveError(f"invalid snapshot name '{name}': letters, digits, '-' and '_' are allowed, a letter first")


def is_vmid(text: str) -> bool:
    """Whether a folder's name is the id of a guest."""
    return text.isascii() and text.isdecimal() and not text.startswith("0")


def split(volid: str) -> tuple[str, str]:
    """Storage and volume name of a volume id.

    Raises:
        PveError: malformed.
    """
    match = _VOLUME_ID.fullmatch(volid)
    if not match:
        raise PveError(f"unable to parse volume ID '{volid}', expected STORAGE:NAME")
    return match[1], match[2]


def parse_image(name: str) -> tuple[str, bool]:
    """Format of an image's file name, and whether it is the base of linked clones.

    Raises:
        PveError: this is not the file name of an image.
    """
    match = _IMAGE.fullmatch(name)
    if not match or name.startswith("."):
        raise PveError(f"unable to parse volume filename '{name}'")
    return match[3], bool(match[2])


def owners_of_backup(name: str) -> list[int]:
    """Ids of guests in the name of a backup, which may have been renamed; the first counts."""
    return [int(vmid) for vmid in re.findall(r"-([1-9][0-9]{2,8})(?=-)", name, re.ASCII)]


def _backup_owner(name: str) -> int | None:
    match = _OWNER_OF_BACKUP.fullmatch(name)
    return int(match[1]) if match else None


def _parse_image_path(name: str) -> VolumeName | None:
    if match := _LINKED.fullmatch(name):
        base_vmid, base, vmid, own = int(match[1]), match[2], int(match[3]), match[4]
        parse_image(base)
        form, is_base = parse_image(own)
        return VolumeName("images", own, form, vmid, base, base_vmid, is_base)
    if match := _OWNED.fullmatch(name):
        form, is_base = parse_image(match[2])
        return VolumeName("images", match[2], form, int(match[1]), is_base=is_base)
    return None


def _parse_import(name: str) -> VolumeName | None:
    if match := _IN_OVA.fullmatch(name):
        return VolumeName("import", name, f"ova+{match[2]}")
    if match := IMPORT.fullmatch(name):
        return VolumeName("import", name, match[1])
    return None


def _file(content: str, pattern: re.Pattern[str]) -> Callable[[str], VolumeName | None]:
    return lambda name: VolumeName(content, name) if pattern.fullmatch(name) else None


# First part of the name -> parser of the rest; None: not such a name.
_BY_FOLDER: dict[str, Callable[[str], VolumeName | None]] = {
    "iso": _file("iso", ISO),
    "vztmpl": _file("vztmpl", TEMPLATE),
    "snippets": _file("snippets", SNIPPET),
    "import": _parse_import,
    "backup": lambda name: VolumeName("backup", name, vmid=_backup_owner(name)) if BACKUP.fullmatch(name) else None,
    "rootdir": lambda name: VolumeName("rootdir", name, "subvol", int(name)) if is_vmid(name) else None,
}


def parse(name: str) -> VolumeName:
    """Parse a volume's name (the part of its id behind the storage).

    Raises:
        PveError: malformed, or it would lead out of its folder.
    """
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name) or {".", ".."} & set(name.split("/")):
        raise PveError(
            f"unable to parse directory volume name '{name}': '..', control characters and invalid UTF-8 are refused"
        )
    folder, _, rest = name.partition("/")
    found = _BY_FOLDER[folder](rest) if folder in _BY_FOLDER else _parse_image_path(name)
    if found is None:
        raise PveError(f"unable to parse directory volume name '{name}'")
    return found


def archive(name: str) -> archives.ArchiveInfo | None:
    """What a backup's file name says; None for names of no known kind of guest."""
    try:
        return archives.parse(name)
    except PveError:
        return None
