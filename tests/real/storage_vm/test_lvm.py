"""What only LVM has: tags, volumes of others in the same group, overwriting at removal, shared groups, full pools."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.backup import restore_qemu
from pvetools.storage import convert, transfer, volumes
from pvetools.system import log, paths
from pvetools.system.errors import Exists, NotFound, PveError, Refused
from tests.real.storage_vm import beds
from tests.real.storage_vm.beds import STORAGE, sh
from tests.real.storage_vm.conftest import ENTRY
from tests.real.storage_vm.contract import MIB, SIZE, holds, in_use, put
from tests.unit.backup.samples import write_archive

Define = Callable[..., None]


@pytest.fixture(scope="module")
def group(module_root: Path) -> Iterator[None]:
    with beds.BEDS["lvm"]():
        yield


@pytest.fixture(scope="module")
def pool(module_root: Path) -> Iterator[None]:
    with beds.lvmthin():
        yield


def _define(section: str, **options: object) -> None:
    lines = "".join(f"\t{key.replace('__', '-')} {value}\n" for key, value in options.items())
    paths.storage_config().write_text(f"{section}\tcontent images,rootdir\n{lines}")


@pytest.fixture
def define(group: None) -> Iterator[Define]:
    """Define the storage on a volume group, with options; afterwards the group is empty."""
    yield lambda **options: _define(f"lvm: {STORAGE}\n\tvgname vgdata\n", **options)
    sh("lvremove -qfy vgdata")


@pytest.fixture
def thin(pool: None) -> Iterator[Define]:
    """Define the storage on a thin pool; afterwards the pool is empty."""
    yield lambda **options: _define(f"lvmthin: {STORAGE}\n\tvgname vgthin\n\tthinpool pool\n", **options)
    sh("lvremove -qfy -S pool_lv=pool vgthin")


def names(group: str = "vgdata") -> list[str]:
    """All logical volumes of a group."""
    return sh(f"lvs --noheadings -o lv_name {group}").split()


def field(volume: str, name: str) -> str:
    return sh(f"lvs --noheadings --units b --nosuffix -o {name} {volume}").strip()


def wait_until(done: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# As Proxmox VE makes them.


def test_volumes_are_tagged_with_their_guest_and_do_not_become_active_at_boot(define: Define) -> None:
    define()
    volid = volumes.alloc(STORAGE, 123, SIZE)
    assert volumes.path(volid) == Path("/dev/vgdata/vm-123-disk-0")
    assert field("vgdata/vm-123-disk-0", "lv_tags") == "pve-vm-123"
    assert not field("vgdata/vm-123-disk-0", "lv_autoactivation")


def test_a_volume_that_is_not_active_is_when_somebody_wants_it(define: Define) -> None:
    define()
    volid = volumes.alloc(STORAGE, 100, SIZE)
    put(volid, 0x11)
    sh("vgchange -qan vgdata")
    assert not volumes.path(volid).exists()
    assert volumes.info(volid).size == SIZE
    assert holds(volid, 0x11)
    sh("vgchange -qan vgdata")
    volumes.resize(volid, 2 * SIZE)
    assert holds(volid, 0x11)
    assert holds(volid, 0, SIZE, SIZE)
    sh("vgchange -qan vgdata")
    volumes.free(volid)
    assert not names()


def test_a_group_that_is_not_there_makes_the_storage_inactive(group: None) -> None:
    _define(f"lvm: {STORAGE}\n\tvgname nowhere\n")
    (row,) = volumes.status(STORAGE)
    assert not row.active
    assert "volume group 'nowhere' does not exist" in row.reason
    _define(f"lvmthin: {STORAGE}\n\tvgname vgdata\n\tthinpool nopool\n")
    (row,) = volumes.status(STORAGE)
    assert "volume group 'vgdata' has no thin pool 'nopool'" in row.reason


# Volumes of others.


def test_volumes_of_others_in_the_group_are_left_alone_whatever_their_names(define: Define) -> None:
    define()
    sh(
        "lvcreate -qy -L 64M -T vgdata/thin; lvcreate -qy -V 8M -T vgdata/thin -n vm-100-disk-0;"
        "lvcreate -qy -L 8M -n del-vm-100-disk-7 vgdata; lvcreate -qy -L 8M -n root vgdata"
    )
    before = names()
    assert volumes.list_volumes(STORAGE) == []
    with pytest.raises(NotFound):
        volumes.free(f"{STORAGE}:vm-100-disk-0")
    with pytest.raises(Exists):
        volumes.alloc(STORAGE, 100, SIZE, name="vm-100-disk-0")
    volid = volumes.alloc(STORAGE, 100, SIZE)
    assert volid == f"{STORAGE}:vm-100-disk-1"
    volumes.free(volid)
    assert names() == before


def test_tagged_only_sees_volumes_with_a_tag_of_a_guest(define: Define) -> None:
    define(tagged_only=1)
    sh("lvcreate -qy -L 8M -n vm-200-disk-0 vgdata")
    assert volumes.list_volumes(STORAGE) == []
    with pytest.raises(NotFound):
        volumes.free(f"{STORAGE}:vm-200-disk-0")
    volid = volumes.alloc(STORAGE, 200, SIZE)
    assert volid == f"{STORAGE}:vm-200-disk-1"
    sh("lvchange -q --addtag pve-vm-200 vgdata/vm-200-disk-0")
    assert [found.volid for found in volumes.list_volumes(STORAGE)] == [f"{STORAGE}:vm-200-disk-0", volid]
    define()
    sh("lvchange -q --deltag pve-vm-200 vgdata/vm-200-disk-0")
    assert len(volumes.list_volumes(STORAGE)) == 2


def test_a_volume_with_snapshots_made_by_hand_is_not_removed(define: Define) -> None:
    define()
    volid = volumes.alloc(STORAGE, 100, SIZE)
    sh("lvcreate -qy -s -L 8M -n byhand vgdata/vm-100-disk-0")
    with pytest.raises(Refused, match="has LVM snapshots that were made by hand"):
        volumes.free(volid)
    assert names() == ["byhand", "vm-100-disk-0"]


# Overwriting.


def on_disk(device: str, start: int) -> bytes:
    """What lies on the physical volume where a volume's data were."""
    with Path(device).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(start)
        return file.read(SIZE)


