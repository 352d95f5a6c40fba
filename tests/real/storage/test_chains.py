"""Snapshots as chains of files: the contract of all storages, the layout of Proxmox VE, and what interrupts leave."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import filechains, volumes
from pvetools.system import paths
from pvetools.system.errors import PveError, Refused
from tests.real.storage_vm.beds import STORAGE, Bed, foreign_file
from tests.real.storage_vm.contract import *  # noqa: F403 - the tests are the point
from tests.real.storage_vm.contract import MIB, SIZE, Case, holds, put
from tests.sandbox.root import Root, fresh


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    with fresh() as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PVETOOLS_ROOT", str(root.path))
        place = root / "store"
        section = f"dir: {STORAGE}\n\tpath {place}\n\tsnapshot-as-volume-chain 1\n"
        paths.storage_config().write_text(f"{section}\tcontent images,rootdir\n")
        yield Case(Bed(section, foreign_file(str(place)), thin=True), "qcow2")


@pytest.fixture
def cli(case: Case) -> Callable[..., str]:
    root = Root.__new__(Root)
    root.path = paths.root()

    def run(tool: str, *arguments: object) -> str:
        done = subprocess.run(root.argv(tool, *arguments), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def below(volid: str) -> list[str]:
    return sorted(path.name for path in volumes.path(volid).parent.iterdir())


def backing(path: Path) -> str:
    told = subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True, timeout=60)
    return json.loads(told.stdout).get("backing-filename", "")


def test_the_layout_is_that_of_proxmox_ve(empty: Case) -> None:
    volid = empty.alloc(300)
    path = volumes.path(volid)
    volumes.snapshot(volid, "one")
    volumes.snapshot(volid, "two")
    assert below(volid) == [
        "snap-one-vm-300-disk-0.qcow2", "snap-two-vm-300-disk-0.qcow2", "vm-300-disk-0.qcow2",
    ]  # fmt: skip
    assert backing(path) == "snap-two-vm-300-disk-0.qcow2"
    assert backing(path.with_name("snap-two-vm-300-disk-0.qcow2")) == "snap-one-vm-300-disk-0.qcow2"
    assert backing(path.with_name("snap-one-vm-300-disk-0.qcow2")) == ""
    with pytest.raises(PveError, match="it is the file of a snapshot"):
        volumes.free(f"{STORAGE}:300/snap-one-vm-300-disk-0.qcow2")
    volumes.free(volid)
    assert not path.parent.exists()


def test_snapshots_of_programs_are_no_volumes_either(empty: Case) -> None:
    volid = empty.alloc()
    volumes.snapshot(volid, "__migration__")
    assert [found.volid for found in volumes.list_volumes(STORAGE)] == [volid]
    with pytest.raises(PveError, match="it is the file of a snapshot"):
        volumes.free(f"{STORAGE}:100/snap-__migration__-vm-100-disk-0.qcow2")


def test_a_name_whose_snapshots_could_not_be_told_from_volumes_gets_none(empty: Case) -> None:
    volid = empty.alloc(300, name="data.qcow2")
    with pytest.raises(Refused, match="can't have snapshots as files beside it: its name does not begin with vm-ID-"):
        volumes.snapshot(volid, "one")
    assert below(volid) == ["data.qcow2"]


def test_a_volume_leaves_the_snapshots_of_one_with_a_longer_name(empty: Case) -> None:
    short, long = empty.alloc(300, name="vm-300-x.qcow2"), empty.alloc(300, name="vm-300-vm-300-x.qcow2")
    put(long, 0x11)
    volumes.snapshot(long, "one")
    volumes.snapshot(short, "before-vm-300-y")
    volumes.free(short)
    assert below(long) == ["snap-one-vm-300-vm-300-x.qcow2", "vm-300-vm-300-x.qcow2"]
    assert holds(long, 0x11)


def test_a_chain_with_absolute_names_is_understood(empty: Case) -> None:
    volid = empty.alloc(300)
    path = volumes.path(volid)
    put(volid, 0x11)
    volumes.snapshot(volid, "one")
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", filechains.layer(path, "one"), path], check=True, timeout=60
    )
    assert [found.name for found in volumes.snapshots(volid)] == ["one"]
    volumes.delete_snapshot(volid, "one")
    assert holds(volid, 0x11)
    assert below(volid) == [path.name]


def test_a_linked_clone_keeps_its_base_below_its_snapshots(empty: Case) -> None:
    source = empty.alloc(300)
    put(source, 0x21)
    base = volumes.make_base(source)
    clone = volumes.clone(base, 101)
    volumes.snapshot(clone, "one")
    put(clone, 0x22, SIZE // 2)
    volumes.snapshot(clone, "two")
    assert clone in empty.listed()
    with pytest.raises(Refused, match="is still in use by linked clone"):
        volumes.free(base)
    volumes.delete_snapshot(clone, "one")
    assert holds(clone, 0x21)
    volumes.delete_snapshot(clone, "two")
    assert holds(clone, 0x21)
    assert holds(clone, 0x22, SIZE // 2)
    assert backing(volumes.path(clone)) == "../300/base-300-disk-0.qcow2"
    assert clone in empty.listed()


def test_a_volume_that_grew_after_a_snapshot_goes_back_to_its_size(empty: Case) -> None:
    volid = empty.alloc(300)
    put(volid, 0x31)
    volumes.snapshot(volid, "one")
    volumes.resize(volid, 2 * SIZE)
    put(volid, 0x32, 2 * SIZE - MIB)
    volumes.snapshot(volid, "two")
    volumes.delete_snapshot(volid, "one")
    assert holds(volid, 0x31)
    assert holds(volid, 0x32, 2 * SIZE - MIB)
    volumes.delete_snapshot(volid, "two")
    volumes.snapshot(volid, "three")
    volumes.resize(volid, 3 * SIZE)
    volumes.rollback(volid, "three")
    assert volumes.info(volid).size == 2 * SIZE


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("step", ["hardlink_to", "rename"])
def test_an_interrupted_snapshot_leaves_the_volume(empty: Case, step: str, links: bool) -> None:
    """Power goes right after one of its steps, so nothing is undone either."""
    volid = empty.alloc(300)
    put(volid, 0x41)
    path = volumes.path(volid)
    real = {name: getattr(Path, name) for name in ("hardlink_to", "rename")}

    def cut(self: Path, target: Path) -> Path:
        if not links and step == "hardlink_to":
            real["rename"](path, self)
        else:
            real[step](self, target)
        os._exit(9)

    pid = os.fork()
    if not pid:
        try:
            setattr(Path, step, cut)
            if not links and step == "rename":
                Path.hardlink_to = lambda *_: (_ for _ in ()).throw(OSError(95, "not supported"))
            volumes.snapshot(volid, "one")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert holds(volid, 0x41)
    assert volumes.exists(volid)
    if "one" not in {found.name for found in volumes.snapshots(volid)}:
        volumes.snapshot(volid, "one")
    put(volid, 0x42)
    volumes.rollback(volid, "one")
    assert holds(volid, 0x41)
    volumes.free(volid)
    assert not path.parent.exists()


def test_an_interrupted_snapshot_leaves_no_second_name_when_another_one_is_made(empty: Case) -> None:
    volid = empty.alloc(300)
    put(volid, 0x51)
    path = volumes.path(volid)
    filechains.layer(path, "one").hardlink_to(path)  # power went right after this
    volumes.snapshot(volid, "two")
    assert below(volid) == [f"snap-two-{path.name}", path.name]
    volumes.snapshot(volid, "one")
    put(volid, 0x52)
    volumes.delete_snapshot(volid, "two")
    volumes.rollback(volid, "one")
    assert holds(volid, 0x51)


def test_a_volume_on_a_snapshot_that_is_missing_is_listed_and_can_be_removed(empty: Case) -> None:
    volid = empty.alloc(300)
    path = volumes.path(volid)
    for name in ("one", "two"):
        volumes.snapshot(volid, name)
    filechains.layer(path, "one").unlink()
    upper, lower = filechains.layer(path, "two"), filechains.layer(path, "one")
    with pytest.raises(PveError, match=f"'{upper}' lies on '{lower}', which is missing"):
        volumes.snapshots(volid)
    assert [(found.volid, found.size) for found in volumes.list_volumes(STORAGE)] == [(volid, SIZE)]
    upper.unlink()
    with pytest.raises(PveError, match=f"'{path}' lies on '{upper}', which is missing"):
        volumes.snapshot(volid, "three")
    assert volid in empty.listed()
    volumes.free(volid)
    assert not path.parent.exists()
