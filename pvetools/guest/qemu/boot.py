"""Which devices a domain boots from, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pvetools.guest.qemu import buses
from pvetools.guest.qemu.build import Build, refuse
from pvetools.guest.qemu.disks import drives, is_cdrom
from pvetools.guest.qemu.element import Element


def boot_order(build: Build) -> None:
    """Number the devices to boot from; the devices must have been added before.

    Raises:
        Refused: a device that the guest does not have, or that cannot be booted from.
    """
    boot = build.options.boot
    legacy = _legacy(build)
    order = _modern(build, boot.order) if boot and boot.order is not None else legacy
    by_alias = {_alias(device): device for device in build.devices.children}
    for number, key in enumerate(order, 1):
        device = by_alias.get(buses.alias(key))
        if device:  # it is missing only when the guest is refused for another reason
            device.add("boot", order=number)


def _alias(device: Element) -> str:
    alias = device.find("alias")
    return alias.attributes["name"] if alias else ""


def _modern(build: Build, order: list[str]) -> list[str]:
    there = {*drives(build), *(f"net{index}" for index in build.options.net)}
    for key in order:
        if key.startswith(("usb", "hostpci")):
            raise refuse("boot", f"order={';'.join(order)}", f"cannot boot from {key}")
    return [key for key in dict.fromkeys(order) if key in there]


def _legacy(build: Build) -> list[str]:
    """The order of old configurations: letters for kinds of devices, and one disk named by ``bootdisk``."""
    boot, disk = build.options.boot, build.options.bootdisk
    found = drives(build)
    kinds = {
        "c": [key for key in found if not is_cdrom(found[key]) and key == disk],
        "d": [key for key in found if is_cdrom(found[key])],
        "n": [f"net{index}" for index in sorted(build.options.net)],
        "a": [],
    }
    return [key for letter in dict.fromkeys(boot.legacy if boot else "cdn") for key in kinds[letter]]


def default_order(values: Mapping[str, Any]) -> str:
    """The ``boot`` text that a new guest gets: its first disk, first CD-ROM and first card; empty without any.

    Args:
        values: parsed options by key.
    """
    disks = [key for key in _sorted(values) if buses.split(key) and not is_cdrom(values[key])]
    discs = [key for key in _sorted(values) if buses.split(key) and is_cdrom(values[key])]
    cards = [key for key in _sorted(values) if key.startswith("net") and key[3:].isdigit()]
    chosen = [*disks[:1], *discs[:1], *cards[:1]]
    return f"order={';'.join(chosen)}" if chosen else ""


def _sorted(values: Mapping[str, Any]) -> list[str]:
    families = ("ide", "scsi", "virtio", "sata", "net")

    def rank(key: str) -> tuple[int, int]:
        family = key.rstrip("0123456789")
        return (families.index(family) if family in families else len(families), int(key[len(family) :] or 0))

    return sorted(values, key=rank)
