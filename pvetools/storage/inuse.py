"""Whether somebody uses an image file or a folder right now: QEMU's file locks, loop devices, mounts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from pvetools.storage import mounts
from pvetools.storage.mounts import unescaped

_FLOCK = struct.Struct("@hhqqi4x")
# QEMU locks single bytes of the image: one a permission it holds (from 100) and one it denies to others (from 200)
_QEMU_LOCKS = (100, 200)


def mount_points() -> list[str]:
    """All mount points of this process's mount namespace."""
    return [mount.point for mount in mounts.every()]


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted exactly there."""
    return os.path.realpath(path) in mount_points()


def _locked_by_qemu(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        wish = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _QEMU_LOCKS[0], 200, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wish)
    finally:
        os.close(fd)
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK


def _loop_device(path: Path) -> str:
    real = os.path.realpath(path)
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if entry.read_text("utf-8", "surrogateescape").rstrip("\n") == real:
                return f"/dev/{entry.parts[3]}"
        except OSError:
            continue  # detached meanwhile
    return ""


def _bound_folder(real: str) -> str:
    """Where a folder or something in it is shown again, in any name space, such as that of a container."""
    own = [line for line in _mountinfo("self") if _is_below(real, unescaped(line[4]))]
    if not own:
        return ""
    covering = max(reversed(own), key=lambda line: len(line[4]))  # of several at one place the last one is on top
    number, point = covering[2], unescaped(covering[4])
    inner = os.path.normpath(f"{unescaped(covering[3])}/{real[len(point) :]}").replace("//", "/")
    for pid, lines in _namespaces():
        for line in lines:
            if line[2] == number and _is_below(unescaped(line[3]), inner):
                return f"the mount '{unescaped(line[4])}'" + ("" if pid == "self" else f" of process {pid}")
    return ""


def _is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mountinfo(pid: str) -> list[list[str]]:
    """The first words of each mount that a process sees: device number, what of the file system, and where."""
    text = Path(f"/proc/{pid}/mountinfo").read_text("utf-8", "surrogateescape")
    return [words for line in text.split("\n") if len(words := line.split(" ")) >= 6]


def _namespaces() -> Iterator[tuple[str, list[list[str]]]]:
    """A process of each mount name space, ourselves first, and what is mounted there."""
    seen = set[str]()
    for pid in ("self", *(folder.name for folder in Path("/proc").glob("[1-9]*"))):
        with contextlib.suppress(OSError):
            space = os.readlink(f"/proc/{pid}/ns/mnt")  # noqa: PTH115 - there are thousands
            if space not in seen:
                seen.add(space)
                yield pid, _mountinfo(pid)


def user_of(path: Path) -> str:
    """Who uses a file or folder, in words; empty when nobody does."""
    if path.is_dir():
        real = os.path.realpath(path)
        point = next((point for point in mount_points() if point == real or point.startswith(real + "/")), "")
        return f"the mount '{point}'" if point else _bound_folder(real)
    if _locked_by_qemu(path):
        return "a running QEMU"
    device = _loop_device(path)
    return f"the loop device {device}" if device else ""
