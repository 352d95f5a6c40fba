"""The contract of storage backends on what the host itself has: directories, and btrfs on a loop file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator

import pytest

from pvetools.system import paths
from tests.real.storage_vm.beds import STORAGE, Bed, foreign_file, sh
from tests.real.storage_vm.conftest import cli, module_root  # noqa: F401 - fixtures
from tests.real.storage_vm.contract import *  # noqa: F403 - the tests are the point
from tests.real.storage_vm.contract import Case


@contextlib.contextmanager
def directory() -> Iterator[Bed]:
    with tempfile.TemporaryDirectory() as place:
        yield Bed(f"dir: {STORAGE}\n\tpath {place}/store\n", foreign_file(f"{place}/store"), thin=True)


@contextlib.contextmanager
def btrfs_file_system() -> Iterator[str]:
    """An empty file system of 2 GiB, mounted."""
    with tempfile.TemporaryDirectory() as place:
        point = f"{place}/mounted"
        sh(f"truncate -s 2G {place}/disk; mkfs.btrfs -q {place}/disk; mkdir {point}")
        sh(f"mount -o loop {place}/disk {point}")
        try:
            yield point
        finally:
            sh(f"umount {point}")


@contextlib.contextmanager
def btrfs() -> Iterator[Bed]:
    with btrfs_file_system() as point:
        section = f"btrfs: {STORAGE}\n\tpath {point}\n\tis_mountpoint yes\n"
        yield Bed(section, foreign_file(point), thin=True, independent_clones=True)


@contextlib.contextmanager
def btrfs_with_quotas() -> Iterator[Bed]:
    with btrfs_file_system() as point:
        sh(f"btrfs quota enable {point}")
        section = f"btrfs: {STORAGE}\n\tpath {point}\n\tnocow 1\n"
        yield Bed(section, foreign_file(point), thin=True, independent_clones=True)


BEDS: dict[str, Callable[[], contextlib.AbstractContextManager[Bed]]] = {
    "dir": directory, "btrfs": btrfs, "btrfs-quotas": btrfs_with_quotas,
}  # fmt: skip
CASES = [
    *(("dir", form) for form in ("raw", "qcow2", "vmdk", "subvol")),
    *((bed, form) for bed in ("btrfs", "btrfs-quotas") for form in ("raw", "subvol")),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, module_root: object) -> Iterator[Case]:  # noqa: F811
    """A real storage, defined; the next case gets a fresh one."""
    name, form = request.param
    with BEDS[name]() as bed:
        paths.storage_config().write_text(f"{bed.section}\tcontent {bed.content}\n")
        yield Case(bed, form)
        paths.storage_config().unlink()