def place_of(volume: str) -> tuple[str, int]:
    """Device and byte at which a volume begins."""
    extents = int(field(volume, "seg_pe_ranges").split(":")[1].split("-")[0])
    device = field(volume, "seg_pe_ranges").split(":")[0]
    start = int(sh(f"pvs --noheadings --units b --nosuffix -o pe_start {device}"))
    return device, start + extents * 4 * MIB


@pytest.mark.parametrize(
    "options", [{}, {"saferemove": 1}, {"saferemove": 1, "saferemove__stepsize": 4}], ids=["plain", "safe", "steps"]
)
def test_a_removed_volume_leaves_nothing_on_the_disk(define: Define, options: dict[str, int]) -> None:
    define(**options)
    volid = volumes.alloc(STORAGE, 100, SIZE)
    device, start = place_of("vgdata/vm-100-disk-0")
    put(volid, 0x66, 0, SIZE)
    assert on_disk(device, start) == b"\x66" * SIZE
    seen = []
    with log.meter(lambda label, done, whole: seen.append((label, done, whole))):
        volumes.free(volid)
    assert on_disk(device, start) == bytes(SIZE)
    step = options.get("saferemove__stepsize", 32) * MIB
    assert seen == ([("wipe", done, SIZE) for done in range(step, SIZE + 1, step)] if options else [])


def test_what_the_disk_held_before_the_group_does_not_show_in_new_volumes(define: Define) -> None:
    define()
    volid = volumes.alloc(STORAGE, 100, SIZE)
    put(volid, 0x67, 0, SIZE)
    sh("lvremove -qfy vgdata/vm-100-disk-0")  # not by us
    assert holds(volumes.alloc(STORAGE, 100, SIZE), 0, 0, SIZE)


