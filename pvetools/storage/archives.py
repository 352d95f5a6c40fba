"""Names of backup archives and of the files that lie beside them.

A name carries everything that restore and retention know without opening the file: kind of guest, id,
start time (local time of the node, no zone), container format and compression.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime

from pvetools.system.errors import PveError

_ARCHIVE = re.compile(
    r"vzdump-(?P<kind>lxc|openvz|qemu)-.+\.(?:(?P<tgz>tgz)|(?P<format>tar|vma)(?:\.(?P<compression>gz|lzo|zst|bz2))?)"
)
_STANDARD = re.compile(
    r"(?P<stem>vzdump-(?:lxc|openvz|qemu)-(?P<vmid>[1-9][0-9]{2,8})-"
    r"(?P<stamp>[0-9]{4}_[0-9]{2}_[0-9]{2}-[0-9]{2}_[0-9]{2}_[0-9]{2}))\.(?:tgz|(?:tar|vma)(?:\.(?:gz|lzo|zst|bz2))?)"
)
_STAMP = "%Y_%m_%d-%H_%M_%S"
FORMATS = {"qemu": "vma", "lxc": "tar"}


@dataclass(frozen=True, slots=True)
class ArchiveInfo:
    """What an archive's file name says. ``vmid`` and ``ctime`` (seconds) are known for standard names only."""

    filename: str
    kind: str
    format: str
    compression: str = ""
    vmid: int | None = None
    ctime: int | None = None

    @property
    def standard(self) -> bool:
        """Whether the name follows the full scheme; only such archives take part in retention."""
        return self.vmid is not None and self.ctime is not None

    @property
    def log(self) -> str | None:
        """Name of the log beside the archive; renamed archives have none."""
        match = _STANDARD.fullmatch(self.filename)
        return match["stem"] + ".log" if match and self.standard else None

    @property
    def notes(self) -> str | None:
        return self.filename + ".notes" if self.standard else None

    @property
    def protected(self) -> str:
        """Name of the empty file whose existence protects the archive."""
        return self.filename + ".protected"


def parse(name: str) -> ArchiveInfo:
    """Read a file name, a path or the part of a volume id behind the storage.

    Raises:
        PveError: this is not the name of a backup archive.
    """
    filename = name.rpartition("/")[2]
    match = _ARCHIVE.fullmatch(filename)
    if not match:
        raise PveError(f"couldn't determine archive info from '{name}'")
    compression = "gz" if match["tgz"] else match["compression"] or ""
    standard = _STANDARD.fullmatch(filename)
    ctime = _parse_stamp(standard["stamp"]) if standard else None
    vmid = int(standard["vmid"]) if standard and ctime is not None else None
    return ArchiveInfo(filename, match["kind"], match["format"] or "tar", compression, vmid, ctime)


def _parse_stamp(stamp: str) -> int | None:
    """Seconds since the epoch; None for a time that no calendar has (such a name is not a standard one)."""
    try:
        return int(datetime.strptime(stamp, _STAMP).timestamp())  # of two that a clock shows twice, the first
    except (ValueError, OverflowError):
        return None


def archive_name(kind: str, vmid: int, started: float, compression: str = "") -> str:
    """File name of a new archive; ``started`` in seconds since the epoch, ``compression`` is an extension or empty."""
    extension = FORMATS[kind] + (f".{compression}" if compression else "")
    return f"{stem(kind, vmid, started)}.{extension}"


def stem(kind: str, vmid: int, started: float) -> str:
    """Archive name without its extension: also the base of the log and of the temporary folder."""
    return f"vzdump-{kind}-{vmid}-{time.strftime(_STAMP, time.localtime(started))}"


def temporary_name(filename: str) -> str:
    """Name under which an archive grows until it is complete: the last extension gives way to ``.dat``."""
    return filename.rpartition(".")[0] + ".dat"


def companions(filename: str) -> tuple[str, ...]:
    """Files that go when the archive is removed (the protection mark forbids that in the first place)."""
    info = parse(filename)
    return tuple(name for name in (info.log, info.notes) if name)
