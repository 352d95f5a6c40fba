"""Images of Ceph as block devices of the kernel: for containers on any RBD storage, and for everything with krbd.

The whole contract is tried on the host, where Ceph is faster; here is the part of it that the kernel has a hand in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.storage import blockdev, registry, secrets, volumes
from pvetools.system import paths
from pvetools.system.errors import Refused
from tests.real.ceph import Cluster
from tests.real.storage_vm import cephs
from tests.real.storage_vm.beds import STORAGE, Bed, sh
from tests.real.storage_vm.contract import (  # noqa: F401 - a fixture and tests
    Case,
    empty,
    test_a_snapshot_keeps_what_a_volume_held,
    test_a_volume_gets_out_as_a_stream_and_in_again,
    test_a_volume_grows_while_it_is_used_where_the_storage_says_so,
    test_clones_of_a_base_hold_its_data_and_go_their_own_way,
    test_volumes_keep_their_data_apart,
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def vms(module_root: Path) -> Cluster:
    made = cephs.cluster()
    secrets.write(STORAGE, "rbd", {"keyring": made.keyring(cephs.USER).read_text()})
    return made


@pytest.fixture
def case(vms: Cluster) -> Iterator[Case]:
    """A storage with krbd."""
    bed = Bed(cephs.section("krbd 1", "content images,rootdir"), cephs.foreign(vms), thin=True)
    paths.storage_config().write_text(bed.section)
    yield Case(bed, "raw")
    assert mapped() == []
    paths.storage_config().unlink()


@pytest.fixture
def volid(vms: Cluster) -> Iterator[str]:
    """A volume on a storage without krbd."""
    paths.storage_config().write_text(cephs.section("content images,rootdir"))
    made = volumes.alloc(STORAGE, 100, 32 * MIB)
    yield made
    volumes.free(made, missing_ok=True)
    assert mapped() == []
    paths.storage_config().unlink()


def mapped() -> list[str]:
    """Images that the kernel has."""
    return [path.read_text().strip() for path in Path("/sys/bus/rbd/devices").glob("*/name")]


def test_what_is_mounted_is_mapped_and_goes_when_nobody_uses_it(volid: str) -> None:
    assert volumes.source(volid).kind == "network"
    assert mapped() == []
    found = volumes.mountable(volid)
    assert (found.kind, str(found.path)) == ("block", "/dev/rbd/vms/vm-100-disk-0")
    assert volumes.mountable(volid) == found
    assert mapped() == ["vm-100-disk-0"]
    sh(f"mkfs.ext4 -q {found.path}; mkdir -p /mnt/krbd; mount {found.path} /mnt/krbd; echo kept > /mnt/krbd/note; sync")
    with pytest.raises(Refused, match="is in use by the mount '/mnt/krbd'"):
        volumes.free(volid)
    volumes.snapshot(volid, "first")
    volumes.resize(volid, 64 * MIB)
    assert blockdev.size(found.path) == 64 * MIB
    sh(f"resize2fs {found.path}; echo later > /mnt/krbd/note; umount /mnt/krbd")
    volumes.rollback(volid, "first")
    assert mapped() == []
    found = volumes.mountable(volid)
    sh(f"e2fsck -fp {found.path} || test $? = 1; mount {found.path} /mnt/krbd")
    note = Path("/mnt/krbd/note").read_text()
    sh("umount /mnt/krbd")
    assert note == "kept\n"
    volumes.free(volid)
    assert mapped() == []
    assert not found.path.exists()


def test_the_same_name_elsewhere_is_another_image(vms: Cluster, volid: str) -> None:
    outside = volumes.mountable(volid).path
    vms.run("rbd", "namespace", "create", "vms/inner")
    paths.storage_config().write_text(cephs.section("content images,rootdir", "namespace inner", "krbd 1"))
    inside = volumes.alloc(STORAGE, 100, 16 * MIB)
    assert inside == volid
    found = volumes.source(inside)
    assert (found.kind, str(found.path)) == ("block", "/dev/rbd/vms/inner/vm-100-disk-0")
    assert os.path.realpath(found.path) != os.path.realpath(outside)
    assert (blockdev.size(found.path), blockdev.size(outside)) == (16 * MIB, 32 * MIB)
    volumes.free(inside)
    assert outside.exists()
    paths.storage_config().write_text(cephs.section("content images,rootdir"))


def test_a_storage_that_is_removed_leaves_nothing_mapped_but_what_is_used(vms: Cluster, volid: str) -> None:
    used, idle = volumes.mountable(volid).path, volumes.alloc(STORAGE, 100, 16 * MIB)
    volumes.mountable(idle)
    sh(f"mkfs.ext4 -q {used}; mkdir -p /mnt/krbd; mount {used} /mnt/krbd")
    registry.driver(volumes.get(STORAGE)).deactivate()
    assert mapped() == ["vm-100-disk-0"]
    sh("umount /mnt/krbd")
    registry.driver(volumes.get(STORAGE)).deactivate()
    assert mapped() == []
    volumes.free(idle)
