"""The domain under construction, and what the functions that write its parts have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pvetools.guest.qemu.element import Element
from pvetools.guest.qemu.place import Place
from pvetools.guest.qemu.secret import Secret
from pvetools.options.qemu import QemuOptions
from pvetools.system.errors import Refused

WINDOWS = ("wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11")
OLD_WINDOWS = ("wxp", "w2k", "w2k3")


class Build(NamedTuple):
    """A domain under construction.

    Args:
        options: the guest's options; what is read counts as honoured.
        place: names and facts of the host.
        q35: whether the machine has a PCI Express chipset.
        domain: the root element.
        devices: its ``devices``.
        arguments: further words of QEMU's command line.
        warnings: what the user should know although the guest starts.
        secrets: what libvirt has to know of storage servers while the guest starts.
    """

    options: QemuOptions
    place: Place
    q35: bool
    domain: Element
    devices: Element
    arguments: list[str]
    warnings: list[str]
    secrets: list[Secret]

    @property
    def kvm(self) -> bool:
        """Whether the guest runs with hardware virtualization."""
        return self.options.kvm

    @property
    def windows(self) -> bool:
        """Whether the guest's system is a Windows."""
        return self.options.ostype in WINDOWS


Part = Callable[[Build], None]


def refuse(option: str, value: object, why: str) -> Refused:
    """The error for a value that cannot be served here."""
    return Refused(f"{option}: {value} is not supported: {why}")


def yes_no(value: bool) -> str:
    """How libvirt writes the other kind of switch."""
    return "yes" if value else "no"


def number_set(text: str) -> str:
    """``0-3;8`` as libvirt writes it: ``0-3,8``."""
    return text.replace(";", ",").replace(" ", "")
