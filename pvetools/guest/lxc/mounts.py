"""Volumes of a container, mounted: block devices, disk images by a loop device, directories by a bind mount."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pvetools.guest.lxc import namespace
from pvetools.guest.lxc.idmap import IdMap
from pvetools.guest.lxc.tree import GuestTree
from pvetools.options.lxc import LxcOptions, MountPoint, PassedDevice, Rootfs
from pvetools.storage import blockdev, inuse, mounts
from pvetools.system import paths, run
from pvetools.system.errors import NotFound, PveError, Refused, RunError

_DETACHED_WITHIN = 5.0  # seconds


class Source(NamedTuple):
    """Something to mount.

    Args:
        key: ``rootfs`` or ``mpN``.
        path: image, block device or directory on the host.
        target: path inside the container.
        options: mount options.
        read_only: mount it so that the container cannot write.
        volid: the volume, or empty for directories and devices of the host.
    """

    key: str
    path: Path
    target: str
    options: tuple[str, ...]
    read_only: bool
    volid: str = ""


def sources(options: LxcOptions) -> list[Source]:
    """What a container mounts: the root first, then by depth of the mount point.

    Raises:
        PveError: a volume or directory that is not there.
    """
    if options.rootfs is None:
        raise PveError("the container has no rootfs")
    points = [_source(f"mp{index}", point, point.mp) for index, point in options.mp.items()]
    points.sort(key=lambda source: (source.target.strip("/").count("/"), source.target))
    return [_source("rootfs", options.rootfs, "/"), *points]


def _source(key: str, value: Rootfs | MountPoint, target: str) -> Source:
    own = value.volume.startswith("/")
    try:
        path = Path(value.volume) if own else _volume_path(value.volume)
    except NotFound as error:
        raise NotFound(f"'{key}': {error}") from None
    if not path.exists():
        raise PveError(f"'{value.volume}' of '{key}' does not exist" + ("" if own else f" (no such file: {path})"))
    options = [word for word in (value.mountoptions or "").split(";") if word]
    if value.acl is not None and not path.is_dir():
        options.append("acl" if value.acl else "noacl")
    return Source(key, path, target, tuple(options), bool(value.ro), "" if own else value.volume)


def _volume_path(volid: str) -> Path:
    from pvetools.storage import volumes

    return volumes.mountable(volid).path


def root_folder(vmid: int) -> Path:
    """Where a container's root is mounted, in whichever namespace that is."""
    return paths.lxc_dir() / str(vmid) / "rootfs"


def staging(vmid: int, key: str) -> Path:
    """Where another volume or device waits until LXC binds it into the container."""
    return paths.lxc_dir() / str(vmid) / "mounts" / key


def attached(vmid: int) -> list[str]:
    """Mount points of a container that everyone on the host sees, the last one made first."""
    home = os.path.realpath(paths.lxc_dir() / str(vmid))
    points = [mount.point for mount in mounts.every()]
    return [point for point in reversed(points) if point.startswith(f"{home}/")]


def check_detached(vmid: int) -> None:
    """Refuse to touch volumes that are mounted on the host.

    Raises:
        Refused: with the command that unmounts them.
    """
    if attached(vmid):
        raise Refused(f"CT {vmid} is mounted on the host; unmount it with: pct unmount {vmid}")


def make_folders(vmid: int) -> None:
    """The folders below LXC's own; mapped roots must be able to walk through them."""
    for folder in (paths.lxc_dir() / str(vmid), root_folder(vmid), staging(vmid, "")):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)


def check_reachable(vmid: int, ids: IdMap) -> None:
    """The container's root must be able to walk to its root folder.

    Raises:
        PveError: naming the folder that forbids it.
    """
    if not ids.entries:
        return
    for folder in reversed(root_folder(vmid).parents):
        if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH:
            raise PveError(
                f"the container's root (uid {ids.root[0]}) cannot walk through '{folder}'; "
                f"allow it with: chmod o+x {folder}"
            )


def attach(source: Source, where: Path) -> None:
    """Mount one source on a folder or file of the host, writable.

    Raises:
        PveError: what mount said.
    """
    mode = source.path.stat().st_mode
    if stat.S_ISDIR(mode):
        namespace.mount(str(source.path), str(where))
        if source.options:
            run.run(["mount", "-o", "remount,bind," + ",".join(source.options), where])
    elif stat.S_ISBLK(mode):
        run.run(["mount", "-o", ",".join(source.options or ("defaults",)), source.path, where])
    else:
        run.run(["mount", "-o", ",".join(("loop", *source.options)), source.path, where])


def seal(source: Source, where: Path) -> None:
    """Make a mount read-only where the configuration says so; apart, because the root is adapted before."""
    if source.read_only:
        run.run(["mount", "-o", ",".join(("remount", "bind", "ro", *source.options)), where])


