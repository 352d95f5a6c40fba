"""Bridges of the host, read from sysfs: fast, and without netlink."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pvetools.system.errors import Refused

_LINKS = Path("/sys/class/net")


def bridges() -> list[str]:
    """Names of the host's bridges."""
    return sorted(link.name for link in _LINKS.iterdir() if (link / "bridge").is_dir())


def require(name: str, option: str) -> int:
    """MTU of a bridge.

    Raises:
        Refused: there is no such bridge; naming the option that wants it.
    """
    if not (_LINKS / name / "bridge").is_dir():
        kind = "is not a bridge" if (_LINKS / name).exists() else "does not exist"
        there = ", ".join(bridges()) or "none"
        raise Refused(f"{option}: bridge '{name}' {kind} (bridges of this host: {there})")
    return int((_LINKS / name / "mtu").read_text())


def counters(links: Iterable[str]) -> tuple[int, int]:
    """Bytes that guests received and sent through their host-side links; links that are gone count nothing."""
    into = out = 0
    for name in links:
        try:
            out += int((_LINKS / name / "statistics/rx_bytes").read_text())
            into += int((_LINKS / name / "statistics/tx_bytes").read_text())
        except OSError:
            continue
    return into, out