@pytest.fixture
def unable(module_root: Path) -> Iterator[str]:
    """A volume on a group that can't make zeros by itself, as on an encrypted disk; others have left data there."""
    device = beds.disk(3)
    # behind its first MiB: LVM would find its label on the disk below as well
    table = f"0 $(($(blockdev --getsz {device}) - 2048)) crypt cipher_null-ecb - 0 {device} 2048"
    sh(f'dmsetup create unable --table "{table}"; udevadm settle')
    try:
        sh("vgcreate -q vgunable /dev/mapper/unable")
        _define(f"lvm: {STORAGE}\n\tvgname vgunable\n")
        volid = volumes.alloc(STORAGE, 100, SIZE)
        put(volid, 0x67, 0, SIZE)
        sh("lvremove -qfy vgunable/vm-100-disk-0")
        yield volid
    finally:
        sh("vgremove -qfy vgunable; udevadm settle; dmsetup remove --retry unable")


def _imported(volid: str, disk: bytes, scratch: Path) -> None:
    (scratch / "stream").write_bytes(transfer.HEADER.pack(len(disk)) + disk)
    with (scratch / "stream").open("rb") as file:
        transfer.import_(volid, "raw+size", file.fileno())


def _converted(volid: str, disk: bytes, scratch: Path) -> None:
    (scratch / "raw").write_bytes(disk)
    sh(f"qemu-img convert -O qcow2 {scratch}/raw {scratch}/disk.qcow2")
    volumes.alloc(STORAGE, 100, len(disk), name=volid.partition(":")[2])
    convert.convert(convert.foreign(scratch / "disk.qcow2"), volumes.source(volid))


def _restored(_volid: str, disk: bytes, scratch: Path) -> None:
    drive = f"scsi0: {STORAGE}:vm-100-disk-0,size={len(disk) >> 20}M\n#qmdump#map:scsi0:drive-scsi0:{STORAGE}:raw:\n"
    archive = scratch / "vzdump-qemu-100-2026_01_01-00_00_00.vma"
    archive.write_bytes(write_archive({"qemu-server.conf": drive.encode()}, {"drive-scsi0": disk}))
    restore_qemu.restore(restore_qemu.Request(str(archive), 100, storage=STORAGE))
    paths.guest_config("qemu", 100).unlink()


@pytest.mark.parametrize("made", [_imported, _converted, _restored])
def test_zeros_are_written_where_a_new_volume_may_hold_something(
    made: Callable[[str, bytes, Path], None], unable: str, tmp_path: Path
) -> None:
    disk = b"\x11" * MIB + bytes(SIZE - 2 * MIB) + b"\x12" * MIB
    made(unable, disk, tmp_path)
    assert holds(unable, 0x11, 0, MIB)
    assert holds(unable, 0, MIB, SIZE - 2 * MIB)
    assert holds(unable, 0x12, SIZE - MIB, MIB)


def test_overwriting_keeps_to_its_limit(define: Define) -> None:
    define(saferemove=1, saferemove_throughput="-16m", saferemove__stepsize=2)
    volid = volumes.alloc(STORAGE, 100, SIZE)
    began = time.monotonic()
    volumes.free(volid)
    assert time.monotonic() - began >= 2


@pytest.fixture
def wiping(define: Define) -> Iterator[tuple[subprocess.Popen[bytes], str, int]]:
    """A removal that is overwriting and needs half a minute for that; with its device and place there."""
    define(saferemove=1, saferemove_throughput="1m", saferemove__stepsize=1)
    volid = volumes.alloc(STORAGE, 100, SIZE)
    device, start = place_of("vgdata/vm-100-disk-0")
    put(volid, 0x68, 0, SIZE)
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY.format(tool="pvesm"), "free", volid],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: process.poll() is not None or on_disk(device, start)[:MIB] == bytes(MIB))
    assert process.poll() is None, process.communicate()
    assert names() == ["del-vm-100-disk-0"]
    yield process, device, start
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=60)


