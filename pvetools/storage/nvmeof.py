"""NVMe over TCP by nvme-cli: which subsystems a portal offers."""

from __future__ import annotations

import json
from pathlib import Path

from pvetools.storage import san
from pvetools.storage.san import Portal
from pvetools.system.errors import PveError
from pvetools.system.run import run

PORT = 4420


def load_driver() -> None:
    """Have the kernel's driver ready."""
    if not Path("/sys/module/nvme_tcp").exists():
        run(["modprobe", "nvme-tcp"])


def discover(place: Portal) -> list[tuple[Portal, str]]:
    """All portals and subsystems that a portal tells of, or those that it refers to.

    Raises:
        PveError: it does not answer, or not as a discovery controller does.
    """
    load_driver()
    waiting, asked, found = [place], {place}, []
    while waiting:
        current = waiting.pop()
        try:
            rows = _ask(current)
        except PveError:
            if current == place:
                raise
            continue  # others may still tell of what is behind it
        found += [(portal, name) for portal, name, kind in rows if "discovery" not in kind]
        referred = {portal for portal, _, kind in rows if "referral" in kind} - asked
        waiting += sorted(referred)
        asked |= referred
    return [*dict.fromkeys(found)]


def _ask(place: Portal) -> list[tuple[Portal, str, str]]:
    """Portal, name and kind of each entry of a portal's log."""
    address = san.reach(place)
    words = ["nvme", "discover", "-t", "tcp", "-a", address, "-s", str(place.port), "-o", "json"]
    said = run(words, timeout=san.QUESTION_PATIENCE).stdout
    try:
        records = json.loads(said)["records"] if said.strip() else []
        return [
            (Portal(str(record["traddr"]), int(record["trsvcid"])), str(record["subnqn"]), str(record["subtype"]))
            for record in records
            if record["trtype"] == "tcp"
        ]
    except (ValueError, KeyError, TypeError):
        raise PveError(f"portal '{place}' gave an answer to 'nvme discover' that can't be understood") from None
