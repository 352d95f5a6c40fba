"""Growing volumes of containers, with the file systems on them."""

from __future__ import annotations

from pvetools.config import guest as config
from pvetools.guest.lxc import kind
from pvetools.system import lock, run
from pvetools.system.errors import ParamErrors, PveError, Refused
from pvetools.system.units import parse_size


def resize(vmid: int, disk: str, size: str, digest: str = "") -> None:
    """Grow a volume of a stopped container.

    Args:
        vmid: the container.
        disk: ``rootfs`` or ``mpN``.
        size: new size, or ``+`` and what is to be added.
        digest: of the configuration that the caller saw.

    Raises:
        Refused: it runs, or the volume has no size of its own. ParamErrors: not larger. Locked, NotFound.
    """
    from pvetools.storage import volumes

    with lock.guest_lock(vmid):
        current = config.load("lxc", vmid)
        config.check_digest(current, digest)
        config.check_lock(current)
        volid = kind.volumes_of(current.current).get(disk)
        if volid is None:
            raise ParamErrors({"disk": f"container {vmid} has no volume '{disk}'"})
        if kind.LXC.is_running(vmid):
            raise Refused(f"CT {vmid} is running: volumes of running containers cannot be resized yet")
        source = volumes.mountable(volid)
        if source.kind == "folder" and not volumes.can(volid, "resize"):
            raise Refused(f"volume '{volid}' is a plain directory and has no size of its own")
        wanted = _wanted(size, volumes.info(volid).size)
        volumes.resize(volid, wanted)
        if source.kind != "folder":
            _grow_filesystem(str(volumes.mountable(volid).path))
        current.current[disk] = kind.with_size(current.current[disk], volumes.info(volid).size)
        config.save(current)


def _wanted(size: str, now: int) -> int:
    wanted = now + parse_size(size[1:]) if size.startswith("+") else parse_size(size)
    if wanted <= now:
        raise ParamErrors({"size": f"volumes can only grow: {wanted} bytes are not more than {now}"})
    return wanted


def _grow_filesystem(path: str) -> None:
    checked = run.run(["e2fsck", "-f", "-p", path], check=False)
    if checked.code > 1:  # 1: errors were corrected
        raise PveError(f"the file system on '{path}' is damaged: {checked.stdout.strip() or checked.stderr.strip()}")
    run.run(["resize2fs", path])
