"""Machine, firmware, clock and power of a domain."""

from __future__ import annotations

import re

from pvetools.guest.qemu.build import OLD_WINDOWS, Build, refuse, yes_no
from pvetools.options.qemu import Machine

# systems that Proxmox VE gives no HPET: it costs them time and brings nothing
_WITHOUT_HPET = ("l26", "win7", "win8", "win10", "win11", "w2k8", "wvista")
_HYPERV = ("relaxed", "vapic", "vpindex", "runtime", "synic", "stimer", "reset", "ipi")
_HYPERV_OLD = ("relaxed", "vapic")
# CPU flags of Proxmox VE that are Hyper-V features for libvirt
HYPERV_FLAGS = {"hv-tlbflush": "tlbflush", "hv-evmcs": "evmcs"}


def machine_type(text: str | None) -> str:
    """QEMU's name of a machine type: without the suffixes that only Proxmox VE's QEMU knows.

    Raises:
        Refused: a machine of another architecture.
    """
    name = re.sub(r"(\+pve\d+)|(\.pxe)", "", text or "pc")
    if name.startswith("virt"):
        raise refuse("machine", text, "only pc and q35 machines can be run")
    return name


def is_q35(machine: Machine | None) -> bool:
    """Whether a machine has the PCI Express chipset."""
    return "q35" in ((machine and machine.type) or "")


def basics(build: Build) -> None:
    """Who the domain is and what happens when it ends."""
    domain, place = build.domain, build.place
    domain.add("name", place.name)
    domain.add("uuid", place.uuid)
    if build.options.name:
        domain.add("title", build.options.name)
    guest = domain.add("metadata").add("pvetools:guest", vmid=place.vmid, root=place.root)
    guest.attributes["xmlns:pvetools"] = "https://pvetools.invalid/xmlns/guest/1"
    domain.add("on_poweroff", "destroy")
    domain.add("on_reboot", "restart" if build.options.reboot else "destroy")
    domain.add("on_crash", "destroy")


def system(build: Build) -> None:
    """Architecture, machine type and firmware."""
    options = build.options
    if options.bios != "seabios":
        raise refuse("bios", options.bios, "only seabios can be run")
    if options.arch not in (None, "x86_64"):
        raise refuse("arch", options.arch, "only x86_64 guests can be run")
    machine = options.machine
    top = build.domain.add("os")
    top.add("type", "hvm", arch="x86_64", machine=machine_type(machine.type if machine else None))
    serial_console = (options.vga.type if options.vga else "").startswith("serial")
    top.add("bios", useserial="yes" if serial_console else None, rebootTimeout=1000)
    power = build.domain.add("pm")
    power.add("suspend-to-mem", enabled=yes_no(bool(machine and machine.enable_s3)))
    power.add("suspend-to-disk", enabled=yes_no(bool(machine and machine.enable_s4)))


def features(build: Build) -> None:
    """ACPI and what the hypervisor tells the guest about itself."""
    options = build.options
    top = build.domain.add("features")
    if options.acpi:
        top.add("acpi")
    top.add("apic", eoi="on" if build.kvm else None)
    top.add("pae")
    if build.kvm:
        if options.cpu and options.cpu.hidden:
            top.add("kvm").add("hidden", state="on")
        top.add("pvspinlock", state="on")
        _hyperv(build)
    top.add("vmport", state="off")


def _hyperv(build: Build) -> None:
    """The enlightenments that a Windows understands."""
    options = build.options
    vendor = options.cpu.hv_vendor_id if options.cpu else None
    flags = ((options.cpu and options.cpu.flags) or "").split(";")
    wanted = [name for flag, name in HYPERV_FLAGS.items() if f"+{flag}" in flags]
    if not build.windows or (options.cpu and options.cpu.hidden and not vendor):
        if wanted:
            raise refuse("cpu", f"flags={';'.join(flags)}", "Hyper-V flags need a Windows as ostype")
        return
    top = build.domain.one("features").add("hyperv", mode="custom")
    names = _HYPERV_OLD if options.ostype in OLD_WINDOWS else _HYPERV
    for name in (*names, *wanted):
        top.add(name, state="on")
    top.add("spinlocks", state="on", retries=8191)
    if vendor:
        top.add("vendor_id", state="on", value=vendor)


def clock(build: Build) -> None:
    """Where the guest's clock starts, and what its timers do."""
    options = build.options
    top = build.domain.add("clock")
    local = build.windows if options.localtime is None else options.localtime
    if options.startdate != "now":
        top.attributes |= {"offset": "absolute", "start": str(_epoch(options.startdate))}
    else:
        top.attributes["offset"] = "localtime" if local else "utc"
    if options.tdf or build.windows:
        top.add("timer", name="rtc", tickpolicy="catchup")
    if build.windows and build.kvm:
        top.add("timer", name="pit", tickpolicy="discard")
        if options.ostype not in OLD_WINDOWS:
            top.add("timer", name="hypervclock", present="yes")
    if options.ostype in _WITHOUT_HPET:
        top.add("timer", name="hpet", present="no")


def _epoch(date: str) -> int:
    """Seconds since 1970 of ``2006-06-17T16:01:21`` or ``2006-06-17``, read as UTC."""
    import calendar

    numbers = [int(part) for part in re.findall(r"\d+", date)]
    year, month, day, hour, minute, second = [*numbers, 0, 0, 0][:6]
    return calendar.timegm((year, month, day, hour, minute, second))


def identity(build: Build) -> None:
    """What the guest reads about its machine: SMBIOS data and generation id.

    The SMBIOS data go straight to QEMU: libvirt insists that the UUID in them is the domain's, which must be unique
    on the host, but a guest's need not be (restored twice, for example).
    """
    options = build.options
    if options.vmgenid and options.vmgenid != "0":
        build.domain.add("genid", options.vmgenid)
    if options.smbios1:
        build.arguments.extend(["-smbios", "type=1" + "".join(_smbios_parts(build))])


def _smbios_parts(build: Build) -> list[str]:
    smbios = build.options.smbios1
    if not smbios:
        return []
    values = {
        "uuid": smbios.uuid, "version": smbios.version, "serial": smbios.serial, "sku": smbios.sku,
        "manufacturer": smbios.manufacturer, "product": smbios.product, "family": smbios.family,
    }  # fmt: skip
    encoded = smbios.base64
    return [
        f",{name}={(_decoded(text) if encoded and name != 'uuid' else text).replace(',', ',,')}"
        for name, text in values.items()
        if text
    ]


def _decoded(text: str) -> str:
    import base64

    return base64.b64decode(text).decode("utf-8", "surrogateescape")
