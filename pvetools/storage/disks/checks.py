"""Whether a disk may be changed: it is one, nobody uses it, nothing lies on it, and nobody else changes disks now."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pvetools.config import guest
from pvetools.storage import blockdev, volumegroups
from pvetools.storage.disks import facts, storages
from pvetools.storage.disks import list as disks
from pvetools.system import files, lock, log, paths, run
from pvetools.system.errors import NotFound, Refused

LOCK_TIMEOUT = 50.0
_NAMED = re.compile(r"/dev/[^,\s]+")
_TABLES = frozenset({"gpt", "PMBR", "dos", "mac", "sgi", "sun", "bsd", "atari"})
_WORD = {"qemu": "VM", "lxc": "CT"}
_EXTENDED = ("5", "f", "85")  # types of partitions in a DOS table that hold others


class Device(NamedTuple):
    """A disk, or one of its partitions.

    Args:
        path: its device node.
        disk: the disk, or the one that the partition lies on.
        partition: None: it is the whole disk.
    """

    path: Path
    disk: disks.Block
    partition: disks.Block | None

    @property
    def block(self) -> disks.Block:
        return self.partition or self.disk


def locked() -> contextlib.AbstractContextManager[None]:
    """The lock that every change of disks holds, from its checks to its end."""
    return lock.locked(paths.lock_dir() / "disks.lock", LOCK_TIMEOUT, what="another change of disks")


def find(device: str, blocks: Iterable[disks.Block] | None = None) -> Device:
    """The disk or partition that a device node or a link to it stands for.

    Raises:
        NotFound: there is no such device. Refused: it is none of this node's disks.
    """
    path = Path(os.path.realpath(device))
    if not blockdev.is_device(path):
        raise NotFound(f"block device '{device}' does not exist")
    for disk in facts.blocks() if blocks is None else blocks:
        for block in (disk, *disk.partitions):
            if Path(os.path.realpath(block.path)) == path:
                return Device(path, disk, None if block is disk else block)
    raise Refused(f"'{device}' is none of the disks of this node, nor a partition of one")


def require_idle(device: Device) -> None:
    """Refuse a device that somebody uses right now.

    Raises:
        Refused: mounted, held, open, or a disk of a guest; it holds other partitions, or volumes of guests.
    """
    if device.partition and _is_extended(device.disk, device.partition):
        raise Refused(
            f"'{device.path}' is an extended partition: the logical ones lie in it, wipe these or the whole disk"
        )
    if user := _pool_of(device) or blockdev.user_of(device.path) or _guest_of(device):
        raise Refused(f"'{device.path}' is in use by {user}")
    for group in _groups_on(device):
        storages.require_unused(storages.in_group(group), below=volumegroups.starts(group))


def require_free(name: str) -> Device:
    """A device on which nothing lies and that nobody uses.

    Raises:
        NotFound. Refused: with what is on it.
    """
    known = facts.collect(osds=False)
    device = find(name, known.blocks)
    require_idle(device)
    use = disks.partition_used(device.partition, known) if device.partition else disks.used(device.disk, known)
    if use := use or ", ".join(signatures(device.path)):
        raise Refused(f"'{device.path}' is not empty: {use}; wipe it first if nothing on it is needed any more")
    return device


def signatures(path: Path) -> list[str]:
    """What lies on a device, partition tables aside; read from the device itself: udev may know nothing of it yet."""
    found = run.run(["wipefs", "--noheadings", "--output", "TYPE", path], timeout=60).stdout.split()
    return sorted({*found} - _TABLES)


def require_disk(device: Device) -> None:
    """Refuse partitions.

    Raises:
        Refused.
    """
    if device.partition:
        raise Refused(f"'{device.path}' is a partition of '{device.disk.path}', not a whole disk")


def _nodes(device: Device) -> set[str]:
    """A device with all partitions of it, as links resolve."""
    blocks: Iterable[disks.Block] = [device.block, *device.block.partitions]
    return {os.path.realpath(block.path) for block in blocks}


def _is_extended(disk: disks.Block, part: disks.Block) -> bool:
    """Whether a partition holds others; read from the table itself, as udev may know nothing of it yet."""
    words = ["sfdisk", "--part-type", disk.path, str(facts.partition_number(part))]
    return run.run(words, check=False, timeout=60).stdout.strip().lower() in _EXTENDED


def _groups_on(device: Device) -> set[str]:
    """The volume groups that lie on a device or its partitions; volumes that are not active do not make it busy."""
    if run.find("pvs") is None:
        return set()
    nodes = _nodes(device)
    return {group for node, group in volumegroups.groups_by_device().items() if group and node in nodes}


def _pool_of(device: Device) -> str:
    """The imported ZFS pool that a device or one of its partitions belongs to, in words."""
    nodes = _nodes(device)
    for pool, members in facts.pools().items():
        if nodes & members:
            return f"the ZFS pool '{pool}'"
    return ""


def _guest_of(device: Device) -> str:
    """The guest of this node that is given the device or a partition of it, in words."""
    nodes = _nodes(device)
    for vmid, kind in guest.all_guests().items():
        text = files.read_text(paths.guest_config(kind, vmid)) or ""
        if any(os.path.realpath(word) in nodes for word in _NAMED.findall(text)):
            return f"{_WORD[kind]} {vmid}, whose configuration names it"
    return ""


def settle(*devices: Path) -> None:
    """Let udev look again at devices, and wait until it has."""
    for words in (["trigger", *map(str, devices)] if devices else [], ["settle", "--timeout", "30"]):
        if words and run.find("udevadm"):
            done = run.run(["udevadm", *words], check=False, timeout=60)
            if done.code:
                log.warn(f"udevadm {words[0]}: {done.stderr.strip() or f'exit code {done.code}'}")
