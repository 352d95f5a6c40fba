"""Lock files (flock): released by the kernel when their holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pvetools.system import paths
from pvetools.system.errors import LockTimeout

DEFAULT_TIMEOUT = 10.0


@contextlib.contextmanager
def locked(path: Path, timeout: float = DEFAULT_TIMEOUT, *, what: str = "", in_turn: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a file; waits at most ``timeout`` seconds.

    Args:
        in_turn: wait as long as nobody keeps it for ``timeout`` seconds: many may stand before this one, each for a
            short while.

    Raises:
        LockTimeout: another process kept it.
    """
    with handed(path, timeout, what=what, in_turn=in_turn):
        yield


@contextlib.contextmanager
def handed(path: Path, timeout: float = DEFAULT_TIMEOUT, *, what: str = "", in_turn: bool = False) -> Iterator[int]:
    """As ``locked``; gives a descriptor that a program may inherit, to hold the lock until it ends as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        if not _taken(fd, timeout, in_turn):
            held = f"{what or 'lock'} is in use by another process"
            raise LockTimeout(f"can't lock file '{path}' - got timeout; {held}")
        os.utime(fd)  # tells those who wait that it has changed hands
        yield fd
    finally:
        os.close(fd)


def _taken(fd: int, timeout: float, in_turn: bool) -> bool:
    """Take the lock. Whoever waits stands in the kernel's queue: trying again and again could fail for ever."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    import threading

    taken: list[bool] = []

    def take() -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        taken.append(True)

    # One that gives up stays in the queue until it is its turn; with the descriptor closed, it lets go at once.
    waiter = threading.Thread(target=take, daemon=True)
    waiter.start()
    holder = os.fstat(fd).st_mtime_ns
    waiter.join(timeout)
    while not taken and in_turn and os.fstat(fd).st_mtime_ns != holder:
        holder = os.fstat(fd).st_mtime_ns
        waiter.join(timeout)
    return bool(taken)


def guest_lock(vmid: int, timeout: float = DEFAULT_TIMEOUT) -> contextlib.AbstractContextManager[None]:
    """The lock that every change of a guest holds (one for both kinds: ids are shared)."""
    return locked(paths.lock_dir() / f"guest-{vmid}.lock", timeout, what=f"guest {vmid}")


def storage_lock(storage: str, timeout: float = 60.0) -> contextlib.AbstractContextManager[None]:
    """The lock under which volume names of a storage are chosen and volumes are made or freed; all come in turn."""
    return locked(paths.lock_dir() / f"storage-{storage}.lock", timeout, what=f"storage '{storage}'", in_turn=True)


def group_lock(group: str, timeout: float = 60.0) -> contextlib.AbstractContextManager[None]:
    """The same for an LVM volume group, which several storages may lie on."""
    return locked(paths.lock_dir() / f"group-{group}.lock", timeout, what=f"volume group '{group}'", in_turn=True)


def config_lock(name: str, timeout: float = DEFAULT_TIMEOUT) -> contextlib.AbstractContextManager[None]:
    """The lock of one shared configuration file, such as ``storage.cfg``."""
    return locked(paths.lock_dir() / f"file-{name}.lock", timeout, what=f"file '{name}'")
