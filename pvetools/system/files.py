"""Reading and atomic writing of files: a reader sees the old or the new content, never a part."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import IO

from pvetools.system.errors import PveError

IMMUTABLE, NO_COW = 0x00000010, 0x00800000
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602


def read_text(path: Path) -> str | None:
    """Content of a text file, or None when there is no such file."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def write_atomic(path: Path, data: str | bytes, mode: int = 0o640) -> None:
    """Replace a file: write beside it, fsync, rename, fsync the folder.

    Raises:
        OSError: with the file's name; it is what it was before.
    """
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    beside = path.with_name(f".{path.name}.tmp.{os.getpid()}")
    try:
        _write_and_rename(beside, path, raw, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)


def _write_and_rename(beside: Path, path: Path, raw: bytes, mode: int) -> None:
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def remove(path: Path) -> bool:
    """Unlink a file durably; False when it was not there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def open_regular(path: Path) -> IO[bytes]:
    """A file or a block device, open for reading. A pipe at its place would keep the reader waiting: it is refused.

    Raises:
        FileNotFoundError and other OSErrors. PveError: it is neither.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
        os.close(fd)
        raise PveError(f"'{path}' is neither a file nor a block device")
    return os.fdopen(fd, "rb")


def set_flag(path: Path, flag: int, *, on: bool) -> None:
    """Set or clear one of a file's flags that ``lsattr`` shows. OSError: the file system has none."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        (now,) = struct.unpack_from("@l", flags)
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("@l", now | flag if on else now & ~flag))
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
