"""Removing a guest: its volumes first, its file last, so that a killed command can simply be repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig
from pvetools.guest.common.kind import GuestKind, used_volumes
from pvetools.system import files, lock, log, paths
from pvetools.system.errors import PveError, Refused


def destroy(
    kind: GuestKind,
    vmid: int,
    *,
    purge: bool = False,
    unreferenced: bool = False,
    skip_lock: bool = False,
    forget: Callable[[int], None] | None = None,
) -> None:
    """Destroy a stopped guest with all volumes that it owns.

    Args:
        kind: which kind of guest.
        vmid: its id.
        purge: also remove it from backup jobs.
        unreferenced: also free volumes of its id that its file does not name, on all enabled storages.
        skip_lock: ignore a lock in its file.
        forget: removes what is derived from its file.

    Raises:
        Refused: it runs, or is protected. Locked, NotFound.
    """
    from pvetools.storage import volumes

    with lock.guest_lock(vmid):
        current = config.load(kind.name, vmid)
        check_destroyable(kind, current, skip_lock=skip_lock)
        owned = used_volumes(kind, (current.current, current.pending, *current.snapshots.values()))
        others = set(volumes.owned_by(vmid)) - owned
        if unreferenced:
            owned, others = owned | others, set()
        _check_no_clones(vmid, owned)
        for volid in sorted(owned):
            _free(vmid, volid)
        for volid in sorted(others):
            log.emit(f"volume '{volid}' is not in the configuration and stays; remove it with: pvesm free {volid}")
        if purge:
            _purge_jobs(vmid)
        files.remove(paths.firewall_config(vmid))
        if forget:
            forget(vmid)
        config.remove(kind.name, vmid)


def _check_no_clones(vmid: int, volids: Iterable[str]) -> None:
    """Refuse to begin with a template on which linked clones lie."""
    from pvetools.storage import volumes

    for volid in sorted(volids):
        clones: list[str] = []
        with contextlib.suppress(PveError):  # a storage that is gone
            clones = volumes.clones_of(volid) if volumes.owner(volid) == vmid else []
        if clones:
            raise Refused(f"base volume '{volid}' is still in use by linked clone '{clones[0]}'")


def check_destroyable(kind: GuestKind, current: GuestConfig, *, skip_lock: bool = False) -> None:
    """Refuse to remove a guest that is locked, protected or running.

    Raises:
        Locked, Refused.
    """
    if not skip_lock:
        config.check_lock(current)
    if config.is_on(current.current, "protection"):
        raise Refused(f"can't remove {kind.label} {current.vmid} - protection mode enabled")
    if kind.is_running(current.vmid):
        raise Refused(f"{kind.label} {current.vmid} is running - destroy failed; stop it with: "
                      f"{kind.tool} stop {current.vmid}")  # fmt: skip


def _free(vmid: int, volid: str) -> None:
    """Free one volume; what cannot be freed is named and stays, as Proxmox VE does."""
    from pvetools.guest.common import references
    from pvetools.storage import volumes

    try:
        if volumes.owner(volid) != vmid:
            return
        if user := references.disk_of(volid, but=vmid):
            raise Refused(f"it is a disk of {user}")
        volumes.free(volid, missing_ok=True)
    except PveError as error:
        log.warn(f"could not remove volume '{volid}', it stays on the storage: {error}")


def _purge_jobs(vmid: int) -> None:
    """Take the guest out of the lists of backup jobs; a job without guests is removed."""
    if (paths.etc_pve() / "jobs.cfg").exists():
        from pvetools.config import jobs

        jobs.forget_guest(vmid)
