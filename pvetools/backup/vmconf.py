"""The configuration of a virtual machine inside its archive: what is stored, and how a restore rewrites it.

Behind the lines of the config file stands one line for each archived disk: ``#qmdump#map:KEY:DEVICE:STORAGE:FORMAT:``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pvetools.options.nic import Nic
from pvetools.options.qemu import Smbios
from pvetools.system.errors import PveError

NAME = "qemu-server.conf"
FIREWALL_NAME = "qemu-server.fw"

_DRIVE = re.compile(r"((?:ide|sata|scsi|virtio)[0-9]+|efidisk0|tpmstate0):\s*(.+?)\s*")
_OFF = re.compile(r"backup=(?:0|no|off|false)", re.IGNORECASE)
_OF_GUEST = re.compile(r"(?:file=|volume=)?[a-zA-Z][\w.-]*:(?:[^,]*/)?(?:vm|base)-\d+-", re.ASCII)
_NOT_STORED = re.compile(r"(?:lock|parent|unused[0-9]+):|#(?:vzdump|qmdump)#")
_MAP = re.compile(r"#qmdump#map:([^\s:]+):([^\s:]+):([^\s:]*):([^\s:]*):\s*")


class MapLine(NamedTuple):
    """Where a disk of the archive belongs: config key, device name, its former storage and format (maybe empty)."""

    key: str
    device: str
    storage: str
    format: str

    def __str__(self) -> str:
        return f"#qmdump#map:{self.key}:{self.device}:{self.storage}:{self.format}:"


def device_name(key: str) -> str:
    """Device name under which the disk at a config key is archived."""
    return f"drive-{key}-backup" if key.startswith("tpmstate") else f"drive-{key}"


def stored(text: str, maps: Iterable[MapLine]) -> str:
    """What goes into the archive: the current part of the config file, verbatim but for what makes no sense later."""
    kept: list[str] = []
    for line in text.splitlines():
        if line.startswith("["):
            break
        if not _NOT_STORED.match(line):
            kept.append(line)
    while kept and not kept[-1]:
        kept.pop()
    return "".join(f"{line}\n" for line in [*kept, *map(str, maps)])


def maps(text: str) -> list[MapLine]:
    """The disks that an archive's configuration tells about.

    Raises:
        PveError: two lines for one key or one device.
    """
    found = [MapLine(*match.groups()) for line in text.splitlines() if (match := _MAP.fullmatch(line))]
    for what, names in (("disk", [row.key for row in found]), ("device", [row.device for row in found])):
        for name in names:
            if names.count(name) > 1:
                raise PveError(f"the archive's configuration maps {what} '{name}' twice")
    return found


class Rewrite(NamedTuple):
    """How a configuration is adapted: new volume ids by key, and whether MACs and UUIDs are replaced.

    ``new_mac`` gives an unused MAC address.
    """

    volumes: Mapping[str, str]
    unique: bool
    new_mac: Callable[[], str]


def rewritten(text: str, how: Rewrite) -> str:
    """The configuration of the restored guest."""
    lines = [_rewritten_line(line, how) for line in text.splitlines() if not _NOT_STORED.match(line)]
    return "".join(f"{line}\n" for line in lines)


def _rewritten_line(line: str, how: Rewrite) -> str:
    drive = _DRIVE.fullmatch(line)
    if drive:
        return _rewritten_drive(line, drive[1], drive[2], how.volumes)
    key, colon, value = line.partition(":")
    value = value.strip()
    if key == "vmgenid" and colon and value != "0":
        return f"vmgenid: {uuid.uuid4()}"
    if how.unique and re.fullmatch(r"net[0-9]+", key):
        return f"{key}: {Nic.parse(value).replaced(macaddr=how.new_mac()).format()}"
    if how.unique and key == "smbios1":
        return f"smbios1: {Smbios.parse(value).replaced(uuid=str(uuid.uuid4())).format()}"
    return line


def _rewritten_drive(line: str, key: str, value: str, volumes: Mapping[str, str]) -> str:
    parts = value.split(",")
    names = [part.partition("=")[0] for part in parts]
    if any(_OFF.fullmatch(part) for part in parts):
        return f"#{line}"
    if key not in volumes:
        return f"#{line}" if _OF_GUEST.match(value) and "media=cdrom" not in parts else line
    kept = [part for part, name in zip(parts, names, strict=True) if name not in ("file", "volume", "format")]
    if kept and "=" not in kept[0]:
        del kept[0]
    return f"{key}: {','.join([volumes[key], *kept])}"


def cloudinit_keys(text: str) -> list[str]:
    """Keys whose drive is a cloud-init image: these are made anew instead of being restored."""
    found: list[str] = []
    for line in text.splitlines():
        drive = _DRIVE.fullmatch(line)
        if drive and re.match(r"(?:file=)?[^,]*:(?:cloudinit|(?:[0-9]+/)?vm-[0-9]+-cloudinit)(?:[.,]|$)", drive[2]):
            found.append(drive[1])
    return found
