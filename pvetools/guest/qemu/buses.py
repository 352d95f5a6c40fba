"""Names and places of disks: ``scsi3`` in a configuration, ``sdj`` for libvirt, bus and unit for the guest."""

from __future__ import annotations

import re
from typing import NamedTuple

FAMILIES = ("ide", "sata", "scsi", "virtio")
# where the letters of each family begin; names of targets must be unique across the buses
_PREFIX = {"ide": ("hd", 0), "sata": ("sd", 0), "scsi": ("sd", 6), "virtio": ("vd", 0)}
_DISKS_PER_LSI = 7


class Unit(NamedTuple):
    """Where a disk is attached: libvirt's bus, controller, and address on it."""

    bus: str
    controller: int
    channel: int
    target: int
    unit: int


def split(key: str) -> tuple[str, int] | None:
    """``scsi3`` -> (``scsi``, 3); None when the key is no disk on a bus."""
    match = re.fullmatch(r"(ide|sata|scsi|virtio)([0-9]{1,2})", key)
    return (match[1], int(match[2])) if match else None


def _letters(number: int) -> str:
    first, second = divmod(number, 26)
    last = chr(ord("a") + second)
    return last if not first else chr(ord("a") + first - 1) + last


def target(key: str) -> str:
    """The name that libvirt knows a disk by: ``virtio0`` is ``vda``, ``scsi0`` is ``sdg``.

    Raises:
        ValueError: the key is no disk on a bus.
    """
    found = split(key)
    if found is None:
        raise ValueError(f"'{key}' is not a disk")
    prefix, first = _PREFIX[found[0]]
    return prefix + _letters(first + found[1])


def alias(key: str) -> str:
    """QEMU's id of the device of a disk."""
    return f"ua-{key}"


def unit(family: str, index: int, scsihw: str, *, q35: bool) -> Unit:
    """Where a disk is attached. IDE disks of a q35 machine are on its built-in AHCI controller."""
    if family == "virtio":
        return Unit("virtio", 0, 0, 0, 0)
    if family == "sata":
        return Unit("sata", 1 if q35 else 0, 0, 0, index)
    if family == "ide" and q35:
        return Unit("sata", 0, 0, 0, (0, 2, 1, 3)[index])
    if family == "ide":
        return Unit("ide", 0, index // 2, 0, index % 2)
    if scsihw == "virtio-scsi-single":
        return Unit("scsi", index, 0, 0, index)
    if scsihw == "virtio-scsi-pci":
        return Unit("scsi", 0, 0, 0, index)
    if scsihw in ("megasas", "pvscsi"):
        return Unit("scsi", 0, 0, index, 0)
    controller, place = divmod(index, _DISKS_PER_LSI)
    return Unit("scsi", controller, 0, 0, place)
