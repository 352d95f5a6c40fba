"""Which guest's configuration names a volume."""

from __future__ import annotations

import re

from pvetools.config import guest as config
from pvetools.system import files, paths

_LABEL = {"qemu": "VM", "lxc": "CT"}


def disk_of(volid: str) -> str:
    """The guest and key that use a volume as a disk, such as ``VM 100 (scsi0)``; empty when none does.

    ``unusedN`` entries do not count. Snapshots and pending changes do.
    """
    names_it = re.compile(rf"^(?!unused)(\w+): (?:[^\n]*,)?(?:[\w-]+=)?{re.escape(volid)}(?:,|$)", re.MULTILINE)
    for vmid, (node, kind) in config.cluster_guests().items():
        text = files.read_text(paths.guest_config(kind, vmid, node)) or ""
        if volid in text and (match := names_it.search(text)):
            return f"{_LABEL[kind]} {vmid} ({match[1]})"
    return ""
