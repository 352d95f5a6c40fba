"""Growing volumes of containers, with the file systems on them."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from pathlib import Path

from pvetools.config import guest as config
from pvetools.guest.lxc import hosting, kind, mounts, namespace, runtime
from pvetools.storage import blockdev
from pvetools.system import lock, run
from pvetools.system.errors import ParamErrors, PveError, Refused
from pvetools.system.units import parse_size

_EXT4_RESIZE = 0x40086610  # takes the new number of blocks
_CAP_SYS_RESOURCE = 24


def resize(vmid: int, disk: str, size: str, digest: str = "") -> None:
    """Grow a volume, of a running container where the storage can do that; again, to finish what was cut off.

    Args:
        vmid: the container.
        disk: ``rootfs`` or ``mpN``.
        size: new size, or ``+`` and what is to be added.
        digest: of the configuration that the caller saw.

    Raises:
        Refused: it runs and its storage can't do that, or the volume has no size of its own. ParamErrors: smaller.
        Locked, NotFound.
    """
    from pvetools.storage import volumes

    with lock.guest_lock(vmid):
        current = config.load("lxc", vmid)
        config.check_digest(current, digest)
        config.check_lock(current)
        volid = kind.volumes_of(current.current).get(disk)
        if volid is None:
            raise ParamErrors({"disk": f"container {vmid} has no volume '{disk}'"})
        running = kind.LXC.is_running(vmid)
        if running and not volumes.can(volid, "online_resize"):
            raise Refused(f"CT {vmid} is running, and its storage can't resize volume '{volid}' while it is used")
        source = volumes.mountable(volid)
        if source.kind == "folder" and not volumes.can(volid, "resize"):
            raise Refused(f"volume '{volid}' is a plain directory and has no size of its own")
        now = volumes.info(volid).size
        wanted = _wanted(size, now)
        if source.kind != "folder" and not running:
            _check_filesystem(str(source.path))
        if wanted > now:  # else only the file system has not grown yet
            volumes.resize(volid, wanted)
        if source.kind != "folder" and running:
            _grow_mounted(volumes.mountable(volid).path, _inside(vmid, current, disk))
        elif source.kind != "folder":
            _grow_unmounted(vmid, disk, volumes.mountable(volid).path)
        current.current[disk] = kind.with_size(current.current[disk], volumes.info(volid).size)
        config.save(current)


def _wanted(size: str, now: int) -> int:
    """The new size in bytes. That of now is fine: a growth that was cut off is finished so."""
    more = size.startswith("+")
    wanted = now + parse_size(size[1:]) if more else parse_size(size)
    if wanted < now or (more and wanted == now):
        raise ParamErrors({"size": f"volumes can only grow: {wanted} bytes are not more than {now}"})
    return wanted


def _check_filesystem(path: str) -> None:
    """Have a file system in order before anything grows.

    Raises:
        PveError: it is damaged.
    """
    # e2fsck waits 11 seconds before it writes, for other hosts, but not before it looks; resize2fs wants it to write
    if _may_grow_mounted() and run.run(["e2fsck", "-f", "-n", path], check=False).code == 0:
        return
    checked = run.run(["e2fsck", "-f", "-p", path], check=False)
    if checked.code > 1:  # 1: errors were corrected
        raise PveError(f"the file system on '{path}' is damaged: {checked.stdout.strip() or checked.stderr.strip()}")


def _inside(vmid: int, current: config.GuestConfig, disk: str) -> Path:
    """A volume's place in a running container, as the host reaches it."""
    wanted = hosting.options(vmid, current.current)
    target = "/" if disk == "rootfs" else wanted.mp[int(disk.removeprefix("mp"))].mp
    return Path(f"/proc/{runtime.init_pid(vmid)}/root", target.lstrip("/"))


def _grow_unmounted(vmid: int, disk: str, path: Path) -> None:
    """Grow the file system of a stopped container's volume, mounted where only this process sees it.

    resize2fs would wait 11 seconds for other hosts; the kernel knows that the last one has unmounted it properly.

    Raises:
        PveError: it can't be mounted, or does not grow.
    """
    if not _may_grow_mounted():
        run.run(["resize2fs", str(path)])
        return
    where = mounts.staging(vmid, disk)
    try:
        with namespace.private():
            mounts.make_folders(vmid)
            where.mkdir(exist_ok=True)
            mounts.attach(mounts.Source(disk, path, str(where), (), read_only=False), where)
            _grow_mounted(path, where)
    finally:
        mounts.await_idle([path])


def _may_grow_mounted() -> bool:
    """Whether the kernel lets this root grow a mounted file system: in some containers it lacks CAP_SYS_RESOURCE."""
    (rights,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(rights, 16) >> _CAP_SYS_RESOURCE & 1)


def _grow_mounted(device: Path, where: Path) -> None:
    """Let the kernel grow a mounted file system to the size of its device or image.

    A container may have moved the folders of its own.

    Raises:
        PveError: something else is mounted there, or the file system does not grow.
    """
    try:
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if blockdev.is_device(device) and os.fstat(fd).st_dev != device.stat().st_rdev:
                raise PveError(f"'{device}' has grown, but its file system has not: it is not mounted at '{where}'")
            blocks = blockdev.size(device) // os.fstatvfs(fd).f_frsize
            fcntl.ioctl(fd, _EXT4_RESIZE, struct.pack("=Q", blocks))
        finally:
            os.close(fd)
    except OSError as error:
        raise PveError(f"'{device}' has grown, but its file system has not: {error.strerror}") from None
