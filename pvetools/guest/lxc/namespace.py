"""A mount namespace for the length of a block: mounts that go with the process, however it ends.

Volumes of containers are mounted in private namespaces only. That of a start lives on in the container's monitor,
which LXC forks off inside of the block; all others end with the block. So neither a killed tool nor a container that
ends by itself leaves a mount or a loop device behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from pvetools.system.errors import PveError

_CLONE_NEWNS = 0x00020000
MS_BIND = 4096
_MS_REC, _MS_SLAVE = 16384, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise PveError(f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, flags: int = MS_BIND, *, fstype: str = "", data: str = "") -> None:
    """The system call itself; the target may be ``/proc/self/fd/N``, which no link can divert.

    Raises:
        PveError: with the system's reason.
    """
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"can't mount '{source}' on '{target}'")


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Give the calling thread, and what it starts, mounts of its own; those of the host still come in.

    Raises:
        PveError: the system refused (not root).
    """
    home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWNS), "can't make a mount namespace")
        try:
            mount("none", "/", _MS_REC | _MS_SLAVE)
            yield
        finally:
            _check(_libc.setns(before, _CLONE_NEWNS), "can't go back to the host's mount namespace")
            os.fchdir(home)
    finally:
        os.close(before)
        os.close(home)
