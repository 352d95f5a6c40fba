"""Collects what the list of disks is made of: from /sys, udev, lsblk, LVM, ZFS and the mounts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pvetools.storage import mounts as mounted
from pvetools.storage.disks.list import UNKNOWN, Block, Content, Facts, Osd
from pvetools.system import run

SYS_BLOCK = Path("/sys/block")
SECTOR = 512  # the unit of /sys/block/*/size, whatever the disk's own sectors are
TIMEOUT = 60
_DISK = re.compile(r"(?:[hs]|x?v)d[a-z]+|nvme\d+n\d+|cciss!c\d+d\d+", re.ASCII)
# LUNs of a storage in the network are no disks of this node
_ISCSI = re.compile(r"host[^/]*/session[^/]*")
_FABRICS = ("tcp", "rdma")
_ZPOOLS = ("zpool", "list", "-HPLv")
_OSDS = (
    "lvs", "-S", "lv_name=~^osd-", "-o", "devices,lv_name,lv_tags", "--noheadings", "--readonly", "--separator", ";",
)  # fmt: skip


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def parse_udev(text: str) -> dict[str, str]:
    """The properties of one device in the output of ``udevadm info --query all``."""
    rows = (line[3:].partition("=") for line in text.splitlines() if line.startswith("E: "))
    return {key: value for key, _, value in rows}


def _udev(folders: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Properties of several devices, by kernel names; what udev does not know is missing."""
    told = _said("udevadm", "info", "--query", "all", *map(str, folders))
    found = [parse_udev(part) for part in told.split("\n\n")]
    return {row["DEVPATH"].rpartition("/")[2]: row for row in found if "DEVPATH" in row}


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() else otherwise


def _partitions(folder: Path) -> tuple[Block, ...]:
    """Partitions of a disk in their order on it."""
    found = [entry for entry in _entries(folder) if (entry / "partition").exists()]
    found.sort(key=lambda entry: _number(_read(entry / "partition"), 0))
    return tuple(
        Block(
            part.name, _number(_read(part / "size"), 0) * SECTOR, holders=_holders(part),
            udev={"DEVNAME": "/dev/" + part.name.replace("!", "/")},
        )
        for part in found
    )  # fmt: skip


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _holders(folder: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in _entries(folder / "holders"))


def block(folder: Path, udev: Mapping[str, str]) -> Block:
    """A disk by its folder below ``/sys/block`` and its properties in udev's database."""
    return Block(
        folder.name,
        _number(_read(folder / "size"), 0) * SECTOR,
        _number(_read(folder / "queue/rotational"), -1),
        _read(folder / "device/vendor") or UNKNOWN,
        _read(folder / "device/model") or UNKNOWN,
        _holders(folder),
        udev,
        _partitions(folder),
    )


def _remote(folder: Path) -> bool:
    """Whether a disk is a LUN of a server."""
    if _ISCSI.search(os.path.realpath(folder)):
        return True
    device = folder / "device"
    controllers = [device / "transport", *device.glob("nvme*/transport")]
    return any(_read(path) in _FABRICS for path in controllers)


def blocks(names: Iterable[str] = ()) -> Iterator[Block]:
    """The disks of this node; only some of them where kernel names are given."""
    wanted = frozenset(names)
    folders = [
        folder
        for folder in _entries(SYS_BLOCK)
        if _DISK.fullmatch(folder.name) and (not wanted or folder.name in wanted) and not _remote(folder)
    ]
    known = _udev(folders) if folders else {}
    for folder in folders:
        found = block(folder, known.get(folder.name, {}))
        if found.size:  # a drive without a medium is no disk
            yield found


def parse_lsblk(text: str) -> dict[str, Content]:
    """The output of ``lsblk --json -o path,parttype,fstype``."""
    found: dict[str, Content] = {}

    def take(rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            found[row["path"]] = Content((row.get("parttype") or "").lower(), row.get("fstype") or "")
            take(row.get("children") or ())

    take(json.loads(text or "{}").get("blockdevices", ()))
    return found


def parse_osds(text: str) -> dict[str, Osd]:
    """The output of ``lvs`` with devices, names and tags of Ceph's logical volumes, parted by semicolons."""
    found: dict[str, Osd] = {}
    for line in text.splitlines():
        devices, name, tags = [*line.strip().split(";"), "", ""][:3]
        device = re.match(r"(/dev/[^(,]+)", devices)
        purpose = re.match(r"osd-([^-]+)-", name)
        if not device or not purpose:
            continue
        osd = found.setdefault(device[1], Osd())
        number = re.search(r"ceph\.osd_id=(\d+)", tags)
        if purpose[1] in ("block", "data") and number:
            osd.ids.append(int(number[1]))
            osd.bluestore = purpose[1] == "block"
            osd.encrypted = osd.encrypted or "ceph.encrypted=1" in tags
        elif purpose[1] in ("db", "wal", "journal"):
            osd.counts[purpose[1]] = osd.counts.get(purpose[1], 0) + 1
    return found


def parse_zpools(text: str) -> frozenset[str]:
    """Devices in the output of ``zpool list -HPLv``."""
    return frozenset(word for line in text.splitlines() for word in line.split() if word.startswith("/dev/"))


def parse_members(text: str) -> dict[str, frozenset[str]]:
    """Pools and their devices in the output of ``zpool list -HPLv``."""
    found: dict[str, set[str]] = {}
    pool = ""
    for line in text.splitlines():
        words = line.split()
        # a pool says at least how it is; the heading of its logs, caches or spares says nothing
        if words and not line[0].isspace() and {*words[1:]} - {"-"}:
            pool = words[0]
        found.setdefault(pool, set()).update(parse_zpools(line))
    return {name: frozenset(devices) for name, devices in found.items() if devices}


def pools() -> dict[str, frozenset[str]]:
    """Imported ZFS pools, each with the device nodes that it lies on."""
    return parse_members(_said(*_ZPOOLS))


def partition_number(part: Block) -> int:
    """Number of a partition in its table."""
    return _number(_read(Path("/sys/class/block") / part.name / "partition"), 0)


def mounts() -> dict[str, str]:
    """Device nodes that are mounted -> the first of their mount points."""
    found: dict[str, str] = {}
    for mount in mounted.every():
        source, point = mount.source, mount.point
        if source.startswith("/dev/"):
            found.setdefault(os.path.realpath(source), point)
    return found


def _said(*argv: str) -> str:
    """What a tool prints; nothing where it is not installed: then nothing of its kind is in use either."""
    if run.find(argv[0]) is None:
        return ""
    return run.run(argv, check=False, timeout=TIMEOUT).stdout


def collect(*, osds: bool = True) -> Facts:
    """All facts about the disks of this node, by tools that work at the same time; Ceph's may be left out."""
    with ThreadPoolExecutor(5) as pool:
        found = pool.submit(lambda: tuple(blocks()))
        contents = pool.submit(_said, "lsblk", "--json", "-o", "path,parttype,fstype")
        physical = pool.submit(_said, "pvs", "--noheadings", "--readonly", "-o", "pv_name")
        pools = pool.submit(_said, *_ZPOOLS)
        logical = pool.submit(_said, *_OSDS) if osds else None
    return Facts(
        found.result(),
        parse_lsblk(contents.result()),
        frozenset(physical.result().split()),
        parse_zpools(pools.result()),
        mounts(),
        parse_osds(logical.result()) if logical else {},
    )
