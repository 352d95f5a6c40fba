"""Memory of a domain, and the balloon that takes some of it back."""

from __future__ import annotations

from pvetools.guest.qemu import pci
from pvetools.guest.qemu.build import Build
from pvetools.options.qemu import QemuOptions
from pvetools.system.errors import Refused

DEFAULT_SHARES = QemuOptions.FIELDS["shares"].default
STATISTICS_PERIOD = 10  # seconds between two reports of the guest's memory use


def memory(build: Build) -> None:
    """Size and backing."""
    options = build.options
    build.domain.add("memory", options.memory.current, unit="MiB")
    if options.hugepages or not options.allow_ksm:
        backing = build.domain.add("memoryBacking")
        if options.hugepages:
            pages = backing.add("hugepages")
            if options.hugepages != "any":
                pages.add("page", size=options.hugepages, unit="MiB")
        if not options.allow_ksm:
            backing.add("nosharepages")


def balloon(build: Build) -> None:
    """The balloon device. The guest keeps all of its memory until something asks the balloon to grow.

    Raises:
        Refused: a lower limit above the guest's memory.
    """
    options = build.options
    if options.shares != DEFAULT_SHARES:
        build.warnings.append(f"shares: {options.shares} has no effect yet: memory is not shared out by balloons")
    if options.balloon == 0:
        build.devices.add("memballoon", model="none")
        return
    if options.balloon is not None and options.balloon > options.memory.current:
        raise Refused(f"balloon: {options.balloon} is more than memory: {options.memory.current}")
    if options.balloon is not None and options.balloon < options.memory.current:
        build.warnings.append(f"balloon: {options.balloon} has no effect yet: the guest keeps all of its memory")
    device = build.devices.add("memballoon", model="virtio", freePageReporting="on")
    device.add("stats", period=STATISTICS_PERIOD)
    pci.place(device, "balloon0", q35=build.q35)
