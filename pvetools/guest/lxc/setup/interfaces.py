"""``/etc/network/interfaces``: the parts of our interfaces are rewritten, everything else is kept."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import NamedTuple

from pvetools.guest.lxc.setup import sections
from pvetools.options.lxc import LxcNic

LOOPBACK = "auto lo\niface lo inet loopback\niface lo inet6 loopback\n"
# options of a stanza that we write ourselves
OURS = re.compile(r"\s+(address|netmask|gateway|broadcast|network)\s")
FAMILIES = {4: "inet", 6: "inet6"}


class Address(NamedTuple):
    """How one interface gets its address of one family: a method, and for static ones address and gateway."""

    method: str
    address: str = ""
    gateway: str = ""


def addresses(nic: LxcNic) -> dict[int, Address]:
    """Methods by family, as ``ifupdown`` names them; an interface without any is brought up as ``manual``."""
    found: dict[int, Address] = {}
    for version, value, gateway in ((4, nic.ip, nic.gw), (6, nic.ip6, nic.gw6)):
        if value and "/" in value:
            found[version] = Address("static", value, gateway or "")
        elif value in ("dhcp", "auto", "manual"):
            found[version] = Address(value)
    static = {version: entry for version, entry in found.items() if entry.method != "manual"}
    return static or ({4: Address("manual")} if 4 in found or not found else {6: Address("manual")})


def off_link(address: Address) -> bool:
    """Whether a gateway lies outside of the address's network, so that it needs a route of its own."""
    if not address.gateway:
        return False
    gateway = ipaddress.ip_address(address.gateway)
    return not gateway.is_link_local and gateway not in ipaddress.ip_interface(address.address).network


def stanza(name: str, version: int, address: Address, kept: str, *, cidr: bool) -> str:
    """One ``iface`` part; ``kept`` are the container's own lines in it."""
    out = [f"iface {name} {FAMILIES[version]} {address.method}"]
    routes = ""
    if address.method == "static":
        out += _static(version, address, cidr=cidr)
        if off_link(address):
            routes = sections.wrapped(_routes(name, address.gateway))
        elif address.gateway:
            out.append(f"\tgateway {address.gateway}")
    return "\n".join(out) + "\n" + routes + kept


def _static(version: int, address: Address, *, cidr: bool) -> list[str]:
    if cidr:
        return [f"\taddress {address.address}"]
    host, _, bits = address.address.partition("/")
    mask = bits if version == 6 else str(ipaddress.ip_interface(address.address).netmask)
    return [f"\taddress {host}", f"\tnetmask {mask}"]


def _routes(name: str, gateway: str) -> str:
    return (
        f"\tpost-up ip route add {gateway} dev {name}\n"
        f"\tpost-up ip route add default via {gateway} dev {name}\n"
        f"\tpre-down ip route del default via {gateway} dev {name}\n"
        f"\tpre-down ip route del {gateway} dev {name}\n"
    )


def _own_lines(body: str, routes: str) -> str:
    """The container's own lines of a stanza, without those that we write (``routes``: once written unmarked)."""
    lines = [line for line in body.splitlines() if line.strip() and not OURS.match(line)]
    return "".join(line + "\n" for line in lines).replace(routes, "", 1)


def _split(text: str, names: set[str]) -> tuple[list[tuple[str, str, str]], dict[tuple[str, str], str]]:
    """Stanzas in order as (interface, family, text), interface empty for others' text; own lines of ours."""
    parts: list[tuple[str, str, str]] = []
    kept: dict[tuple[str, str], str] = {}
    current: tuple[str, str] | None = None
    for line in sections.outside(text).splitlines():
        head = re.match(r"iface\s+(\S+)\s+(inet6?)\s", line + " ")
        if head and head[1] in names:
            current = head[1], head[2]
            parts.append((*current, ""))
            kept.setdefault(current, "")
        elif current and (line[:1].isspace() or not line):
            kept[current] += line + "\n"
        elif re.match(r"(auto|allow-\S+)\s", line) and set(line.split()[1:]) & names:
            current = None
        else:
            current = None
            if not parts or parts[-1][0]:
                parts.append(("", "", ""))
            parts[-1] = ("", "", parts[-1][2] + line + "\n")
    return parts, kept


def updated(text: str, nics: Mapping[int, LxcNic], *, cidr: bool) -> str:
    """The file with our interfaces as the configuration wants them.

    Args:
        text: the file so far.
        nics: the container's interfaces.
        cidr: write ``address A/N`` instead of a net mask (Debian 10 and later).
    """
    wanted = {nic.name: addresses(nic) for _, nic in sorted(nics.items())}
    parts, kept = _split(text, set(wanted))
    out, done = "", set()
    for name, _, other in parts:
        if not name:
            out += other
        elif name not in done:
            done.add(name)
            out += _paragraph(name, wanted[name], kept, cidr=cidr)
    for name in wanted:
        if name not in done:
            out = _separated(out) + _paragraph(name, wanted[name], kept, cidr=cidr)
    if not re.search(r"^iface\s+lo\s", out, re.MULTILINE):
        out = LOOPBACK + "\n" + out
    return out


def _separated(text: str) -> str:
    return text if not text or text.endswith("\n\n") else text + "\n"


def _paragraph(name: str, wanted: Mapping[int, Address], kept: Mapping[tuple[str, str], str], *, cidr: bool) -> str:
    out = f"auto {name}\n"
    for version, address in sorted(wanted.items()):
        own = _own_lines(kept.get((name, FAMILIES[version]), ""), _routes(name, address.gateway))
        out += stanza(name, version, address, own, cidr=cidr) + "\n"
    return out
