"""iSCSI: which targets a portal offers by the tools of open-iscsi, and this host's own name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pvetools.storage import san
from pvetools.storage.san import Portal
from pvetools.system import files
from pvetools.system.errors import PveError
from pvetools.system.run import run

PORT = 3260
_NONE = 21  # status of iscsiadm when there is nothing to list
_INITIATOR = re.compile(r"^InitiatorName=(\S+)", re.MULTILINE)
_OFFERED = re.compile(r"(\S+):(\d+),(?:-?\d+) (\S+)")


def portals(text: str) -> Iterator[tuple[Portal, str]]:
    """Portals and targets of a listing by iscsiadm: ``ADDRESS:PORT,GROUP TARGET``."""
    for line in text.splitlines():
        if match := _OFFERED.match(line):
            yield Portal(match[1].strip("[]"), int(match[2])), match[3]


def discover(place: Portal) -> list[tuple[Portal, str]]:
    """All portals and targets that a portal tells of; nothing is recorded.

    Raises:
        PveError: it does not answer, or not as an iSCSI portal does.
    """
    words = ["iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", str(place), "-o", "nonpersistent"]
    done = run(words, timeout=san.QUESTION_PATIENCE, check=False)
    if done.code not in (0, _NONE):
        said = done.stderr.strip().splitlines() or ["no message"]
        raise PveError(f"portal '{place}' does not tell its targets: {said[-1]}")
    return [*portals(done.stdout)]


def initiator() -> str:
    """This host's name as targets know it; QEMU has one of its own where the host has none."""
    match = _INITIATOR.search(files.read_text(Path("/etc/iscsi/initiatorname.iscsi")) or "")
    return match[1] if match else ""
