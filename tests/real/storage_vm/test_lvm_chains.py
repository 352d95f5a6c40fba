"""Snapshots as chains of logical volumes: the layout of Proxmox VE, foreign headers, interrupts, shared groups."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path

import pytest

from pvetools.storage import volumechains, volumes
from pvetools.storage.backends.lvm import VolumeGroup
from pvetools.system import log, paths, run
from pvetools.system.errors import Exists, NotFound, PveError, Refused
from tests.real.storage_vm.beds import STORAGE, sh
from tests.real.storage_vm.contract import MIB, SIZE, holds, in_use, put
from tests.real.storage_vm.test_lvm import Define, define, field, group, names  # noqa: F401 - fixtures among them

OWN = "vm-100-disk-0.qcow2"
VOLID = f"{STORAGE}:{OWN}"


@pytest.fixture
def chains(define: Define) -> Define:  # noqa: F811
    """Define the storage with chains, and perhaps more options."""

    def with_more(**options: object) -> None:
        define(snapshot__as__volume__chain=1, **options)

    with_more()
    return with_more


def new(size: int = SIZE) -> str:
    return volumes.alloc(STORAGE, 100, size, format="qcow2")


def layer(snapshot: str) -> str:
    return f"snap_vm-100-disk-0_{snapshot}.qcow2"


def kept() -> list[str]:
    return [found.name for found in volumes.snapshots(VOLID)]


def about(own: str) -> dict:
    """What an image's header says, by QEMU's own tool."""
    sh(f"lvchange -ay vgdata/{own}")
    return json.loads(sh(f"qemu-img info -U --output=json /dev/vgdata/{own}"))


# The layout.


def test_the_layout_is_that_of_proxmox_ve(chains: Define) -> None:
    assert new() == VOLID
    volumes.snapshot(VOLID, "one")
    volumes.snapshot(VOLID, "two")
    assert names() == [layer("one"), layer("two"), OWN]
    for own, below in ((OWN, layer("two")), (layer("two"), layer("one")), (layer("one"), None)):
        found = about(own)
        assert found.get("backing-filename") == below
        assert found.get("backing-filename-format") == ("qcow2" if below else None)
        assert found["cluster-size"] == (128 << 10 if below else 64 << 10)
        assert found["virtual-size"] == SIZE
        assert field(f"vgdata/{own}", "lv_tags") == "pve-vm-100"
        assert not field(f"vgdata/{own}", "lv_autoactivation")
        assert int(field(f"vgdata/{own}", "lv_size")) > SIZE
    assert volumes.path(VOLID) == Path("/dev/vgdata", OWN)
    with pytest.raises(PveError):
        volumes.free(f"{STORAGE}:{layer('one')}")
    volumes.free(VOLID)
    assert names() == []


def test_qcow2_is_what_is_made_when_nobody_says_otherwise(chains: Define) -> None:
    assert volumes.alloc(STORAGE, 100, SIZE) == VOLID
    raw = volumes.alloc(STORAGE, 100, SIZE, format="raw")
    assert raw == f"{STORAGE}:vm-100-disk-1"
    with pytest.raises(Refused, match="has no snapshots of volumes of format 'raw'"):
        volumes.snapshot(raw, "first")


@pytest.mark.parametrize("start", ["", "/dev/vgdata/"], ids=["relative", "absolute"])
def test_a_chain_of_a_real_node_is_used_as_it_is(chains: Define, start: str) -> None:
    one, two = layer("one"), layer("two")
    form = "-F qcow2 -o extended_l2=on,cluster_size=128k"
    sh(
        f"lvcreate -qy -L 36M -n {one} --addtag pve-vm-100 vgdata; qemu-img create -q -f qcow2 /dev/vgdata/{one} 32M\n"
        f"qemu-io -f qcow2 -c 'write -P 1 0 64k' /dev/vgdata/{one}"
    )
    for own, below in ((two, one), (OWN, two)):
        sh(f"lvcreate -qy -L 36M -n {own} --addtag pve-vm-100 vgdata")
        sh(f"cd /dev/vgdata; qemu-img create -q -f qcow2 {form} -b {start}{below} /dev/vgdata/{own}")
    sh(f"qemu-io -f qcow2 -c 'write -P 3 64k 64k' /dev/vgdata/{OWN}; vgchange -qan vgdata")
    assert [(found.volid, found.size) for found in volumes.list_volumes(STORAGE)] == [(VOLID, SIZE)]
    assert kept() == ["one", "two"]
    assert holds(VOLID, 1)
    assert holds(VOLID, 3, 64 << 10)
    volumes.rollback(VOLID, "two")
    assert holds(VOLID, 0, 64 << 10)
    volumes.delete_snapshot(VOLID, "one")
    volumes.snapshot(VOLID, "three")
    assert kept() == ["two", "three"]
    assert holds(VOLID, 1)
    volumes.free(VOLID)
    assert names() == []


def test_without_the_option_qcow2_images_are_not_shown_as_disks(chains: Define, define: Define) -> None:  # noqa: F811
    new()
    define()
    assert volumes.list_volumes(STORAGE) == []
    with pytest.raises(NotFound):
        volumes.source(VOLID)


# What headers say.

FOREIGN = [
    "/etc/passwd", "/dev/vda", "passwd", "/dev/vgdata/vm-900-disk-0.qcow2", "snap_vm-900-disk-0_one.qcow2",
    "../vda", "/dev/vgdata/../vda", "snap_vm-100-disk-0_gone.qcow2", "nbd://127.0.0.1/x",
    'json:{"driver":"host_device","filename":"/dev/vda"}', OWN,
]  # fmt: skip


def test_foreign_names_in_headers_are_not_believed(chains: Define) -> None:
    other = volumes.alloc(STORAGE, 900, SIZE, format="qcow2")
    volumes.snapshot(other, "one")
    new()
    volumes.snapshot(VOLID, "one")
    acts = [
        lambda: volumes.snapshots(VOLID), lambda: volumes.snapshot(VOLID, "two"),
        lambda: volumes.rollback(VOLID, "one"), lambda: volumes.delete_snapshot(VOLID, "one"),
        lambda: volumes.resize(VOLID, 2 * SIZE),
    ]  # fmt: skip
    for name, act in zip(FOREIGN, cycle(acts), strict=False):
        sh(f"lvchange -ay vgdata/{OWN}; qemu-img rebase -u -f qcow2 -F qcow2 -b '{name}' /dev/vgdata/{OWN}")
        for attempt in (act, lambda: volumes.source(VOLID)):
            with pytest.raises(PveError, match="which is no snapshot of it"):
                attempt()
    assert volumes.info(VOLID).size == SIZE
    volumes.free(VOLID)
    assert names() == ["snap_vm-900-disk-0_one.qcow2", "vm-900-disk-0.qcow2"]
    assert holds(other, 0)


def test_an_image_that_keeps_its_data_elsewhere_is_not_used(chains: Define) -> None:
    new()
    sh(f"cd /var/tmp; qemu-img create -q -f qcow2 -o data_file=/var/tmp/data /dev/vgdata/{OWN} 32M")
    with pytest.raises(PveError, match="keeps its data elsewhere"):
        volumes.source(VOLID)
    assert volumes.list_volumes(STORAGE)[0].volid == VOLID
    volumes.free(VOLID)


def test_what_is_no_image_is_listed_and_can_be_removed(chains: Define) -> None:
    new()
    sh(f"dd if=/dev/urandom of=/dev/vgdata/{OWN} bs=64k count=1 oflag=direct status=none")
    assert [found.volid for found in volumes.list_volumes(STORAGE)] == [VOLID]
    with pytest.raises(PveError, match="does not begin with a qcow2 header"):
        volumes.source(VOLID)
    volumes.free(VOLID)
    assert names() == []


# Sizes.


def test_an_image_that_grew_can_be_written_completely(chains: Define) -> None:
    new(19 * MIB)
    volumes.snapshot(VOLID, "one")
    for size in (23, 51, 99):
        volumes.resize(VOLID, size * MIB)
        put(VOLID, size, 0, size * MIB)
        assert holds(VOLID, size, 0, size * MIB)
    assert volumes.info(VOLID).size == 99 * MIB
    volumes.snapshot(VOLID, "two")
    put(VOLID, 7, 0, 99 * MIB)
    volumes.rollback(VOLID, "two")
    assert holds(VOLID, 99, 0, 99 * MIB)


def test_the_oldest_snapshot_grows_when_it_takes_in_what_grew(chains: Define) -> None:
    new()
    put(VOLID, 1)
    volumes.snapshot(VOLID, "one")
    volumes.resize(VOLID, 3 * SIZE)
    put(VOLID, 2, 2 * SIZE, SIZE)
    volumes.snapshot(VOLID, "two")
    volumes.delete_snapshot(VOLID, "one")
    assert names() == [layer("two"), OWN]
    assert "backing-filename" not in about(layer("two"))
    volumes.delete_snapshot(VOLID, "two")
    assert names() == [OWN]
    assert field(f"vgdata/{OWN}", "lv_tags") == "pve-vm-100"
    assert volumes.info(VOLID).size == 3 * SIZE
    assert holds(VOLID, 1)
    assert holds(VOLID, 0, SIZE, SIZE)
    assert holds(VOLID, 2, 2 * SIZE, SIZE)
    put(VOLID, 3, 0, 3 * SIZE)
    assert holds(VOLID, 3, 0, 3 * SIZE)


def test_a_rollback_brings_the_size_back(chains: Define) -> None:
    new()
    volumes.snapshot(VOLID, "one")
    volumes.resize(VOLID, 2 * SIZE)
    put(VOLID, 1, SIZE)
    volumes.rollback(VOLID, "one")
    assert volumes.info(VOLID).size == SIZE


@pytest.mark.timeout(900)
def test_a_snapshot_for_which_there_is_no_room_harms_nothing(chains: Define) -> None:
    new(1 << 30)
    put(VOLID, 1)
    for number in count():
        assert number < 9
        try:
            volumes.snapshot(VOLID, f"number{number}")
        except PveError as error:
            assert f"storage '{STORAGE}' is full: no space for a volume of 1.00 GiB" in str(error)
            break
    assert kept() == [f"number{number}" for number in range(len(kept()))]
    assert len(names()) == len(kept()) + 1
    assert holds(VOLID, 1)
    with pytest.raises(PveError, match="is full"):
        volumes.rollback(VOLID, kept()[-1])
    assert holds(VOLID, 1)
    assert len(names()) == len(kept()) + 1


# In use, and at once.


def test_a_volume_in_use_keeps_its_chain(chains: Define) -> None:
    new()
    volumes.snapshot(VOLID, "one")
    with in_use(volumes.source(VOLID)):
        for act in (volumes.snapshot, volumes.delete_snapshot, volumes.rollback):
            name = "two" if act is volumes.snapshot else "one"
            with pytest.raises(Refused, match="is in use by a running QEMU"):
                act(VOLID, name)
        with pytest.raises(Refused, match="is in use by a running QEMU"):
            volumes.resize(VOLID, 2 * SIZE)
    assert kept() == ["one"]
    assert names() == [layer("one"), OWN]


def _delete(name: str) -> None:
    volumes.delete_snapshot(VOLID, name)


def test_snapshots_that_are_removed_at_once_do_not_meet(chains: Define) -> None:
    new()
    for number, name in enumerate(("one", "two", "three", "four"), 1):
        put(VOLID, number, (number - 1) * MIB, MIB)
        volumes.snapshot(VOLID, name)
    put(VOLID, 5, 4 * MIB, MIB)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_delete, ["three", "one", "two"], chunksize=1)
    assert kept() == ["four"]
    assert names() == [layer("four"), OWN]
    assert all(holds(VOLID, number, (number - 1) * MIB, MIB) for number in range(1, 6))
    volumes.rollback(VOLID, "four")
    assert holds(VOLID, 4, 3 * MIB, MIB)
    assert holds(VOLID, 0, 4 * MIB, MIB)


# Interrupts: the process ends after each of its commands in turn.


def cut_after(number: int, act: Callable[[], None]) -> bool:
    """Do something in a process that ends without undoing anything after so many commands that change something.

    Returns:
        Whether it was through.
    """
    pid = os.fork()
    if not pid:
        real, left = run.run, [number]

        def counted(words: list, **options: object) -> run.Completed:
            done = real(words, **options)
            looks = {"lvs", "vgs", "measure", "-aln", "-K"} & {*words}
            if not looks or words[0] == "lvcreate":
                left[0] -= 1
                if left[0] <= 0:
                    os._exit(9)
            return done

        try:
            run.run = counted
            act()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 0


def cuts(act: Callable[[], None]) -> Iterator[None]:
    """Try something again and again, cut a step later each time, until it is through."""
    for number in range(1, 40):
        through = cut_after(number, act)
        yield
        if through:
            assert number > 3
            return
    raise AssertionError("it does not end")


def settled(*wanted: str) -> None:
    """The next command that removes something leaves nothing but these volumes."""
    driver = volumes.usable(STORAGE)
    assert isinstance(driver, VolumeGroup)
    driver.finish_removals(slow=True)
    assert names() == sorted(wanted)
    assert {field(f"vgdata/{own}", "lv_tags") for own in wanted} == {"pve-vm-100"}


@pytest.mark.timeout(900)
def test_an_interrupted_snapshot_is_one_or_none(chains: Define) -> None:
    new()
    put(VOLID, 1)
    for _ in cuts(lambda: volumes.snapshot(VOLID, "one")):
        assert holds(VOLID, 1)
        if kept():
            volumes.delete_snapshot(VOLID, "one")
        settled(OWN)
    assert holds(VOLID, 1)


@pytest.mark.timeout(900)
def test_an_interrupted_rollback_took_place_or_not(chains: Define) -> None:
    new()
    put(VOLID, 1)
    volumes.snapshot(VOLID, "one")
    put(VOLID, 2)
    for _ in cuts(lambda: volumes.rollback(VOLID, "one")):
        assert kept() == ["one"]
        if not holds(VOLID, 2):
            assert holds(VOLID, 1)
            put(VOLID, 2)
        settled(layer("one"), OWN)


@pytest.mark.timeout(900)
def test_an_interrupted_removal_of_a_snapshot_in_the_middle_can_be_done_again(chains: Define) -> None:
    new()
    put(VOLID, 1)
    volumes.snapshot(VOLID, "one")
    put(VOLID, 2)
    volumes.snapshot(VOLID, "two")
    put(VOLID, 3, SIZE // 2)
    for _ in cuts(lambda: volumes.delete_snapshot(VOLID, "two")):
        assert holds(VOLID, 2)
        assert holds(VOLID, 3, SIZE // 2)
        if kept() == ["one"] and layer("two") in names():
            with pytest.raises(Exists, match=r"the removal of snapshot 'two' .* was interrupted, remove it first"):
                volumes.snapshot(VOLID, "two")
        if layer("two") in names():
            volumes.delete_snapshot(VOLID, "two")
        settled(layer("one"), OWN)
        volumes.snapshot(VOLID, "two")
    volumes.delete_snapshot(VOLID, "two")
    volumes.rollback(VOLID, "one")
    assert holds(VOLID, 1)


@pytest.mark.timeout(900)
def test_an_interrupted_removal_of_the_oldest_snapshot_can_be_done_again(chains: Define) -> None:
    new()
    put(VOLID, 1)
    volumes.snapshot(VOLID, "one")
    put(VOLID, 2)
    for _ in cuts(lambda: volumes.delete_snapshot(VOLID, "one")):
        assert holds(VOLID, 2)
        if kept():
            volumes.delete_snapshot(VOLID, "one")
        settled(OWN)
        volumes.snapshot(VOLID, "one")
    assert holds(VOLID, 2)


def test_a_newer_snapshot_outlives_an_interrupted_removal_of_the_oldest(chains: Define) -> None:
    new()
    volumes.snapshot(VOLID, "one")
    put(VOLID, 2)
    volumes.snapshot(VOLID, "two")
    put(VOLID, 3)
    assert not cut_after(5, lambda: volumes.delete_snapshot(VOLID, "one"))
    assert f"del-{layer('two')}" in names()
    assert layer("two") not in names()
    assert kept() == ["two"]
    assert holds(VOLID, 3)
    settled(layer("two"), OWN)
    volumes.rollback(VOLID, "two")
    assert holds(VOLID, 2)


def test_a_state_that_is_lost_is_not_given_back(chains: Define) -> None:
    new()
    volumes.snapshot(VOLID, "one")
    put(VOLID, 2)
    assert not cut_after(1, lambda: volumes.delete_snapshot(VOLID, "one"))
    with pytest.raises(Refused, match="the removal of that snapshot was interrupted, so its state is lost"):
        volumes.rollback(VOLID, "one")
    assert holds(VOLID, 2)
    volumes.delete_snapshot(VOLID, "one")
    assert holds(VOLID, 2)


def test_a_killed_removal_that_was_through_gives_its_state_to_the_volume(chains: Define) -> None:
    new()
    put(VOLID, 1)
    volumes.snapshot(VOLID, "one")
    put(VOLID, 2)
    mark = f"pvetools-merged-{paths.node()}/{OWN}"
    sh(
        f"lvchange -ay vgdata/{layer('one')}; qemu-img commit -q -d /dev/vgdata/{OWN}\n"
        f"lvchange -q --addtag pvetools-merging --addtag {mark} vgdata/{layer('one')}\n"
        f"lvrename -q vgdata {OWN} del-{OWN}; lvchange -q --addtag pvetools-wipe-{paths.node()} vgdata/del-{OWN}"
    )
    said: list[str] = []
    with log.only(said.append):
        assert holds(VOLID, 2)
    assert said == [f"storage '{STORAGE}': going on with the interrupted removal of '{layer('one')}'"]
    assert kept() == []
    settled(OWN)


# Shared groups.


def active() -> list[str]:
    return sh("lvs --noheadings -o lv_name -S lv_active=active vgdata").split()


def test_a_chain_of_a_shared_group_is_active_only_where_it_is_used(chains: Define) -> None:
    chains(shared=1)
    new()
    volumes.snapshot(VOLID, "one")
    volumes.snapshot(VOLID, "two")
    volumes.resize(VOLID, 2 * SIZE)
    assert active() == []
    assert volumes.list_volumes(STORAGE)[0].size >= 2 * SIZE
    assert volumes.info(VOLID).size == 2 * SIZE
    assert kept() == ["one", "two"]
    assert active() == []
    assert holds(VOLID, 0)
    assert active() == [layer("one"), layer("two"), OWN]
    volumes.rollback(VOLID, "two")
    volumes.delete_snapshot(VOLID, "one")
    volumes.delete_snapshot(VOLID, "two")
    assert names() == [OWN]
    volumes.free(VOLID)
    assert names() == []


def test_a_snapshot_that_another_node_has_made_is_seen(chains: Define) -> None:
    chains(shared=1)
    new()
    put(VOLID, 1)
    volumes.source(VOLID)
    # another node changes the metadata on the LUN, and this kernel learns nothing of it
    size, tags = int(field(f"vgdata/{OWN}", "lv_size")), "--addtag pve-vm-100"
    sh(f"lvrename -q --driverloaded n vgdata {OWN} {layer('one')}")
    sh(f"lvcreate -qy -L {size}b -n temp {tags} vgdata; echo; lvs vgdata")
    volumechains.make(Path("/dev/vgdata/temp"), SIZE, layer("one"))
    sh(f"lvchange -an vgdata/temp; lvrename -q --driverloaded n vgdata temp {OWN}")
    assert holds(VOLID, 1)
    put(VOLID, 2)
    assert kept() == ["one"]
    volumes.rollback(VOLID, "one")
    assert holds(VOLID, 1)
