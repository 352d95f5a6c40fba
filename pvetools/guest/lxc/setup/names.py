"""Texts of small files: hosts, resolv.conf, inittab, shadow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pvetools.options.lxc import LxcNic
from pvetools.system import files
from pvetools.system.errors import PveError

LOCAL_HOSTS = ("127.0.0.1 localhost.localnet localhost", "::1 localhost.localnet localhost")


class Dns(NamedTuple):
    """Search domains and name servers."""

    search: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


def host_dns() -> Dns:
    """Those of the host; a resolver that listens on the host itself is of no use to a container."""
    from pathlib import Path

    found = parse_resolv(files.read_text(Path("/etc/resolv.conf")) or "")
    if found.servers and all(server.startswith(("127.", "::1")) for server in found.servers):
        behind = files.read_text(Path("/run/systemd/resolve/resolv.conf"))
        return parse_resolv(behind) if behind else found
    return found


def parse_resolv(text: str) -> Dns:
    """Read a ``resolv.conf``."""
    search: tuple[str, ...] = ()
    servers: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in ("search", "domain"):
            search = tuple(words[1:])
        elif len(words) > 1 and words[0] == "nameserver":
            servers.append(words[1])
    return Dns(search, tuple(servers))


def resolv(dns: Dns) -> str:
    """Our part of ``/etc/resolv.conf``."""
    search = f"search {' '.join(dns.search)}\n" if dns.search else ""
    return search + "".join(f"nameserver {server}\n" for server in dns.servers)


def split_name(hostname: str, dns: Dns) -> tuple[str, str]:
    """Host name and domain: the domain of a full name, else the first search domain."""
    name, _, domain = hostname.partition(".")
    return name, domain or (dns.search[0] if dns.search and hostname else "")


def hosts(existing: str, hostname: str, nics: Mapping[int, LxcNic], dns: Dns) -> str:
    """Our part of ``/etc/hosts``; ``existing`` is the container's own part, whose entries are not repeated."""
    name, domain = split_name(hostname, dns)
    known = {line.split()[0] for line in existing.splitlines() if line.strip() and not line.startswith("#")}
    out = [line for line in LOCAL_HOSTS if line.split()[0] not in known]
    full = f"{name}.{domain} {name}" if domain else name or "localhost"
    out.append(f"{primary_address(nics) or '127.0.1.1'} {full}")
    return "".join(line + "\n" for line in out)


def primary_address(nics: Mapping[int, LxcNic]) -> str:
    """The first static address, IPv4 before IPv6."""
    texts = [nic.ip for _, nic in sorted(nics.items())] + [nic.ip6 for _, nic in sorted(nics.items())]
    return next((text.partition("/")[0] for text in texts if text and "/" in text), "")


def inittab(text: str, terminals: int, getty: str = "--noclear") -> str:
    """A sysvinit table with gettys on exactly the container's terminals; halt on SIGPWR, as LXC asks for it."""
    ids = {str(number) for number in range(1, terminals + 1)}
    kept = [line for line in text.rstrip("\n").split("\n") if not _replaced(line, ids)]
    while kept and not kept[-1].strip():
        kept.pop()
    kept.append("p0::powerfail:/sbin/init 0")
    for number in range(1, terminals + 1):
        levels = "2345" if number == 1 else "23"
        kept.append(f"{number}:{levels}:respawn:/sbin/getty {getty} 38400 tty{number}")
    return "\n".join(kept) + "\n"


def _replaced(line: str, ids: set[str]) -> bool:
    match = re.match(r"\s*([^#:\s][^:]*):[^:]*:([^:]*):(.*)", line)
    if not match:
        return False
    power = match[2] in ("powerfail", "powerwait", "powerfailnow", "powerokwait")
    return power or match[1] in ids or re.search(r"getty\b.*\btty\d+\b", match[3]) is not None


def shadow(text: str, password_hash: str, day: int) -> str:
    """A shadow file with another password of root, changed on that day (since 1970).

    Raises:
        PveError: there is no root in it.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines):
        parts = line.split(":")
        if parts[0] == "root" and len(parts) > 2:
            lines[number] = ":".join(["root", password_hash, str(day), *parts[3:]])
            return "".join(line + "\n" for line in lines)
    raise PveError("can't set the password: the container's /etc/shadow has no entry for root")


def root_home(passwd: str) -> str:
    """Home directory of root."""
    for line in passwd.splitlines():
        parts = line.split(":")
        if parts[0] == "root" and len(parts) > 5 and parts[5].startswith("/"):
            return parts[5]
    return "/root"


def version(text: str) -> tuple[int, ...]:
    """Leading numbers of a version: ``12.5`` -> (12, 5); empty when there is none (``trixie/sid``)."""
    match = re.match(r"\d+(?:\.\d+)*", text.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def os_release(text: str) -> dict[str, str]:
    """Keys and values of an ``os-release`` file."""
    pairs: Sequence[tuple[str, str, str]] = [line.partition("=") for line in text.splitlines() if "=" in line]
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}
