"""Subvolumes of btrfs: what the kernel tells about them without starting a program, and what ``btrfs`` changes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import inuse
from pvetools.system import files, run
from pvetools.system.errors import PveError, RunError

_ROOT_INODE = 256  # of every subvolume, and of nothing else on btrfs but the root itself
_FS_INFO, _FS_INFO_SIZE, _FSID_AT = 0x8400941F, 1024, 16
_SUBVOLUME_INFO, _SUBVOLUME_INFO_SIZE = 0x81F8943C, 504
_FLAGS_AT, _UUID_AT, _OTIME_AT, _READ_ONLY = 288, 296, 392, 1 << 0
_EXCHANGE, _HERE = 2, -100


class Info(NamedTuple):
    """A subvolume: its number in the file system, its UUID and that of its origin, and when it was made."""

    id: int
    uuid: uuid.UUID
    parent: uuid.UUID
    received: uuid.UUID
    created: tuple[int, int]  # seconds and nanoseconds
    read_only: bool


def _ask(path: Path, request: int, answer: bytearray) -> bytearray:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, answer)
    finally:
        os.close(fd)
    return answer


def filesystem(path: Path) -> uuid.UUID | None:
    """UUID of the btrfs file system that a directory lies on; None on any other kind. OSError: unreachable."""
    try:
        answer = _ask(path, _FS_INFO, bytearray(_FS_INFO_SIZE))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise
    return uuid.UUID(bytes=bytes(answer[_FSID_AT : _FSID_AT + 16]))


def is_one(path: Path) -> bool:
    """Whether there is a subvolume; links to one are none."""
    try:
        return path.lstat().st_ino == _ROOT_INODE and path.is_dir()
    except OSError:
        return False


def info(path: Path) -> Info:
    """What the kernel knows about a subvolume. OSError: there is none."""
    answer = _ask(path, _SUBVOLUME_INFO, bytearray(_SUBVOLUME_INFO_SIZE))
    own, parent, received = (uuid.UUID(bytes=bytes(answer[at : at + 16])) for at in range(_UUID_AT, _UUID_AT + 48, 16))
    seconds, nanoseconds = struct.unpack_from("<QI", answer, _OTIME_AT)
    (flags,) = struct.unpack_from("<Q", answer, _FLAGS_AT)
    (number,) = struct.unpack_from("<Q", answer)
    return Info(number, own, parent, received, (seconds, nanoseconds), bool(flags & _READ_ONLY))


# Changes.


def create(path: Path) -> None:
    """Make an empty subvolume."""
    run.run(["btrfs", "subvolume", "create", "--", path])


def snapshot(path: Path, target: Path, *, read_only: bool = False) -> None:
    """Make a subvolume with the content of another one."""
    run.run(["btrfs", "subvolume", "snapshot", *(["-r"] if read_only else []), "--", path, target])


def set_read_only(path: Path, on: bool) -> None:
    """Forbid or allow changes of a subvolume; that it was received is forgotten when they are allowed."""
    run.run(["btrfs", "property", "set", *([] if on else ["-f"]), "-ts", path, "ro", "true" if on else "false"])


def delete(paths: Iterable[Path]) -> None:
    """Remove subvolumes, with those that were made inside of them."""
    for path in paths:
        try:
            run.run(["btrfs", "subvolume", "delete", "--", path])
        except RunError as error:
            inner = _inside(Path(os.path.realpath(path)), {*inuse.mount_points()})
            if not inner:
                raise error from None
            run.run(["btrfs", "subvolume", "delete", "--", *inner, path])


def _inside(path: Path, mounts: Collection[str]) -> list[Path]:
    """Subvolumes below a folder, the deepest ones first; not those of mounted file systems.

    How deep the folders are is up to the users of a container. What can't be looked into is left out.
    """
    found, waiting = list[Path](), [str(path)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and entry.path not in mounts:
                    waiting.append(entry.path)
                    if is_one(Path(entry.path)):
                        found.append(Path(entry.path))
    return found[::-1]


def exchange(one: Path, other: Path) -> None:
    """Let two paths change places in one step. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def switch_off_cow(path: Path) -> None:
    """Have an empty file overwritten in place from now on; its checksums go with that."""
    try:
        files.set_flag(path, files.NO_COW, on=True)
    except OSError as error:
        raise PveError(f"can't switch off copy on write of '{path}': {error.strerror}") from None


# Quotas.


def quotas_on(path: Path) -> bool:
    """Whether the file system counts and limits its subvolumes."""
    try:
        found = filesystem(path)
    except OSError:
        return False
    return found is not None and Path(f"/sys/fs/btrfs/{found}/qgroups").is_dir()


class Quota(NamedTuple):
    """Bytes that a subvolume refers to, and at most may; 0: it has no limit."""

    used: int
    limit: int


def quotas(path: Path) -> dict[int, Quota]:
    """Quotas of all subvolumes of the file system by their numbers; none while quotas are off."""
    done = run.run(["btrfs", "qgroup", "show", "--raw", "-r", path], check=False)
    found: dict[int, Quota] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        level, _, number = words[0].partition("/") if words else ("", "", "")
        if level == "0" and number.isdecimal() and len(words) >= 4:
            found[int(number)] = Quota(int(words[1]), int(words[3]) if words[3].isdecimal() else 0)
    return found


def limit(path: Path, size: int) -> None:
    """Limit what a subvolume may refer to; 0 lifts that."""
    run.run(["btrfs", "qgroup", "limit", str(size) if size else "none", path])
