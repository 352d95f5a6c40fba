"""Interfaces of containers whose addresses ``systemd-networkd`` or netplan sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pvetools.guest.lxc.setup.interfaces import Address, addresses, off_link
from pvetools.options.lxc import LxcNic

_DHCP = {(False, False): "no", (True, False): "ipv4", (False, True): "ipv6", (True, True): "yes"}


def unit_path(name: str) -> str:
    """File of an interface."""
    return f"/etc/systemd/network/{name}.network"


def unit(nic: LxcNic) -> str:
    """The ``.network`` file of an interface."""
    wanted = addresses(nic)
    methods = {version: entry.method for version, entry in wanted.items()}
    out = ["[Match]", f"Name = {nic.name}", "", "[Network]"]
    out.append(f"Description = Interface {nic.name} autoconfigured by PVE")
    out.append(f"DHCP = {_DHCP[methods.get(4) == 'dhcp', methods.get(6) == 'dhcp']}")
    out.append(f"IPv6AcceptRA = {'true' if methods.get(6) in ('auto', 'dhcp') else 'false'}")
    out += [line for _, entry in sorted(wanted.items()) for line in _static(entry)]
    for _, entry in sorted(wanted.items()):
        if off_link(entry):
            out += ["", "[Route]", f"Gateway = {entry.gateway}", "GatewayOnLink = true"]
    return "\n".join(out) + "\n"


def _static(entry: Address) -> Iterator[str]:
    if entry.method == "static":
        yield f"Address = {entry.address}"
        if entry.gateway and not off_link(entry):
            yield f"Gateway = {entry.gateway}"


NETPLAN = "/etc/netplan/60-pve.yaml"


def netplan(nics: Mapping[int, LxcNic]) -> str:
    """The netplan file for all interfaces; it overrides what files before it say about them."""
    out = ["# written at every start of the container", "network:", "  version: 2", "  ethernets:"]
    for _, nic in sorted(nics.items()):
        out += _ethernet(nic)
    return "\n".join(out) + "\n"


def _ethernet(nic: LxcNic) -> Iterator[str]:
    wanted = addresses(nic)
    methods = {version: entry.method for version, entry in wanted.items()}
    static = [entry for _, entry in sorted(wanted.items()) if entry.method == "static"]
    yield f"    {nic.name}:"
    yield f"      dhcp4: {'true' if methods.get(4) == 'dhcp' else 'false'}"
    yield f"      dhcp6: {'true' if methods.get(6) == 'dhcp' else 'false'}"
    yield f"      accept-ra: {'true' if methods.get(6) in ('auto', 'dhcp') else 'false'}"
    if static:
        yield "      addresses:"
        yield from (f"        - {entry.address}" for entry in static)
    if any(entry.gateway for entry in static):
        yield "      routes:"
        for entry in static:
            yield from _route(entry)


def _route(entry: Address) -> Iterator[str]:
    if entry.gateway:
        yield f"        - to: {'::/0' if ':' in entry.gateway else '0.0.0.0/0'}"
        yield f"          via: {entry.gateway}"
        if off_link(entry):
            yield "          on-link: true"
