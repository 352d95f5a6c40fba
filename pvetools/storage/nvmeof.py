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
    """All portals and subsystems that a portal tells of.

    Raises:
        PveError: it does not answer, or not as a discovery controller does.
    """
    load_driver()
    address = san.reach(place)
    words = ["nvme", "discover", "-t", "tcp", "-a", address, "-s", str(place.port), "-o", "json"]
    said = run(words, timeout=san.QUESTION_PATIENCE).stdout
    try:
        records = json.loads(said)["records"] if said.strip() else []
        return [
            (Portal(str(record["traddr"]), int(record["trsvcid"])), str(record["subnqn"]))
            for record in records
            if record["trtype"] == "tcp" and "discovery" not in record["subtype"]
        ]
    except (ValueError, KeyError, TypeError):
        raise PveError(f"portal '{place}' gave an answer to 'nvme discover' that can't be understood") from None