def test_others_go_on_while_a_removed_volume_is_overwritten(wiping: tuple[subprocess.Popen[bytes], str, int]) -> None:
    process, _, _ = wiping
    assert volumes.list_volumes(STORAGE) == []
    volid = volumes.alloc(STORAGE, 100, SIZE)
    assert volid == f"{STORAGE}:vm-100-disk-0"
    put(volid, 0x11)
    assert process.poll() is None
    assert "del-vm-100-disk-0" in names()  # it is not taken for a remnant
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert holds(volid, 0x11)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_the_next_command_ends_an_interrupted_removal(
    wiping: tuple[subprocess.Popen[bytes], str, int], define: Define, how: signal.Signals
) -> None:
    process, device, start = wiping
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert names() == ["del-vm-100-disk-0"]
    assert on_disk(device, start) != bytes(SIZE)
    assert volumes.list_volumes(STORAGE) == []
    assert names() == ["del-vm-100-disk-0"]  # looking changes nothing
    said: list[str] = []
    define(saferemove=1)
    with log.only(said.append):
        volid = volumes.alloc(STORAGE, 100, MIB)  # this must not wait for hours
        assert names() == ["del-vm-100-disk-0", "vm-100-disk-0"]
        volumes.free(volid)
    assert said == [
        f"WARN: storage '{STORAGE}': the removal of 'del-vm-100-disk-0' was interrupted; it goes on when the next "
        "volume is removed",
        f"storage '{STORAGE}': going on with the interrupted removal of 'del-vm-100-disk-0'",
    ]
    assert names() == []
    assert on_disk(device, start) == bytes(SIZE)


def test_an_interrupted_removal_ends_with_the_next_volume_that_is_made_where_that_is_quick(
    wiping: tuple[subprocess.Popen[bytes], str, int], define: Define
) -> None:
    process, device, start = wiping
    process.kill()
    process.communicate(timeout=60)
    define()
    volumes.alloc(STORAGE, 100, MIB)
    assert names() == ["vm-100-disk-0"]
    assert on_disk(device, start) == bytes(SIZE)


def test_a_group_shared_with_other_nodes_keeps_their_unfinished_removals(define: Define) -> None:
    define(shared=1)
    sh("lvcreate -qy -L 8M -n del-vm-100-disk-0 --addtag pvetools-wipe-elsewhere vgdata")
    volumes.free(volumes.alloc(STORAGE, 100, MIB))
    assert names() == ["del-vm-100-disk-0"]
    define()
    volumes.alloc(STORAGE, 100, MIB)
    assert names() == ["vm-100-disk-0"]


def _alloc(storage: str) -> str:
    return volumes.alloc(storage, 100, MIB).partition(":")[2]


def test_storages_on_one_group_wait_for_each_other(define: Define) -> None:
    define()
    with paths.storage_config().open("a") as file:
        file.write("\nlvm: other\n\tvgname vgdata\n\tcontent images,rootdir\n")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        made = pool.map(_alloc, [STORAGE, "other"] * 6, chunksize=1)
    assert sorted(made) == sorted(f"vm-100-disk-{number}" for number in range(12))


# Shared groups.


def test_volumes_of_a_shared_group_are_active_only_where_they_are_used(define: Define) -> None:
    define(shared=1)
    volid = volumes.alloc(STORAGE, 100, SIZE)
    assert field("vgdata/vm-100-disk-0", "lv_active") == ""
    volumes.resize(volid, 2 * SIZE)
    assert field("vgdata/vm-100-disk-0", "lv_active") == ""
    assert holds(volid, 0, 0, 2 * SIZE)
    assert field("vgdata/vm-100-disk-0", "lv_active") == "active"