def attach_for_start(vmid: int, found: list[Source]) -> None:
    """Mount everything where the configuration for LXC expects it; in the monitor's namespace."""
    make_folders(vmid)
    for source in found:
        where = root_folder(vmid) if source.key == "rootfs" else staging(vmid, source.key)
        where.mkdir(exist_ok=True)
        attach(source, where)


def seal_all(vmid: int, found: list[Source]) -> None:
    """The second half of ``attach_for_start``."""
    for source in found:
        seal(source, root_folder(vmid) if source.key == "rootfs" else staging(vmid, source.key))


def attach_tree(vmid: int, found: list[Source], ids: IdMap, *, sealed: bool = True) -> None:
    """Mount everything as the container sees it, below its root folder."""
    make_folders(vmid)
    root = root_folder(vmid)
    attach(found[0], root)
    for source in found[1:]:
        place = staging(vmid, source.key)
        place.mkdir(exist_ok=True)
        attach(source, place)
        if sealed:
            seal(source, place)
        with GuestTree(root, ids) as tree:
            tree.mkdir(source.target)
            with tree.directory(source.target) as fd:
                namespace.mount(str(place), f"/proc/self/fd/{fd}")
        run.run(["umount", place])
    if sealed:
        seal(found[0], root)


def flush(where: Path) -> None:
    """Write everything to the disk below: a full storage shows only now.

    Raises:
        PveError: it could not be written.
    """
    try:
        run.run(["sync", "--file-system", where])
    except RunError as error:
        reason = error.stderr.rpartition(": ")[2]
        raise PveError(f"writing the container's data failed, its storage is full or broken: {reason}") from None


@contextlib.contextmanager
def mounted(vmid: int, options: LxcOptions, ids: IdMap, *, writable: bool = False) -> Iterator[Path]:
    """A container's volumes as one tree, for as long as the block lasts, seen by this thread and its children only.

    Works beside a running container too: the same file systems are mounted once more.

    Args:
        vmid: the container.
        options: its options.
        ids: its id map.
        writable: leave read-only volumes writable, and write everything to the disk at the end.

    Raises:
        PveError: a volume is missing or cannot be mounted; the storage is full.
    """
    found = sources(options)
    idle = [source.path for source in found if not source.path.is_dir() and not _is_used(source.path)]
    try:
        with namespace.private():
            attach_tree(vmid, found, ids, sealed=not writable)
            yield root_folder(vmid)
            if writable:
                flush(root_folder(vmid))
    finally:
        await_idle(idle)


def images(options: LxcOptions) -> list[Path]:
    """The disk images and devices among a container's volumes.

    Raises:
        PveError: a volume or directory that is not there.
    """
    found = sources(options)
    return [source.path for source in found if source.path.is_file() or (source.volid and not source.path.is_dir())]


def await_idle(images: list[Path]) -> None:
    """The kernel lets go of devices a moment after the last mount has gone; until then nobody could free these."""
    deadline = time.monotonic() + _DETACHED_WITHIN
    while any(_is_used(image) for image in images) and time.monotonic() < deadline:
        time.sleep(0.002)


def _is_used(image: Path) -> bool:
    return blockdev.is_busy(image) if blockdev.is_device(image) else bool(inuse.user_of(image))


def make_devices(vmid: int, devices: Mapping[int, PassedDevice], ids: IdMap) -> None:
    """Nodes of passed devices with owners of the container, on a file system of their own; in the monitor's namespace.

    Raises:
        PveError: a device that is not there.
    """
    for index, device in sorted(devices.items()):
        kind, number = device_number(device)
        place = staging(vmid, f"dev{index}")
        folder = place.with_name(f".dev{index}")
        folder.mkdir(exist_ok=True)
        namespace.mount("none", str(folder), 0, fstype="tmpfs", data="size=64k,mode=755")
        node = folder / "node"
        mode = int(device.mode, 8) if device.mode else 0o660
        os.mknod(node, stat.S_IFBLK | mode if kind == "b" else stat.S_IFCHR | mode, number)
        node.chmod(mode)
        os.chown(node, ids.uid(device.uid or 0), ids.gid(device.gid or 0))
        place.touch()
        namespace.mount(str(node), str(place))


def device_number(device: PassedDevice) -> tuple[str, int]:
    """``b`` or ``c`` and the kernel's number of a device.

    Raises:
        PveError: it is not there, or not a device.
    """
    path = device.path or ""
    try:
        found = Path(path).stat()
    except OSError:
        raise PveError(f"device '{path}' does not exist") from None
    if not (stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)):
        raise PveError(f"'{path}' is not a device")
    return ("b" if stat.S_ISBLK(found.st_mode) else "c"), found.st_rdev
