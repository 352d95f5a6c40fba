"""Images in a Ceph cluster, reached by Ceph's library: the contract of all backends, and what is RBD's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pvetools.storage import defining, secrets, volumes
from pvetools.storage.backends import rbd as backends
from pvetools.system import paths
from pvetools.system.errors import Exists, PveError, Refused
from tests.real.ceph import MONITOR, Cluster
from tests.real.storage_vm.beds import STORAGE, Bed
from tests.real.storage_vm.cephs import USER, foreign, section
from tests.real.storage_vm.conftest import cli, module_root  # noqa: F401 - fixtures
from tests.real.storage_vm.contract import *  # noqa: F403 - the tests are the point
from tests.real.storage_vm.contract import Case, holds, put


@pytest.fixture(scope="module")
def case(cluster: Cluster, module_root: Path) -> Iterator[Case]:  # noqa: F811
    """The cluster as that of other hosts: by its monitors and a key."""
    secrets.write(STORAGE, "rbd", {"keyring": cluster.keyring(USER).read_text()})
    paths.storage_config().write_text(section("content images,rootdir"))
    yield Case(Bed(section(), foreign(cluster), thin=True), "raw")


# What is RBD's own.


@pytest.fixture
def define(case: Case, cluster: Cluster, module_root: Path) -> Iterator[Callable[..., None]]:  # noqa: F811
    """Change the storage's definition for one test; lines of monitors and pool are there unless given."""

    def write(*more: str) -> None:
        paths.storage_config().write_text(section(*more))

    yield write
    write("content images,rootdir")


def rbd(cluster: Cluster, *words: object) -> Any:
    return json.loads(cluster.run("rbd", *words, "--format", "json"))


def test_images_are_those_of_proxmox_ve(empty: Case, cluster: Cluster) -> None:
    """Names, format and the snapshot below clones; what was made there is used here as it is."""
    base = volumes.make_base(empty.alloc())
    clone = volumes.clone(base, 101)
    assert (base, clone) == (f"{STORAGE}:base-100-disk-0", f"{STORAGE}:base-100-disk-0/vm-101-disk-0")
    told = rbd(cluster, "info", "vms/vm-101-disk-0")
    assert (told["format"], told["parent"]["image"], told["parent"]["snapshot"]) == (2, "base-100-disk-0", "__base__")
    (kept,) = rbd(cluster, "snap", "ls", "vms/base-100-disk-0")
    assert (kept["name"], str(kept["protected"])) == ("__base__", "true")
    assert volumes.info(clone).parent == "base-100-disk-0@__base__"
    assert volumes.snapshots(base) == []
    cluster.run("rbd", "create", "--size", "8M", "vms/vm-102-state-suspend")
    cluster.run("rbd", "snap", "create", "--no-progress", "vms/vm-102-state-suspend@before")
    found = empty.listed()[f"{STORAGE}:vm-102-state-suspend"]
    assert (found.vmid, found.size) == (102, 8 << 20)
    assert [row.name for row in volumes.snapshots(found.volid)] == ["before"]


def test_a_linked_clone_can_be_a_base_itself(empty: Case) -> None:
    clone = volumes.clone(volumes.make_base(empty.alloc()), 101)
    put(clone, 0x21)
    base = volumes.make_base(clone)
    assert base == f"{STORAGE}:base-100-disk-0/base-101-disk-0"
    second = volumes.clone(base, 102)
    assert second == f"{STORAGE}:base-101-disk-0/vm-102-disk-0"
    assert holds(second, 0x21)
    with pytest.raises(Refused, match=r"still in use by linked clone 'vms/vm-102-disk-0'"):
        volumes.free(base)


def test_what_was_cut_off_is_finished_by_the_next_command(empty: Case, cluster: Cluster) -> None:
    volid = empty.alloc()
    put(volid, 0x31)
    cluster.run("rbd", "snap", "create", "--no-progress", "vms/vm-100-disk-0@__base__")
    cluster.run("rbd", "snap", "protect", "vms/vm-100-disk-0@__base__")
    put(volid, 0x32)
    assert volumes.snapshots(volid) == []
    base = volumes.make_base(volid)
    clone = volumes.clone(base, 101)
    assert holds(clone, 0x32)
    volumes.free(clone)
    ident = rbd(cluster, "info", "vms/base-100-disk-0")["id"]
    cluster.run("rados", "-p", "vms", "rm", f"rbd_header.{ident}")
    volumes.free(base)
    assert {*cluster.run("rbd", "ls", "vms").split()} <= {"backup"}


