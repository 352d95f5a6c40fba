"""From a guest's options to libvirt's definition of a domain: one pure function and the list of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pvetools.guest.qemu import boot, chips, cpu, disks, display, firmware, memory, nics, pci
from pvetools.guest.qemu.build import Build, Part
from pvetools.guest.qemu.element import Element
from pvetools.guest.qemu.place import Place
from pvetools.guest.qemu.secret import Secret
from pvetools.guest.qemu.watch import describe, unread, watch
from pvetools.options.qemu import QemuOptions
from pvetools.system.errors import Refused

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


class Domain(NamedTuple):
    """A finished definition, and the secrets that it names."""

    xml: str
    paused: bool
    warnings: list[str]
    secrets: Sequence[Secret] = ()


def _emulator(build: Build) -> None:
    build.devices.add("emulator", "/usr/bin/qemu-system-x86_64")


def _bridges(build: Build) -> None:
    pci.add_bridges(build.devices, q35=build.q35, single=_is_single(build))


def _is_single(build: Build) -> bool:
    return build.options.scsihw == "virtio-scsi-single" and bool(build.options.scsi)


PARTS: tuple[Part, ...] = (
    firmware.basics,
    memory.memory,
    cpu.processors,
    cpu.shares,
    firmware.system,
    firmware.features,
    firmware.clock,
    firmware.identity,
    _emulator,
    _bridges,
    display.usb,
    disks.disks,
    nics.nics,
    chips.ports,
    chips.agent,
    display.display,
    memory.balloon,
    chips.random_source,
    chips.watchdog,
    boot.boot_order,
    chips.arguments,
)


def define(options: QemuOptions, place: Place) -> Domain:
    """Define the domain of a guest.

    Raises:
        Refused: an option or a value that is not supported yet, by name; or options that do not fit together.
    """
    watched, seen = watch(options)
    if watched.kvm and not place.kvm:
        raise Refused(
            "kvm: 1 needs hardware virtualization, but this host has no usable /dev/kvm; "
            f"to run the guest without it, slowly: qm set {place.vmid} --kvm 0"
        )
    if watched.template:
        raise Refused(f"VM {place.vmid} is a template and can not be started")
    build = Build(
        watched, place, firmware.is_q35(watched.machine), Element("domain", type="kvm" if watched.kvm else "qemu"),
        Element("devices"), [], [], [],
    )  # fmt: skip
    _run_parts(build)
    paused = bool(watched.freeze)
    _check_all_read(options, seen)
    build.domain.append(build.devices)
    if build.arguments:
        _append_arguments(build)
    return Domain(build.domain.serialise(), paused, build.warnings, build.secrets)


def _run_parts(build: Build) -> None:
    """Write every part; what cannot be served is reported together."""
    errors: list[str] = []
    for part in PARTS:
        try:
            part(build)
        except Refused as error:
            errors.append(str(error))
    if errors:
        raise Refused("\n".join(errors))


def _check_all_read(options: QemuOptions, seen: set[str]) -> None:
    left = unread(options, seen)
    if left:
        raise Refused(f"not supported yet: {describe(left, options.texts())}")


def _append_arguments(build: Build) -> None:
    build.domain.attributes["xmlns:qemu"] = QEMU_NAMESPACE
    line = build.domain.add("qemu:commandline")
    for word in build.arguments:
        line.add("qemu:arg", value=word)
