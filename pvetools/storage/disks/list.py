"""The list of a node's disks: a pure function over what the kernel, udev and the storage tools say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pvetools.storage.disks import smart

UNKNOWN = "unknown"
SOLID = ("ssd", "nvme")
# Types of partitions, and what these are used for.
_PARTITION_TYPES = {
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI",
    "6a945a3b-1dd2-11b2-99a6-080020736631": "ZFS reserved",
}
_LVM_TYPES = frozenset({"e6d6d379-f507-44c2-a23c-238f2a3df928"})
_ZFS_TYPES = frozenset({"6a898cc3-1dd2-11b2-99a6-080020736631", "516e7cba-6ecf-11d6-8ff8-00022d09712b"})
# Ceph before it lay on logical volumes: types of partitions, and where data that is no BlueStore was mounted.
_CEPH_TYPES = {
    "45b0969e-9b03-4f30-b4c6-b4b80ceff106": "journal",
    "30cd0809-c2b2-499c-8879-2d6b78529876": "db",
    "5ce17fce-4087-4169-b7ff-056cc58473f9": "wal",
    "cafecafe-9b03-4f30-b4c6-b4b80ceff106": "block",
}
_OSD_MOUNT = re.compile(r"/var/lib/ceph/osd/ceph-(\d+)", re.ASCII)
_BY_ID = ("/dev/disk/by-id/ata", "/dev/disk/by-id/scsi", "/dev/disk/by-id/nvme")


@dataclass(frozen=True, slots=True)
class Block:
    """A disk or a partition, as the kernel and udev know it.

    Args:
        name: the kernel's name, such as ``sda``, ``nvme0n1p1``, ``cciss!c0d0``.
        size: in bytes.
        rotational: 1, 0, or -1 when nobody knows.
        vendor: from the kernel.
        model: from the kernel; udev's comes first.
        holders: kernel names of devices that lie on it.
        udev: its properties in udev's database.
        partitions: of a disk.
    """

    name: str
    size: int = 0
    rotational: int = -1
    vendor: str = UNKNOWN
    model: str = UNKNOWN
    holders: tuple[str, ...] = ()
    udev: Mapping[str, str] = field(default_factory=dict)
    partitions: tuple[Block, ...] = ()

    @property
    def path(self) -> str:
        """Device node."""
        return self.udev.get("DEVNAME") or "/dev/" + self.name.replace("!", "/")

    @property
    def by_id(self) -> str:
        """A name that survives reboots; empty when udev gave it none."""
        links = self.udev.get("DEVLINKS", "").split()
        return next((link for link in links if link.startswith(_BY_ID) and "/nvme-eui" not in link), "")


class Content(NamedTuple):
    """What lies on a device: the type of the partition, and of the file system or whatever else is there."""

    parttype: str = ""
    fstype: str = ""


@dataclass(slots=True)
class Osd:
    """What of Ceph lies on a device."""

    ids: list[int] = field(default_factory=list)
    bluestore: bool = False
    encrypted: bool = False
    counts: dict[str, int] = field(default_factory=dict)  # db, wal, journal


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the list is made of; all but the blocks are keyed by device node."""

    blocks: tuple[Block, ...] = ()
    contents: Mapping[str, Content] = field(default_factory=dict)
    lvm: frozenset[str] = frozenset()
    zfs: frozenset[str] = frozenset()
    mounts: Mapping[str, str] = field(default_factory=dict)  # device node -> mount point
    osds: Mapping[str, Osd] = field(default_factory=dict)


Health = Callable[[Block, str], "smart.Report | None"]  # a disk and its type -> what it says, if it says anything


def kind(block: Block) -> tuple[str, int]:
    """Type of a disk (``hdd``, ``ssd``, ``nvme``, ``usb``, ``unknown``) and its turns a minute (-1: nobody knows)."""
    rpm = block.udev.get("ID_ATA_ROTATION_RATE_RPM", "")
    if block.rotational == 0:
        return ("nvme" if block.name.startswith("nvme") else "ssd"), 0
    if block.rotational == 1 and rpm.isdecimal():
        return "hdd", int(rpm)
    if block.rotational == 1 and block.udev.get("ID_BUS") == "usb":
        return "usb", 0
    return UNKNOWN, int(rpm) if rpm.isdecimal() else -1


def _used(block: Block, facts: Facts) -> str:
    """What a disk itself or a partition is used for; empty when nothing is known."""
    content = facts.contents.get(block.path, Content())
    if block.path in facts.lvm or content.parttype in _LVM_TYPES:
        return "LVM"
    if block.path in facts.zfs or content.parttype in _ZFS_TYPES:
        return "ZFS"
    mounted = "mounted" if block.path in facts.mounts else ""
    return _PARTITION_TYPES.get(content.parttype) or content.fstype or mounted


