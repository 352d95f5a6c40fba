"""Removing containers, and all that was derived from them."""

from __future__ import annotations

from pvetools.guest.common import destroy as common
from pvetools.guest.lxc import hosting, lifecycle, mounts, running
from pvetools.guest.lxc.kind import LXC


def destroy(vmid: int, *, force: bool = False, purge: bool = False, unreferenced: bool = False) -> None:
    """Destroy a container with all volumes that it owns.

    Args:
        vmid: its id.
        force: stop it first when it runs, and ignore a lock of a task that has died.
        purge: also remove it from backup jobs.
        unreferenced: also free volumes of its id that its file does not name.

    Raises:
        Refused: it runs, or is protected. Locked, NotFound.
    """
    if force and running.is_running(vmid):
        lifecycle.stop(vmid, skip_lock=True)
    mounts.check_detached(vmid)
    common.destroy(LXC, vmid, purge=purge, unreferenced=unreferenced, skip_lock=force, forget=hosting.forget)
