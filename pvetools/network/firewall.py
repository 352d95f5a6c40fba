"""Is a firewall in force for a guest? Filtering is not built yet, so a guest that counts on it must not start."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pvetools.system import files, paths
from pvetools.system.errors import Refused

_ENABLE = re.compile(r"\s*enable\s*:\s*([0-9]+)", re.IGNORECASE)


def _enabled(path: Path) -> bool:
    """Whether ``[OPTIONS]`` of a firewall file says ``enable: 1`` (any number but 0)."""
    inside = False
    for line in (files.read_text(path) or "").splitlines():
        if line.strip().startswith("["):
            inside = line.strip().lower() == "[options]"
        elif inside and (match := _ENABLE.match(line)):
            return int(match[1]) > 0
    return False


def in_force(vmid: int) -> bool:
    """Whether cards of the guest with ``firewall=1`` would be filtered: it is on for the datacenter and the guest."""
    return _enabled(paths.etc_pve() / "firewall/cluster.fw") and _enabled(paths.firewall_config(vmid))


def check_unfiltered(vmid: int, cards: Iterable[str]) -> None:
    """Refuse to run cards that their owner believes to be filtered.

    Args:
        vmid: the guest.
        cards: its cards with ``firewall=1``.

    Raises:
        Refused: filtering is switched on for them.
    """
    names = list(cards)
    if names and in_force(vmid):
        raise Refused(
            f"{', '.join(names)}: firewall=1 is not supported yet, but the firewall of guest {vmid} is switched on"
            f" in {paths.firewall_config(vmid)}"
        )
