"""Storages on a Ceph cluster in the storage VM; one cluster for all tests of a run, because it fills the memory."""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import secrets
from tests.real import ceph
from tests.real.ceph import Cluster
from tests.real.storage_vm.beds import STORAGE, Bed, sh

USER = "pve"
MARK = b"foreign data " * 100


_began: list[str] = []


@functools.cache
def cluster() -> Cluster:
    """The cluster, with the pool ``vms`` and a user who may use it; one that did not start is not tried again."""
    if _began:
        pytest.fail("the Ceph cluster did not start in an earlier test", pytrace=False)
    _began.append("now")
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    made = stack.enter_context(ceph.make(Path("/run/ceph-test")))
    made.add_pool("vms")
    made.add_user(USER, "mon", "profile rbd", "osd", "profile rbd pool=vms")
    return made


@functools.cache
def with_files() -> Cluster:
    """The same with the file system ``files`` and a user who may use it."""
    made = cluster()
    made.add_daemon("mds", "a", "mon", "profile mds", "mgr", "profile mds", "mds", "allow *", "osd", "allow *")
    stack = contextlib.ExitStack()
    made.add_file_system("files")
    ceph.daemon(made, stack, "mds", "a")
    atexit.register(stack.close)
    made.add_user("files", "mon", "allow r", "mds", "allow rw", "osd", "allow rw pool=files-data")
    made.wait("the file system is served", "mds stat", holds="up:active")
    return made


def foreign(made: Cluster) -> Callable[[], tuple[str, Callable[[], bool]]]:
    """An image of somebody else in the pool."""
    name, content = "backup", made.folder / "foreign"

    def make() -> tuple[str, Callable[[], bool]]:
        if name not in made.run("rbd", "ls", "vms").split():
            content.write_bytes(MARK)
            made.run("rbd", "import", "--no-progress", content, f"vms/{name}")
        return name, untouched

    def untouched() -> bool:
        copy = content.with_name("copy")
        copy.unlink(missing_ok=True)
        made.run("rbd", "export", "--no-progress", f"vms/{name}", copy)
        return copy.read_bytes()[: len(MARK)] == MARK

    return make


def section(*more: str) -> str:
    lines = (f"monhost {ceph.MONITOR}", "pool vms", f"username {USER}", *more)
    return f"rbd: {STORAGE}\n" + "".join(f"\t{line}\n" for line in lines)


@contextlib.contextmanager
def krbd() -> Iterator[Bed]:
    """Images that the kernel maps."""
    made = cluster()
    for name in (STORAGE, "rbd"):  # some tests call a storage as its bed
        secrets.write(name, "rbd", {"keyring": made.keyring(USER).read_text()})
    try:
        yield Bed(section("krbd 1"), foreign(made), thin=True)
    finally:
        sh("rbd device list --format json | grep -q name && rbd device unmap -o force /dev/rbd* || true")
