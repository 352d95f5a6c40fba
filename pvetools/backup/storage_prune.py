"""Retention for a whole storage, outside of a backup job."""

from __future__ import annotations

from typing import Any

from pvetools.backup import options, retention
from pvetools.backup.retention import Backup
from pvetools.options.backup import PruneBackups
from pvetools.storage import definition, volumes
from pvetools.system import log
from pvetools.system.errors import PveError, Refused


def _marked(storage: str, keep: PruneBackups | None, kind: str | None, vmid: int | None) -> list[Backup]:
    found = definition.get(storage)
    if "backup" not in found.content:
        raise Refused(f"storage '{storage}' is not configured for content type 'backup', so there is nothing to prune")
    rules = keep or found.options.prune_backups
    if not rules:
        raise PveError(f"storage '{storage}' has no prune-backups rules, and none are given")
    limits = options.limits(rules)
    backups = [
        Backup(volume.volid, volume.ctime, volume.vmid, volume.protected)
        for volume in volumes.list_volumes(storage, ["backup"])
    ]
    return retention.prune(backups, limits, vmid=vmid, kind=kind)


def plan(storage: str, keep: PruneBackups | None, kind: str | None, vmid: int | None) -> list[dict[str, Any]]:
    """Every backup with its mark: ``keep``, ``remove``, ``protected`` or ``renamed``."""
    rows = [
        {"volid": b.volid, "ctime": b.ctime, "type": b.kind, "mark": b.mark, **({"vmid": b.vmid} if b.vmid else {})}
        for b in _marked(storage, keep, kind, vmid)
    ]
    return rows


def prune(storage: str, keep: PruneBackups | None, kind: str | None, vmid: int | None) -> None:
    """Remove the backups that are marked for it.

    Raises:
        PveError: one or more could not be removed; the others are.
    """
    failed: list[str] = []
    for backup in _marked(storage, keep, kind, vmid):
        log.emit(f"{backup.mark:<9} {backup.volid}")
        if backup.mark != "remove":
            continue
        try:
            volumes.free(backup.volid)
        except PveError as error:
            failed.append(f"{backup.volid}: {error}")
    if failed:
        raise PveError("could not remove all backups: " + "; ".join(failed))
