"""Clearing the lock of a guest, and what else the killed command left in the guest and on the storages."""

from __future__ import annotations

from pvetools.backup import guestrun, job
from pvetools.config import guest as config
from pvetools.guest.common import rescan
from pvetools.guest.common.kind import GuestKind


def unlock(kind: GuestKind, vmid: int) -> None:
    """Take the lock out of a guest's file.

    After a killed backup the guest goes on: its backup job is ended, it is thawed or resumed, and temporary files are
    removed. Volumes that a killed creation or restore made are written into the file as unused.

    Raises:
        NotFound: no such guest.
    """
    held = config.load(kind.name, vmid).lock
    if held == "backup":
        guestrun.clean_up_after_killed(job.engine, vmid)
    config.clear_lock(kind.name, vmid)
    if held == "backup":
        guestrun.clean_up_after_killed(job.engine, vmid)  # closes its record, now that the lock is gone
    if held == "create":
        rescan.rescan(kind, [vmid])