def test_what_another_node_has_resized_is_seen(define: Define) -> None:
    define(shared=1)
    volid = volumes.alloc(STORAGE, 100, SIZE)
    found = volumes.source(volid)
    # another node changes the metadata on the LUN, and this kernel learns nothing of it
    sh("lvextend -q --driverloaded n -L 64M vgdata/vm-100-disk-0")
    assert int(sh(f"blockdev --getsize64 {found.path}")) == SIZE
    assert volumes.source(volid) == found
    assert int(sh(f"blockdev --getsize64 {found.path}")) == 64 * MIB


def test_a_storage_that_is_removed_leaves_no_volume_active_but_those_in_use(define: Define, cli: Callable) -> None:
    define()
    sh("lvcreate -qy -L 8M -n root vgdata")
    used, other = volumes.alloc(STORAGE, 100, SIZE), volumes.alloc(STORAGE, 100, SIZE)
    volumes.source(other)
    with in_use(volumes.source(used)):
        cli("pvesm", "remove", STORAGE)
    active = sh("lvs --noheadings -o lv_name -S lv_active=active vgdata").split()
    assert active == ["root", "vm-100-disk-0"]


# Groups on a volume of another storage.


@pytest.fixture
def lun(module_root: Path) -> Iterator[str]:
    """A block device of another storage."""
    with beds.zfspool():
        paths.storage_config().write_text("zfspool: low\n\tpool tank/vms\n\tcontent images\n")
        try:
            yield volumes.alloc("low", 900, 512 * MIB)
        finally:
            sh("vgremove -qfy vgup", check=False)


def test_a_group_is_made_on_a_volume_of_another_storage(lun: str, cli: Callable[..., str]) -> None:
    add = ("pvesm", "add", "lvm", "up", "--vgname", "vgup", "--base", lun)
    cli(*add)
    assert sh("pvs --noheadings -o vg_name /dev/zvol/tank/vms/vm-900-disk-0").strip() == "vgup"
    volid = volumes.alloc("up", 100, SIZE)
    put(volid, 0x11)
    assert "storage 'up' lies on its volume" in cli("pvesm", "remove", "low", status=255)
    sh("vgchange -qan vgup")
    assert "the volume group of storage 'up' lies on it" in cli("pvesm", "free", lun, status=255)
    cli("pvesm", "remove", "up")
    other = ("pvesm", "add", "lvm", "up", "--vgname", "other", "--base", lun)
    assert f"volume '{lun}' holds the volume group 'vgup', not 'other'" in cli(*other, status=255)
    cli(*add)  # what is there already is taken as it is
    assert holds(volid, 0x11)


def test_a_volume_that_holds_something_is_no_base(lun: str, cli: Callable[..., str]) -> None:
    add = ("pvesm", "add", "lvm", "up", "--vgname", "vgup", "--base", lun)
    with in_use(volumes.source(lun)):
        assert f"volume '{lun}' is in use by the mount '/mnt/used'" in cli(*add, status=255)
    assert f"volume '{lun}' is not empty, it holds ext4" in cli(*add, status=255)
    assert "up" not in volumes.storages()
    assert not sh("pvs --noheadings -S vg_name=vgup")


# Thin pools.


def test_snapshots_and_clones_are_thin_volumes_of_their_own(thin: Define) -> None:
    thin()
    volid = volumes.alloc(STORAGE, 100, SIZE)
    volumes.snapshot(volid, "first")
    assert names("vgthin") == ["pool", "snap_vm-100-disk-0_first", "vm-100-disk-0"]
    assert field("vgthin/snap_vm-100-disk-0_first", "lv_permissions") == "read-only"
    base = volumes.make_base(volumes.alloc(STORAGE, 101, SIZE))
    assert field("vgthin/base-101-disk-0", "lv_permissions") == "read-only"
    clone = volumes.clone(base, 102)
    assert clone == f"{STORAGE}:vm-102-disk-0"
    with pytest.raises(Refused, match="is still in use by linked clone 'vm-102-disk-0'"):
        volumes.free(base)
    volumes.free(clone)
    volumes.free(base)
    sh("vgchange -qan vgthin; vgchange -qay vgthin")
    assert holds(volid, 0)