def test_other_nodes_take_names_too(empty: Case, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was free a moment ago is refused by the cluster; the next one is tried."""
    asked = []
    taken = backends.Rbd.taken

    def late(self: backends.Rbd) -> Any:
        found = taken(self)
        if not asked:
            cluster.run("rbd", "create", "--size", "8M", "vms/vm-100-disk-0")
        asked.append(found)
        return found

    monkeypatch.setattr(backends.Rbd, "taken", late)
    assert empty.alloc() == f"{STORAGE}:vm-100-disk-1"
    with pytest.raises(Exists):
        empty.alloc(name="vm-100-disk-0")


def test_a_namespace_is_a_place_of_its_own(define: Callable[..., None], empty: Case, cluster: Cluster) -> None:
    cluster.run("rbd", "namespace", "create", "vms/inner")
    outside = empty.alloc()
    put(outside, 0x41)
    define("namespace inner")
    assert not empty.listed()
    inside = empty.alloc()
    assert inside == outside
    put(inside, 0x42)
    assert holds(inside, 0x42)
    volumes.snapshot(inside, "first")
    base = volumes.make_base(volumes.clone(volumes.make_base(empty.alloc(102)), 103))
    assert base == f"{STORAGE}:base-102-disk-0/base-103-disk-0"
    with pytest.raises(Refused, match="still in use by linked clone 'vms/inner/base-103-disk-0'"):
        volumes.free(f"{STORAGE}:base-102-disk-0")
    empty.free_all()
    define()
    assert holds(outside, 0x41)


def test_data_can_lie_in_another_pool(define: Callable[..., None], empty: Case, cluster: Cluster) -> None:
    cluster.add_pool("bulk")
    both = "profile rbd pool=vms, profile rbd pool=bulk"
    cluster.ask("auth caps", entity=f"client.{USER}", caps=["mon", "profile rbd", "osd", both])
    define("data-pool bulk")
    volid = empty.alloc()
    assert rbd(cluster, "info", "vms/vm-100-disk-0")["data_pool"] == "bulk"
    put(volid, 0x51)
    clone = volumes.clone(volumes.make_base(volid), 101)
    assert rbd(cluster, "info", "vms/vm-101-disk-0")["data_pool"] == "bulk"
    assert holds(clone, 0x51)
    assert volumes.status(STORAGE)[0].active
    define("data-pool nowhere")
    assert "tells nothing of pool 'nowhere': it does not exist, or is new" in volumes.status(STORAGE)[0].reason


def test_the_cluster_of_this_host_is_used_without_monitors(case: Case, cluster: Cluster) -> None:
    before = paths.storage_config().read_text()
    config = paths.etc_pve() / "ceph.conf"
    config.write_text(cluster.config.read_text())
    place = paths.etc_pve() / "priv/ceph.client.admin.keyring"
    place.write_text(cluster.keyring().read_text())
    try:
        paths.storage_config().write_text("rbd: here\n\tpool vms\n\tcontent images\n")
        volid = volumes.alloc("here", 100, 8 << 20)
        put(volid, 0x61)
        assert holds(volid, 0x61)
        network = volumes.source(volid).network
        assert network
        assert (network.user, network.secret, network.config, network.hosts) == ("admin", place, config, ())
        volumes.free(volid)
    finally:
        config.unlink()
        place.unlink()
        paths.storage_config().write_text(before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pool": "nowhere"}, r"can't use pool 'nowhere': .*No such file or directory"),
        ({"username": "nobody"}, r"can't use pool 'vms': "),
        ({"monhost": "127.0.0.1:1"}, r"monitor '127.0.0.1:1' does not answer"),
        ({"namespace": "nowhere"}, r"can't use pool 'vms': "),
    ],
)
def test_a_storage_that_cannot_be_used_is_not_defined(
    case: Case, cluster: Cluster, options: dict[str, str], reason: str
) -> None:
    given = {"monhost": MONITOR, "pool": "vms", "username": USER, "keyring": cluster.keyring(USER).read_text()}
    with pytest.raises(PveError, match=f"storage 'other': {reason}") as caught:
        defining.add("other", "rbd", {**given, **options})
    assert "\n" not in str(caught.value)
    assert "other" not in volumes.storages()
    assert not secrets.path("other", "rbd", "keyring").exists()
