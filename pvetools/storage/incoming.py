"""Files that come onto a storage from outside: they grow under a temporary name, are checked, and then appear whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from pvetools.system import files, lock, log, paths, task
from pvetools.system.errors import Exists, PveError

_PART = re.compile(r"\.pvetools-(?P<node>.+)-(?P<pid>\d+)-(?P<start>\d+)-[^-]+\.part", re.ASCII)
_RESERVE = 16 << 20  # bytes that stay free on a file system that also others write to
_BLOCK = 1 << 20


class Checksum(NamedTuple):
    """What a file's content is expected to be."""

    algorithm: str
    digest: str


# -- temporary files ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def part(folder: Path) -> Iterator[Path]:
    """A new empty file in a folder of a storage, gone when the block ends and nobody has renamed it.

    Its name says who writes it: what killed processes left in the folder is removed first.
    """
    _sweep(folder)
    prefix = f".pvetools-{paths.node()}-{os.getpid()}-{task.process_start(os.getpid())}-"
    with contextlib.ExitStack() as undo:
        with task.uninterrupted():
            fd, name = tempfile.mkstemp(".part", prefix, folder)
            undo.callback(Path(name).unlink, missing_ok=True)
        os.close(fd)
        yield Path(name)


def _sweep(folder: Path) -> None:
    """Remove the parts of processes of this node that are dead."""
    for path in folder.glob(".pvetools-*.part"):
        match = _PART.fullmatch(path.name)
        if match and match["node"] == paths.node() and task.process_start(int(match["pid"])) != int(match["start"]):
            log.emit(f"removing '{path.name}', left by a process that was killed")
            path.unlink(missing_ok=True)


def write(file: IO[bytes], chunks: Iterator[bytes], limit: int = 0) -> int:
    """Write what comes, as long as the file system has room; gives the number of bytes.

    Raises:
        PveError: the file system is full, or more than ``limit`` bytes came.
    """
    done = checked = 0
    for chunk in chunks:
        if done >= checked:
            need_space(Path(file.name).parent, len(chunk))
            checked = done + _RESERVE // 2
        file.write(chunk)
        done += len(chunk)
        if limit and done > limit:
            raise PveError(f"more than the expected {limit} bytes arrived")
    return done


def need_space(folder: Path, size: int) -> None:
    """Refuse what would fill a file system.

    Raises:
        PveError.
    """
    found = os.statvfs(folder)
    if size + _RESERVE > found.f_bavail * found.f_frsize:
        raise PveError(f"no space left in '{folder}': {found.f_bavail * found.f_frsize} bytes are free")


def appear(storage: str, temporary: Path, target: Path, *, replace: bool = False) -> None:
    """Give a complete file its name.

    Raises:
        Exists: there is one with that name already, and it is not to be replaced.
    """
    temporary.chmod(0o644)
    fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    with lock.storage_lock(storage):
        if target.is_dir() or (os.path.lexists(target) and not replace):
            raise Exists(f"'{target}' exists already")
        temporary.rename(target)
        files.sync_folder(target.parent)


# -- checks ------------------------------------------------------------------------------------------------------------


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a file, piece by piece."""
    while chunk := file.read(_BLOCK):
        yield chunk


def digest_of(path: Path, algorithm: str) -> str:
    """Checksum of a file's content, in hexadecimal digits."""
    found = hashlib.new(algorithm, usedforsecurity=False)
    with files.open_regular(path) as file:
        for chunk in blocks(file):
            found.update(chunk)
    return found.hexdigest()


def check_sum(found: str, wanted: Checksum) -> None:
    """Compare a checksum with the expected one.

    Raises:
        PveError: they differ.
    """
    if found.lower() != wanted.digest.strip().lower():
        raise PveError(f"{wanted.algorithm} checksum is {found}, expected {wanted.digest}")
    log.emit(f"{wanted.algorithm} checksum is right")
