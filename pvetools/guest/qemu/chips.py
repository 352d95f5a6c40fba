"""Smaller devices of a domain: serial and parallel ports, guest agent, random numbers, watchdog."""

from __future__ import annotations

from pvetools.guest.qemu import pci
from pvetools.guest.qemu.build import Build, refuse
from pvetools.guest.qemu.place import serial_path
from pvetools.system.errors import Refused

AGENT_CHANNEL = "org.qemu.guest_agent.0"


def ports(build: Build) -> None:
    """Serial ports on sockets or devices of the host, and its parallel ports."""
    for index, where in sorted(build.options.serial.items()):
        port = build.devices.add("serial", type="unix" if where == "socket" else "dev")
        if where == "socket":
            port.add("source", mode="bind", path=serial_path(build.place.sockets, build.place.vmid, index))
        else:
            port.add("source", path=where)
        port.add("target", port=index)
    for index, where in sorted(build.options.parallel.items()):
        port = build.devices.add("parallel", type="dev")
        port.add("source", path=where)
        port.add("target", port=index)


def agent(build: Build) -> None:
    """The channel to the guest agent; libvirt keeps its other end.

    Raises:
        Refused: an agent on an ISA port.
    """
    agent = build.options.agent
    if not agent or not agent.enabled:
        return
    if agent.type != "virtio":
        raise refuse("agent", f"type={agent.type}", "only virtio can be used")
    controller = build.devices.add("controller", type="virtio-serial", index=0)
    pci.place(controller, "qga0", q35=build.q35)
    channel = build.devices.add("channel", type="unix")
    channel.add("target", type="virtio", name=AGENT_CHANNEL)
    channel.add("address", type="virtio-serial", controller=0, bus=0, port=1)


def random_source(build: Build) -> None:
    """The source of random numbers."""
    rng = build.options.rng0
    if not rng:
        return
    device = build.devices.add("rng", model="virtio")
    if rng.max_bytes:
        device.add("rate", bytes=rng.max_bytes, period=rng.period)
    device.add("backend", rng.source, model="random")
    pci.place(device, "rng0", q35=build.q35)


def watchdog(build: Build) -> None:
    """The watchdog device.

    Raises:
        Refused: the action ``debug``, which libvirt does not know.
    """
    found = build.options.watchdog
    if not found:
        return
    action = found.action or "reset"
    if action == "debug":
        raise refuse("watchdog", "action=debug", "choose reset, shutdown, poweroff, pause or none")
    if found.model == "ib700" and build.q35:  # libvirt 11 refuses it there, though the machine has its bus
        build.arguments.extend(["-device", "ib700,id=watchdog", "-action", f"watchdog={action}"])
        return
    device = build.devices.add("watchdog", model=found.model, action=action)
    if found.model == "i6300esb":
        pci.place(device, "watchdog", q35=build.q35)


def arguments(build: Build) -> None:
    """The user's own arguments for QEMU, split as a shell would.

    Raises:
        Refused: quotes that do not match.
    """
    text = build.options.args
    if text:
        import shlex

        try:
            build.arguments.extend(shlex.split(text))
        except ValueError as error:
            raise Refused(f"args: {text}: {error}") from None
