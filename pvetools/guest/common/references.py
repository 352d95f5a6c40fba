"""Which guest's configuration names a volume."""

from __future__ import annotations

import contextlib
import os
import re

from pvetools.config import guest as config
from pvetools.storage import volumes
from pvetools.system import files, paths
from pvetools.system.errors import PveError

_LABEL = {"qemu": "VM", "lxc": "CT"}
_BEFORE = r"[a-zA-Z][\w.-]*:(?:[^\s,]+/)?"  # what stands before a volume's own name


def disk_of(volid: str) -> str:
    """The guest and key that use a volume as a disk, such as ``VM 100 (scsi0)``; empty when none does.

    ``unusedN`` entries do not count. Snapshots and pending changes do.
    """
    own = volid.partition(":")[2].rpartition("/")[2]
    names_it = re.compile(
        rf"^(?!unused)(\w+): (?:[^\n]*,)?(?:[\w-]+=)?({_BEFORE}{re.escape(own)})(?:,|$)", re.MULTILINE
    )
    for vmid, (node, kind) in config.cluster_guests().items():
        text = files.read_text(paths.guest_config(kind, vmid, node)) or ""
        for match in names_it.finditer(text) if own in text else ():
            if _is_same(match[2], volid):
                return f"{_LABEL[kind]} {vmid} ({match[1]})"
    return ""


def _is_same(one: str, other: str) -> bool:
    """Whether two volume ids lead to one volume: a linked clone with and without its base, storages on one folder."""
    if one == other:
        return True
    with contextlib.suppress(PveError):  # a storage that is gone
        return os.path.realpath(volumes.path(one)) == os.path.realpath(volumes.path(other))
    return False
