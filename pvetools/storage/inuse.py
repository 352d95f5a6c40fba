"""Whether somebody uses an image file or a folder right now: QEMU's file locks, loop devices, mounts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from pvetools.storage import mounts

_FLOCK = struct.Struct("@hhqqi4x")
# QEMU locks single bytes of the image: one a permission it holds (from 100) and one it denies to others (from 200).
_LOCKS = 100, 200  # first byte, bytes
_FILLING = 201, 99  # all but reading is denied


def mount_points() -> list[str]:
    """All mount points of this process's mount namespace."""
    return [mount.point for mount in mounts.every()]


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted exactly there."""
    return os.path.realpath(path) in mount_points()


@contextlib.contextmanager
def filling(path: Path) -> Iterator[None]:
    """Keep a file or folder, which a program fills that takes no locks, from being removed or used by QEMU meanwhile.

    Devices are seen by who has them open.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            with contextlib.suppress(OSError):  # a server without locks
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, *_FILLING, 0))
        yield
    finally:
        os.close(fd)


def _holder(path: Path) -> str:
    """Who has locked a file or folder, in words."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        wish = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_LOCKS, 0)
        kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wish))
    finally:
        os.close(fd)
    if kind == fcntl.F_UNLCK:
        return ""
    return "a command that is filling it" if (start, length) == _FILLING else "a running QEMU"


def _loop_device(path: Path) -> str:
    real = os.path.realpath(path)
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = entry.read_text("utf-8", "surrogateescape").rstrip("\n")
            # a mount may be shown at several places; others are not touched, as their servers may hang
            if file == real or (Path(file).name == Path(real).name and Path(file).samefile(real)):
                return f"/dev/{entry.parts[3]}"
        except OSError:
            continue  # detached meanwhile
    return ""


def _bound_folder(real: str) -> str:
    """Where a folder or something in it is shown again, in any namespace, such as that of a container."""
    own = [mount for mount in mounts.every() if _is_below(real, mount.point)]
    if not own:
        return ""
    covering = max(reversed(own), key=lambda mount: len(mount.point))  # of several at one place the last one is on top
    inner = os.path.normpath(f"{covering.root}/{real[len(covering.point) :]}").replace("//", "/")
    for pid, there in mounts.everywhere():
        for mount in there:
            if mount.device == covering.device and _is_below(mount.root, inner):
                return f"the mount '{mount.point}'" + ("" if pid == "self" else f" of process {pid}")
    return ""


def _is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def user_of(path: Path) -> str:
    """Who uses a file or folder, in words; empty when nobody does."""
    if holder := _holder(path):
        return holder
    if path.is_dir():
        real = os.path.realpath(path)
        point = next((point for point in mount_points() if point == real or point.startswith(real + "/")), "")
        return f"the mount '{point}'" if point else _bound_folder(real)
    device = _loop_device(path)
    return f"the loop device {device}" if device else ""
