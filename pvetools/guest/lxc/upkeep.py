"""Looking after the volumes of containers: mounting them on the host, checking and trimming their file systems."""

from __future__ import annotations

import os
from pathlib import Path

from pvetools.config import guest as config
from pvetools.guest.lxc import host as hosts
from pvetools.guest.lxc import hosting, idmap, inside, mounts, running, runtime
from pvetools.guest.lxc.groups import bound_cpus
from pvetools.guest.lxc.kind import volumes_of
from pvetools.options.lxc import LxcOptions
from pvetools.system import lock, log, run
from pvetools.system.errors import ParamErrors, PveError, Refused


def mount(vmid: int) -> Path:
    """Mount a stopped container's volumes on the host, until ``unmount``; meanwhile it is locked.

    Raises:
        Refused: it runs. Locked, NotFound. PveError: what mount said.
    """
    with lock.guest_lock(vmid):
        current = config.load("lxc", vmid)
        config.check_lock(current)
        if running.is_running(vmid):
            raise Refused(f"CT {vmid} is running: its files are below /proc/{runtime.init_pid(vmid)}/root")
        ids = idmap.of(current.current, current.lxc)
        found = mounts.sources(hosting.options(vmid, current.current))
        current.current["lock"] = "mounted"
        config.save(current)
        try:
            mounts.attach_tree(vmid, found, ids)
        except BaseException:
            _detach(vmid)
            del current.current["lock"]
            config.save(current)
            raise
    return mounts.root_folder(vmid)


def unmount(vmid: int) -> None:
    """Undo ``mount``, also a half-done one.

    Raises:
        Refused: it was not mounted. PveError: files are in use. NotFound.
    """
    with lock.guest_lock(vmid):
        current = config.load("lxc", vmid)
        if current.lock != "mounted":
            raise Refused(f"CT {vmid} is not mounted")
        _detach(vmid)
        del current.current["lock"]
        config.save(current)


def _detach(vmid: int) -> None:
    root = mounts.root_folder(vmid)
    for place in [*(mounts.staging(vmid, "").glob("*") if mounts.staging(vmid, "").is_dir() else ()), root]:
        while os.path.ismount(place):
            run.run(["umount", "--recursive", place])


def fsck(vmid: int, device: str = "rootfs", *, force: bool = False) -> str:
    """Check and mend the file system of a stopped container's volume; gives what the checker said.

    Raises:
        ParamErrors: no such volume. Refused: it runs, or has no file system of its own. PveError: it stays damaged.
    """
    from pvetools.storage import volumes

    with lock.guest_lock(vmid):
        current = config.load("lxc", vmid)
        config.check_lock(current)
        volid = volumes_of(current.current).get(device)
        if volid is None:
            raise ParamErrors({"device": f"container {vmid} has no volume '{device}'"})
        if running.is_running(vmid):
            raise Refused(f"cannot run fsck on the running container {vmid}")
        source = volumes.source(volid)
        if source.format != "raw":
            raise Refused(f"volume '{volid}' is a plain directory: there is no file system to check")
        done = run.run(["e2fsck", "-p", *(["-f"] if force else []), source.path], check=False)
        if done.code > 1:  # 1: errors were corrected
            raise PveError(f"file system of '{volid}': {(done.stdout + done.stderr).strip()}")
        return done.stdout


def fstrim(vmid: int, *, ignore_mountpoints: bool = False) -> None:
    """Give space that a running container's file systems do not use back to the storage.

    Raises:
        Refused: it does not run. NotFound.
    """
    options = hosting.options(vmid, inside.require_running(vmid).current)
    pid = runtime.init_pid(vmid)
    for path in _image_paths(options, ignore_mountpoints=ignore_mountpoints):
        done = run.run(["fstrim", "-v", f"/proc/{pid}/root{path}"], check=False)
        log.emit(f"{path}: " + (done.stdout.strip().rpartition(": ")[2] or done.stderr.strip()))


def _image_paths(options: LxcOptions, *, ignore_mountpoints: bool) -> list[str]:
    sources = mounts.sources(options)
    chosen = sources[:1] if ignore_mountpoints else sources
    return [source.target for source in chosen if not source.path.is_dir()]


def cpusets() -> dict[int, tuple[int, ...]]:
    """CPUs of every running container that is held on some of them."""
    return {vmid: cpus for vmid in sorted(running.running()) if (cpus := bound_cpus(vmid))}


def cpus_of_host() -> tuple[int, ...]:
    """CPUs that containers may use."""
    return hosts.probe().cpus