def partition_used(block: Block, facts: Facts) -> str:
    """What a partition is used for; empty: it is free."""
    return _used(block, facts) or ("Device Mapper" if block.holders else "")


def used(block: Block, facts: Facts, *, partitions: bool = False) -> str:
    """What a disk is used for; empty: it is free.

    Args:
        block: the disk.
        facts: of all disks.
        partitions: they are listed on their own, so the disk just says that it has some.
    """
    found = _used(block, facts)
    if block.partitions and partitions:
        return "partitions"
    if not found:
        found = next((use for part in block.partitions if (use := partition_used(part, facts))), "")
    if block.partitions and not found:
        return "partitions"
    return found or ("Device Mapper" if block.holders else "")


def _osd(device: str, facts: Facts) -> Osd | None:
    """What of Ceph lies on a device: in its logical volumes, or, as it once was, in a partition itself."""
    if device in facts.osds:
        return facts.osds[device]
    mounted = _OSD_MOUNT.fullmatch(facts.mounts.get(device, ""))
    use = _CEPH_TYPES.get(facts.contents.get(device, Content()).parttype, "")
    if not mounted and not use:
        return None
    counts = {use: 1} if use not in ("", "block") else {}
    return Osd([int(mounted[1])] if mounted else [], bluestore=use == "block", counts=counts)


def _ceph(devices: Iterable[str], facts: Facts) -> dict[str, Any]:
    """What of Ceph lies on some devices."""
    found = [osd for device in devices if (osd := _osd(device, facts))]
    ids = [number for osd in found for number in osd.ids]
    data: dict[str, Any] = {"osdid": ids[-1] if ids else -1, "osdid-list": ids or None}
    for osd in found:
        for name, count in osd.counts.items():
            key = {"journal": "journals"}.get(name, name)
            data[key] = data.get(key, 0) + count
    if ids:
        data["bluestore"] = int(any(osd.bluestore for osd in found))
        data["osdencrypted"] = int(any(osd.encrypted for osd in found))
    return data


def _optional(block: Block, facts: Facts, use: str) -> dict[str, Any]:
    data: dict[str, Any] = {"mounted": 1} if block.path in facts.mounts else {}
    return data | ({"used": use} if use else {})


def _disk(block: Block, facts: Facts, health: Health, use: str) -> dict[str, Any]:
    type_, rpm = kind(block)
    report = health(block, type_) or smart.Report()
    left = report.left if type_ in SOLID else None
    data: dict[str, Any] = {
        "devpath": block.path,
        "size": block.size,
        "type": type_,
        "rpm": rpm,
        "vendor": block.vendor,
        "model": block.udev.get("ID_MODEL") or block.model,
        "serial": block.udev.get("ID_SERIAL_SHORT") or UNKNOWN,
        "wwn": block.udev.get("ID_WWN") or UNKNOWN,
        "gpt": _gpt(block),
        "health": report.health or smart.UNKNOWN,
        "wearout": "N/A" if left is None else left,
        **_ceph([block.path, *(part.path for part in block.partitions)], facts),
        **_optional(block, facts, use),
    }
    return data | ({"by_id_link": block.by_id} if block.by_id else {})


def _gpt(disk: Block) -> int:
    return int(disk.udev.get("ID_PART_TABLE_TYPE") == "gpt")


def _partition(block: Block, disk: Block, facts: Facts) -> dict[str, Any]:
    return {
        "devpath": block.path,
        "parent": disk.path,
        "size": block.size,
        "type": "partition",
        "gpt": _gpt(disk),
        **_ceph([block.path], facts),
        **_optional(block, facts, partition_used(block, facts)),
    }


def rows(facts: Facts, health: Health, *, partitions: bool = False) -> dict[str, dict[str, Any]]:
    """All disks by name, each followed by its partitions where these are wanted."""
    found: dict[str, dict[str, Any]] = {}
    for block in facts.blocks:
        use = used(block, facts, partitions=partitions)
        found[block.name.replace("!", "/")] = _disk(block, facts, health, use)
        for part in block.partitions if partitions else ():
            found[part.name.replace("!", "/")] = _partition(part, block, facts)
    return found


# What ``type`` of the list leaves over.
FILTERS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "": lambda row: True,
    "unused": lambda row: not row.get("used"),
    "journal_disks": lambda row: (
        row["osdid"] < 0
        and (row.get("used", "") in ("", "LVM") or (row.get("used") == "partitions" and bool(row["gpt"])))
    ),
}
