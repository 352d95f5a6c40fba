"""Network cards of a domain."""

from __future__ import annotations

from pvetools.guest.qemu import pci
from pvetools.guest.qemu.build import Build, refuse
from pvetools.network.taps import tap_name
from pvetools.options.nic import Nic
from pvetools.system.errors import Refused

# model -> the name that libvirt knows it by, where that is another
_DEVICES = {"e1000-82540em": "e1000"}
_RECEIVE_QUEUE = 1024


def nics(build: Build) -> None:
    """All cards."""
    for index, nic in sorted(build.options.net.items()):
        _nic(build, index, nic)


def _nic(build: Build, index: int, nic: Nic) -> None:
    """One card: on a bridge, or behind QEMU's own NAT when no bridge is named.

    Raises:
        Refused: no MAC address, or an MTU for a model that cannot be told one.
    """
    if nic.model == "ne2k_isa":
        raise refuse(f"net{index}", nic.model, "libvirt can't attach ISA cards, take ne2k_pci")
    if not nic.macaddr:
        raise Refused(f"net{index}: macaddr is missing")
    card = build.devices.add("interface", type="bridge" if nic.bridge else "user")
    card.add("mac", address=nic.macaddr.lower())
    if nic.bridge:
        card.add("source", bridge=nic.bridge)
        card.add("target", dev=tap_name(build.place.tap_prefix, index))
    card.add("model", type=_DEVICES.get(nic.model, nic.model))
    if nic.link_down:
        card.add("link", state="down")
    if nic.model == "virtio":
        card.add("driver", queues=nic.queues or None, rx_queue_size=_RECEIVE_QUEUE if nic.bridge else None)
    mtu = _mtu(build, index, nic)
    if mtu:
        card.add("mtu", size=mtu)
    card.add("alias", name=f"ua-net{index}")
    pci.place(card, f"net{index}", q35=build.q35)


def _mtu(build: Build, index: int, nic: Nic) -> int | None:
    """MTU that the guest is told: its own, or the bridge's for 1 and for none."""
    bridge = build.place.bridges.get(nic.bridge or "")
    if nic.mtu is None:
        return None
    if nic.model != "virtio":
        raise refuse(f"net{index}", f"mtu={nic.mtu}", "only the model virtio can be told an MTU")
    if nic.mtu == 1:
        return bridge
    if bridge and nic.mtu > bridge:
        raise Refused(f"net{index}: mtu {nic.mtu} is larger than that of bridge '{nic.bridge}' ({bridge})")
    return nic.mtu
