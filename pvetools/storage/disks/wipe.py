"""Wiping a disk: what lies on it cannot be found any more."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pvetools.storage import blockdev
from pvetools.storage.disks import checks, facts, table
from pvetools.storage.disks import list as disks
from pvetools.system import log, run
from pvetools.system.errors import PveError
from pvetools.system.units import MIB

START = 200 * MIB  # boot loaders, labels and tables of contents lie in it


def wipe(device: str) -> None:
    """Wipe a disk with all its partitions, or one partition.

    Raises:
        NotFound. Refused: it is in use, or none of this node's disks.
    """
    with checks.locked():
        found = checks.find(device)
        checks.require_idle(found)
        erase(found)


def erase(device: checks.Device) -> None:
    """Wipe a device that has been checked: signatures of all partitions and its own, then its first part."""
    log.emit(f"Wiping '{device.path}'")
    parts = [Path(part.path) for part in reversed(device.block.partitions)]
    run.run(["wipefs", "--all", "--quiet", *parts, device.path], timeout=120)
    blockdev.zero(device.path, 0, min(START, device.block.size))
    table.set_type(device, table.LINUX)
    if device.partition is None and device.disk.partitions:
        _forget_partitions(device.path)
    checks.settle(device.path)


def _forget_partitions(disk: Path) -> None:
    """Let the kernel read the partition table that is no more; wipefs has asked it already, mostly."""
    run.run(["blockdev", "--rereadpt", disk], check=False, timeout=60)


def empty_again(path: Path) -> None:
    """Undo what was written to an empty disk or partition, and to nothing else."""
    try:
        checks.settle()
        device = checks.find(str(path))
        checks.require_idle(device)
        erase(device)
    except PveError as error:
        log.warn(f"'{path}' is not empty any more: {error}")


def clean(nodes: Iterable[str]) -> None:
    """Wipe what a removed storage lay on: partitions, or the whole disk where nothing else is on it.

    What cannot be wiped is told; the rest is wiped nevertheless.
    """
    checks.settle()
    for name in dict.fromkeys(nodes):
        try:
            known = facts.collect(osds=False)
            device = _widest(checks.find(name, known.blocks), known)
            checks.require_idle(device)
            erase(device)
        except PveError as error:
            log.warn(f"can't wipe '{name}': {error}")


def _widest(device: checks.Device, known: disks.Facts) -> checks.Device:
    """The whole disk in place of its only partition, or of the one that ZFS made together with a reserved one."""
    others = [part for part in device.disk.partitions if part is not device.partition]
    reserved = all(disks.partition_used(part, known) == "ZFS reserved" for part in others)
    return checks.Device(Path(device.disk.path), device.disk, None) if reserved else device
