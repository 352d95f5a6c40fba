"""Looking after the volumes of containers: mounting them on the host, checking and trimming their file systems."""

from __future__ import annotations

from pathlib import Path

from pvetools.config import guest as config
from pvetools.guest.lxc import host as hosts
from pvetools.guest.lxc import hosting, idmap, inside, mounts, running, runtime
from pvetools.guest.lxc.groups import bound_cpus
from pvetools.guest.lxc.kind import volumes_of
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
        if current.lock != "mounted" and not mounts.attached(vmid):
            raise Refused(f"CT {vmid} is not mounted")
        _detach(vmid)
        if current.lock == "mounted":
            del current.current["lock"]
            config.save(current)


def _detach(vmid: int) -> None:
    for place in mounts.attached(vmid):
        run.run(["umount", place])


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
        source = volumes.mountable(volid)
        if source.kind == "folder":
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
    current = inside.require_running(vmid)
    options, ids = hosting.options(vmid, current.current), idmap.of(current.current, current.lxc)
    found = mounts.sources(options)
    chosen = found[:1] if ignore_mountpoints else found
    with mounts.mounted(vmid, options, ids) as root:  # once more, where the host's tool can reach them
        for source in chosen:
            if not source.path.is_dir() and not source.read_only:
                done = run.run(["fstrim", "-v", root / source.target.lstrip("/")], check=False)
                log.emit(f"{source.target}: " + (done.stdout.strip().rpartition(": ")[2] or done.stderr.strip()))


def cpusets() -> dict[int, tuple[int, ...]]:
    """CPUs of every running container that is held on some of them."""
    return {vmid: cpus for vmid in sorted(running.running()) if (cpus := bound_cpus(vmid))}


def cpus_of_host() -> tuple[int, ...]:
    """CPUs that containers may use."""
    return hosts.probe().cpus