def test_snapshots_without_their_volume_are_not_given_to_a_new_one(thin: Define) -> None:
    thin()
    volid = volumes.alloc(STORAGE, 100, SIZE)
    volumes.snapshot(volid, "mine_1")
    sh("lvremove -qfy vgthin/vm-100-disk-0")
    assert volumes.alloc(STORAGE, 100, SIZE) == f"{STORAGE}:vm-100-disk-1"
    with pytest.raises(Exists):
        volumes.alloc(STORAGE, 100, SIZE, name="vm-100-disk-0")


@pytest.mark.parametrize("gone", [False, True], ids=["before", "after"])
def test_the_next_command_ends_an_interrupted_rollback(thin: Define, gone: bool) -> None:
    """A rollback is cut before or after the moment in which the old state goes."""
    thin()
    volid = volumes.alloc(STORAGE, 100, SIZE)
    put(volid, 1)
    volumes.snapshot(volid, "first")
    put(volid, 2)
    tag = f"--addtag pvetools-coming-{paths.node()}"
    sh(f"lvcreate -qy -kn -prw {tag} -n coming-vm-100-disk-0 -s vgthin/snap_vm-100-disk-0_first")
    if gone:
        sh("lvremove -qfy vgthin/vm-100-disk-0")
    said: list[str] = []
    with log.only(said.append):
        assert volumes.exists(volid)
    assert len(said) == 1
    assert "change of 'vm-100-disk-0'" in said[0]
    assert names("vgthin") == ["pool", "snap_vm-100-disk-0_first", "vm-100-disk-0"]
    assert holds(volid, 1 if gone else 2)
    volumes.rollback(volid, "first")
    assert holds(volid, 1)


def test_a_base_volume_can_not_be_written(thin: Define) -> None:
    thin()
    base = volumes.make_base(volumes.alloc(STORAGE, 100, SIZE))
    with pytest.raises(OSError, match=r"not permitted|Read-only"):
        put(base, 1)


def test_a_full_pool_says_so_and_harms_nothing(pool: None) -> None:
    sh("lvcreate -qy -L 64M --poolmetadatasize 4M --errorwhenfull y -T vgthin/small")
    _define(f"lvmthin: {STORAGE}\n\tvgname vgthin\n\tthinpool small\n")
    try:
        volid, full = volumes.alloc(STORAGE, 100, SIZE), volumes.alloc(STORAGE, 101, 256 * MIB)
        put(volid, 1)
        with pytest.raises(OSError, match=r"No space left|Input/output"):
            put(full, 2, 0, 128 * MIB)
        (row,) = volumes.status(STORAGE)
        assert row.space
        assert row.space.avail == 0
        sentence = "thin pool 'vgthin/small' is full: 100.00 % of its data and .* % of its metadata are used"
        for act in (lambda: volumes.alloc(STORAGE, 102, MIB), lambda: volumes.snapshot(volid, "first"),
                    lambda: volumes.resize(volid, 2 * SIZE)):  # fmt: skip
            with pytest.raises(PveError, match=sentence):
                act()
        assert volumes.snapshots(volid) == []
        assert holds(volid, 1)
        volumes.free(full)
        volumes.snapshot(volid, "first")
    finally:
        sh("lvremove -qfy vgthin/small")


def test_a_pool_that_hands_out_old_data_is_told_in_a_warning(pool: None) -> None:
    sh("lvcreate -qy -L 64M -Zn -T vgthin/dirty")
    _define(f"lvmthin: {STORAGE}\n\tvgname vgthin\n\tthinpool dirty\n")
    said: list[str] = []
    try:
        with log.only(said.append):
            volumes.alloc(STORAGE, 100, MIB)
        assert len(said) == 1
        assert "does not zero new blocks" in said[0]
        assert "lvchange --zero y vgthin/dirty" in said[0]
    finally:
        sh("lvremove -qfy vgthin/dirty")
