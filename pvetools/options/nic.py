"""Network cards of virtual machines and their addresses for cloud-init."""

from __future__ import annotations

from typing import ClassVar

from pvetools.schema import formats
from pvetools.schema.core import PropertyString, field
from pvetools.schema.kinds import boolean, choice, integer, number, string

MODELS = (
    "e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er",
    "ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3",
)  # fmt: skip
NUMBER_RANGES = r"(?:\d+(?:-\d+)?(?:;\d+(?:-\d+)?)*)"


class Nic(PropertyString):
    """Value of ``net[n]``. ``virtio=MAC`` is short for ``model=virtio,macaddr=MAC``."""

    KEY_ALIAS: ClassVar = {model: ("model", "macaddr") for model in MODELS}

    model: str = field(choice(*MODELS), "Model of the card; virtio is the fastest.", bare=True, required=True)
    macaddr: str | None = field(formats.mac_address, "MAC address; chosen at random when missing.")
    bridge: str | None = field(formats.bridge, "Bridge on the host; without one the card gets NAT from QEMU itself.")
    tag: int | None = field(integer(1, 4094), "VLAN of the card's untagged traffic.")
    trunks: str | None = field(string(NUMBER_RANGES), "VLANs that may pass with their tags, separated by semicolons.")
    firewall: bool | None = field(boolean, "Filter the card's traffic with the guest's firewall rules.")
    link_down: bool | None = field(boolean, "Pull the plug: the card stays without link.")
    mtu: int | None = field(integer(1, 65520), "MTU offered to the guest (virtio only); 1 takes the bridge's.")
    queues: int | None = field(integer(0, 64), "Number of packet queues.")
    rate: float | None = field(number(0), "Limit in megabytes per second.")
    host_tunnel: bool | None = field(boolean, "Let the host do tunnel offloading for the guest.", name="host-tunnel")


class IpConfig(PropertyString):
    """Value of ``ipconfig[n]``: the addresses that cloud-init gives to the card of that number."""

    ip: str = field(formats.ipv4_config, "IPv4 address with prefix length, or dhcp.", default="dhcp")
    gw: str | None = field(formats.ipv4, "Default gateway for IPv4.", requires="ip")
    ip6: str = field(formats.ipv6_config, "IPv6 address with prefix length, or auto or dhcp.", default="dhcp")
    gw6: str | None = field(formats.ipv6, "Default gateway for IPv6.", requires="ip6")
