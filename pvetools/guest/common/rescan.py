"""Bringing configurations in line with the storages: volumes that nobody names become unused, sizes are corrected."""

from __future__ import annotations

from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig
from pvetools.guest.common import edit, references
from pvetools.guest.common.kind import GuestKind, used_volumes
from pvetools.system import lock, log
from pvetools.system.errors import PveError


def rescan(kind: GuestKind, vmids: list[int], *, dry_run: bool = False) -> None:
    """Find volumes of the guests that their files do not name, and sizes that changed; tells what it does.

    Raises:
        NotFound: no such guest.
    """
    for vmid in vmids:
        with lock.guest_lock(vmid):
            current = config.load(kind.name, vmid)
            if _update(kind, current) and not dry_run:
                config.save(current)


def _update(kind: GuestKind, current: GuestConfig) -> bool:
    from pvetools.storage import volumes

    changed = False
    sections = (current.current, current.pending, *current.snapshots.values())
    named = used_volumes(kind, sections)
    for volid in volumes.owned_by(current.vmid):
        if volid not in named and not references.is_named(volid, sections):
            key = edit.add_unused(current.current, volid)
            log.emit(f"{kind.label} {current.vmid} add unreferenced volume '{volid}' as '{key}' to config")
            changed = True
    for key, volid in kind.volumes(current.current).items():
        changed |= not key.startswith("unused") and _update_size(kind, current, key, volid)
    return changed


def _update_size(kind: GuestKind, current: GuestConfig, key: str, volid: str) -> bool:
    from pvetools.storage import volumes

    try:
        size = volumes.info(volid).size
    except PveError as error:
        log.warn(f"{kind.label} {current.vmid} ({key}): {error}")
        return False
    text = kind.with_size(current.current[key], size)
    if text == current.current[key]:
        return False
    log.emit(f"{kind.label} {current.vmid} ({key}): size of disk '{volid}' updated")
    current.current[key] = text
    return True
