"""Partition tables: a new one, one partition over the whole disk, what a partition is for."""

from __future__ import annotations

import time
from pathlib import Path

from pvetools.storage import blockdev
from pvetools.storage.disks import checks, facts
from pvetools.system import log, run
from pvetools.system.errors import PveError

PATIENCE = 10.0  # for the kernel to read a new table
# Types of partitions.
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
LVM = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
ZFS = "6A898CC3-1DD2-11B2-99A6-080020736631"
_MSDOS = {LINUX: "83", LVM: "8e", ZFS: "bf"}


def _sfdisk(*words: str | Path, script: str = "") -> None:
    run.run(["sfdisk", "--quiet", "--lock=yes", *words], stdin=script or None, timeout=120)


def init(device: str, uuid: str = "") -> None:
    """Give an empty disk a partition table (GPT) without partitions.

    Raises:
        NotFound, Refused: it is no empty disk.
    """
    with checks.locked():
        found = checks.require_free(device)
        checks.require_disk(found)
        log.emit(f"New GPT on '{found.path}'")
        make(found.path, uuid)


def make(disk: Path, uuid: str = "", partitions: str = "") -> None:
    """Write a new GPT onto a disk that has been checked; ``partitions`` in the language of sfdisk."""
    ident = f"label-id: {uuid}\n" if uuid else ""
    script = f"label: gpt\n{ident}{partitions}"
    _sfdisk("--wipe", "always", "--wipe-partitions", "always", disk, script=script)
    checks.settle(disk)


def one_partition(device: checks.Device) -> Path:
    """One Linux partition that takes a whole checked disk; gives its device node.

    Raises:
        PveError: the kernel does not show it.
    """
    make(device.path, partitions=f"type={LINUX}\n")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for part in (part for disk in facts.blocks([device.disk.name]) for part in disk.partitions):
            path = Path(part.path)
            blockdev.wait_for(path)
            return path
        time.sleep(0.05)
    raise PveError(f"the kernel does not show the new partition of disk '{device.path}' within {PATIENCE:g} seconds")


def set_type(device: checks.Device, type_: str) -> None:
    """Note in the partition table what a partition is for; whole disks have no such note."""
    if device.partition is None:
        return
    number = facts.partition_number(device.partition)
    kind = device.disk.udev.get("ID_PART_TABLE_TYPE", "gpt")
    value = type_ if kind == "gpt" else _MSDOS[type_]
    _sfdisk("--no-reread", "--part-type", device.disk.path, str(number), value)
    checks.settle(device.path)
