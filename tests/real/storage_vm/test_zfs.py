"""What only ZFS has: properties, datasets of others, pools that come and go, streams."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import defining, transfer, volumes, zfs
from pvetools.storage.backends.zfspool import volume_of
from pvetools.system import paths
from pvetools.system.errors import Exists, NotFound, PveError, Refused
from tests.real.storage_vm import beds
from tests.real.storage_vm.beds import STORAGE, sh
from tests.real.storage_vm.conftest import ENTRY
from tests.real.storage_vm.contract import MIB, SIZE, holds, put
from tests.real.storage_vm.datasets import POOL, datasets, value

Define = Callable[..., None]


@pytest.fixture(scope="module")
def pool(module_root: Path) -> Iterator[beds.Bed]:
    with beds.zfspool() as bed:
        yield bed


@pytest.fixture
def define(pool: beds.Bed) -> Iterator[Define]:
    """Define the storage, with options; afterwards the pool is empty."""

    def write(**options: object) -> None:
        given = {"pool": POOL, "content": "images,rootdir", **options}
        lines = "".join(f"\t{key} {value}\n" for key, value in given.items())
        paths.storage_config().write_text(f"zfspool: {STORAGE}\n{lines}")

    write()
    yield write
    sh(f"zfs destroy -R {POOL}; zfs create {POOL}; udevadm settle")


# As Proxmox VE makes them.


def test_volumes_have_the_properties_that_proxmox_gives_them(define: Define) -> None:
    define(blocksize="8k")
    thick = volumes.alloc(STORAGE, 100, 5 * MIB + 1)
    define(blocksize="32k", sparse=1)
    thin = volumes.alloc(STORAGE, 100, SIZE)
    assert (thick, thin) == (f"{STORAGE}:vm-100-disk-0", f"{STORAGE}:vm-100-disk-1")
    assert volumes.path(thick) == Path("/dev/zvol/tank/vms/vm-100-disk-0")
    assert [value("volblocksize", f"vm-100-disk-{number}") for number in (0, 1)] == ["8192", "32768"]
    assert value("volsize", "vm-100-disk-0") == str(6 * MIB)
    assert int(value("refreservation", "vm-100-disk-0")) >= 6 * MIB
    assert value("refreservation", "vm-100-disk-1") == "0"
    volumes.resize(thick, 16 * MIB)
    assert int(value("refreservation", "vm-100-disk-0")) >= 16 * MIB


def test_folders_have_a_limit_and_acls(define: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, 8 * MIB, format="subvol")
    place = volumes.source(volid).path
    assert place == Path("/tank/vms/subvol-100-disk-0")
    assert [value(name, place.name) for name in ("acltype", "xattr", "refquota")] == ["posix", "sa", str(8 * MIB)]
    sh(f"setfacl -m u:12345:r {place}")
    with pytest.raises(OSError, match="Disk quota exceeded"):
        for number in range(10):
            (place / f"{number}").write_bytes(os.urandom(MIB))
            sh("zpool sync tank")
    volumes.resize(volid, 64 * MIB)
    (place / "more").write_bytes(os.urandom(MIB))
    base = volumes.make_base(volid)
    clone = volumes.clone(base, 101)
    assert base == f"{STORAGE}:basevol-100-disk-0"
    assert clone == f"{STORAGE}:basevol-100-disk-0/subvol-101-disk-0"
    assert [value(name, "subvol-101-disk-0") for name in ("acltype", "xattr", "refquota")] == [
        "posix",
        "sa",
        str(64 * MIB),
    ]


def test_a_folder_without_a_limit_can_get_one(define: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, 0, format="subvol")
    assert value("refquota", "subvol-100-disk-0") == "0"
    volumes.resize(volid, SIZE)
    assert volumes.info(volid).size == SIZE


def test_bases_and_clones_lie_as_proxmox_lays_them(define: Define) -> None:
    base = volumes.make_base(volumes.alloc(STORAGE, 100, SIZE))
    clone = volumes.clone(base, 101)
    assert (base, clone) == (f"{STORAGE}:base-100-disk-0", f"{STORAGE}:base-100-disk-0/vm-101-disk-0")
    assert datasets() == ["base-100-disk-0", "base-100-disk-0@__base__", "vm-101-disk-0"]
    assert volumes.info(clone).parent == "base-100-disk-0@__base__"
    assert volumes.info(f"{STORAGE}:vm-101-disk-0").volid == clone  # its base need not be named
    again = volumes.make_base(clone)
    assert again == f"{STORAGE}:base-100-disk-0/base-101-disk-0"
    assert volumes.snapshots(again) == []
    with pytest.raises(Refused, match=f"still in use by linked clone '{STORAGE}:base-101-disk-0'"):
        volumes.free(base)
    volumes.free(again)
    volumes.free(base)
    assert datasets() == []


def test_a_storage_that_is_not_sparse_says_when_it_is_full(define: Define) -> None:
    with pytest.raises(PveError, match=f"storage '{STORAGE}' is full: no space for a volume of"):
        volumes.alloc(STORAGE, 100, 1 << 40)
    volid = volumes.alloc(STORAGE, 100, SIZE)
    with pytest.raises(PveError, match=f"storage '{STORAGE}' is full"):
        volumes.resize(volid, 1 << 40)
    assert volumes.info(volid).size == SIZE
    assert datasets() == ["vm-100-disk-0"]


def test_what_a_cut_power_left_of_a_base_is_no_obstacle(define: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, SIZE)
    put(volid, 0x11)
    volumes.snapshot(volid, "first")
    sh(f"zfs snapshot {POOL}/vm-100-disk-0@__base__")
    put(volid, 0x22)
    volumes.rollback(volid, "first")
    assert holds(volid, 0x11)
    volumes.delete_snapshot(volid, "first")
    sh(f"zfs snapshot {POOL}/vm-100-disk-0@__base__")
    put(volid, 0x33)
    assert holds(volumes.clone(volumes.make_base(volid), 101), 0x33)


# What others made.


def test_datasets_with_our_names_but_of_another_kind_are_no_volumes(define: Define) -> None:
    sh(f"zfs create -p {POOL}/vm-100-disk-0/in; zfs create -s -V 8M {POOL}/subvol-100-disk-0")
    assert volumes.list_volumes(STORAGE) == []
    for name in ("vm-100-disk-0", "subvol-100-disk-0"):
        with pytest.raises(NotFound):
            volumes.free(f"{STORAGE}:{name}")
    assert volumes.alloc(STORAGE, 100, SIZE) == f"{STORAGE}:vm-100-disk-1"


def test_datasets_of_others_below_or_upon_a_volume_keep_it(define: Define) -> None:
    folder = volumes.alloc(STORAGE, 100, 0, format="subvol")
    sh(f"zfs create {POOL}/subvol-100-disk-0/inner; zfs unmount {POOL}/subvol-100-disk-0/inner")
    with pytest.raises(Refused, match="dataset 'tank/vms/subvol-100-disk-0/inner' lies in it"):
        volumes.free(folder)
    volid = volumes.alloc(STORAGE, 101, SIZE)
    sh(f"zfs snapshot {POOL}/vm-101-disk-0@theirs; zfs clone {POOL}/vm-101-disk-0@theirs tank/theirs; udevadm settle")
    try:
        with pytest.raises(Refused, match="in use by linked clone 'tank/theirs'"):
            volumes.free(volid)
        assert volumes.exists(volid)
    finally:
        sh("zfs destroy -r tank/theirs")


def test_snapshots_of_others_are_listed_and_not_rolled_over(define: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, SIZE)
    volumes.snapshot(volid, "first")
    sh(f"zfs snapshot {POOL}/vm-100-disk-0@auto_2026-01-01_00:00:00")
    with pytest.raises(Refused, match="remove the newer ones first: auto_2026-01-01_00:00:00"):
        volumes.rollback(volid, "first")
    assert [found.name for found in volumes.snapshots(volid)] == ["first", "auto_2026-01-01_00:00:00"]


# Places.


def test_a_pool_that_is_not_imported_is_imported(define: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, SIZE)
    folder = volumes.alloc(STORAGE, 100, 0, format="subvol")
    put(volid, 0x11)
    put(folder, 0x22)
    sh("udevadm settle; zpool export tank")
    (row,) = volumes.status(STORAGE)
    assert row.active, row.reason
    assert holds(volid, 0x11)
    assert holds(folder, 0x22)
    assert sh("zpool get -H -o value cachefile tank").strip() == "none"


def test_a_pool_or_dataset_that_does_not_exist_is_told(define: Define) -> None:
    for name, reason in (
        ("tank/none", "there is no ZFS dataset 'tank/none'"),
        ("nowhere", "no such pool"),
        ("a@b", "invalid"),
    ):
        define(pool=name)
        (row,) = volumes.status(STORAGE)
        assert not row.active
        assert reason in row.reason
    with pytest.raises(PveError, match="no ZFS dataset"):
        defining.add("other", "zfspool", {"pool": "tank/none"})


def test_folders_lie_where_the_pool_is_mounted(define: Define) -> None:
    sh(f"zfs set mountpoint=/mnt/elsewhere {POOL}")
    volid = volumes.alloc(STORAGE, 100, 0, format="subvol")
    assert volumes.source(volid).path == volumes.path(volid) == Path("/mnt/elsewhere/subvol-100-disk-0")
    define(mountpoint="/mnt/elsewhere")
    assert volumes.source(volid).path == Path("/mnt/elsewhere/subvol-100-disk-0")
    define(mountpoint="/mnt/other")
    with pytest.raises(
        PveError, match="is mounted at '/mnt/elsewhere/subvol-100-disk-0', not at '/mnt/other/subvol-100"
    ):
        volumes.source(volid)


def test_a_folder_that_is_not_mounted_is_mounted(define: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, 0, format="subvol")
    put(volid, 0x11)
    sh(f"zfs unmount {POOL}/subvol-100-disk-0")
    assert holds(volid, 0x11)


def test_a_device_is_that_of_its_volume_however_often_its_name_was_used(define: Define) -> None:
    for number in range(3):
        volid = volumes.alloc(STORAGE, 100, SIZE)
        put(volid, number + 1)
        base = volumes.make_base(volid)
        assert volumes.alloc(STORAGE, 100, SIZE, name="vm-100-disk-0") == volid
        assert volume_of(volumes.source(volid).path) == f"{POOL}/vm-100-disk-0"
        assert holds(volid, 0)
        assert holds(base, number + 1)
        volumes.free(volid)
        volumes.free(base)


# Users.


def test_a_folder_in_another_mount_namespace_is_in_use(define: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, 0, format="subvol")
    place = volumes.source(volid).path
    volumes.snapshot(volid, "first")
    container = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount --bind {place} /srv && echo up && exec sleep 120"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert container.stdout
        assert container.stdout.readline() == "up\n"
        for act in (volumes.free, lambda volid: volumes.rollback(volid, "first")):
            with pytest.raises(Refused, match="is in use by the mount '/srv'"):
                act(volid)
    finally:
        container.kill()
        container.wait(10)
    volumes.free(volid)


def test_somebody_who_looks_for_a_moment_only_delays(define: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, SIZE)
    device = volumes.source(volid).path
    looking = subprocess.Popen(["sh", "-c", f"exec 3<{device}; echo up; exec sleep 2"], stdout=subprocess.PIPE)
    assert looking.stdout
    looking.stdout.readline()
    zfs.Pool(POOL).destroy("vm-100-disk-0")  # as free() does it, after it has asked who uses the volume
    assert looking.wait(20) == 0


# Streams.


@pytest.mark.parametrize("form", ["raw", "subvol"])
def test_streams_bring_a_volume_whole_and_what_has_changed(define: Define, form: str) -> None:
    source = volumes.alloc(STORAGE, 100, SIZE, format=form)
    target = f"{STORAGE}:{'vm' if form == 'raw' else 'subvol'}-101-disk-0"
    names = [f"{POOL}/{volid.partition(':')[2]}" for volid in (source, target)]

    def stream(snapshot: str, base: str = "", with_snapshots: bool = False) -> None:
        sending = subprocess.Popen(zfs.send_argv(names[0], snapshot, base, with_snapshots), stdout=subprocess.PIPE)
        subprocess.run(zfs.receive_argv(names[1]), stdin=sending.stdout, check=True, timeout=60)
        assert sending.wait(10) == 0

    for number, snapshot in enumerate(("one", "two", "three", "four"), 1):
        put(source, number)
        volumes.snapshot(source, snapshot)
    stream("one")
    assert volumes.info(target).size == SIZE
    assert holds(target, 1)
    stream("two", "one")
    assert [found.name for found in volumes.snapshots(target)] == ["one", "two"]
    stream("four", "two", with_snapshots=True)
    assert [found.name for found in volumes.snapshots(target)] == ["one", "two", "three", "four"]
    assert holds(target, 4)
    volumes.free(target)
    stream("three", with_snapshots=True)
    assert [found.name for found in volumes.snapshots(target)] == ["one", "two", "three"]
    assert holds(target, 3)
    assert holds(source, 4)


@pytest.mark.parametrize("form", ["raw", "subvol"])
def test_changes_that_bring_another_snapshot_than_was_said_are_taken_back(
    define: Define, tmp_path: Path, form: str
) -> None:
    source, stream = volumes.alloc(STORAGE, 100, SIZE, format=form), tmp_path / "stream"
    target = source.replace("100", "101")
    for number, state in enumerate((transfer.State("one"), transfer.State("two", base="one")), 1):
        put(source, number)
        volumes.snapshot(source, state.snapshot)
        with stream.open("wb") as out:
            transfer.export(source, "zfs", out.fileno(), state)
        if not state.base:
            with stream.open("rb") as data:
                transfer.import_(target, "zfs", data.fileno(), state)
    with stream.open("rb") as data, pytest.raises(PveError, match="the stream holds no snapshot 'other'"):
        transfer.import_(target, "zfs", data.fileno(), transfer.State("other", base="one"))
    assert [found.name for found in volumes.snapshots(target)] == ["one"]
    assert holds(target, 1)
    with stream.open("rb") as data:
        transfer.import_(target, "zfs", data.fileno(), transfer.State("two", base="one"))
    assert holds(target, 2)


def test_a_stream_does_not_mount_itself_elsewhere(define: Define) -> None:
    volumes.alloc(STORAGE, 100, 0, format="subvol")
    sh(f"zfs set mountpoint=/mnt/evil {POOL}/subvol-100-disk-0; zfs snapshot {POOL}/subvol-100-disk-0@a")
    words = [" ".join(argv) for argv in (
        zfs.send_argv(f"{POOL}/subvol-100-disk-0", "a"), zfs.receive_argv(f"{POOL}/subvol-101-disk-0"),
    )]  # fmt: skip
    sh(" | ".join(words))
    assert value("mountpoint", "subvol-101-disk-0") == "/tank/vms/subvol-101-disk-0"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The key of an encrypted dataset, of 32 bytes."""
    (tmp_path / "key").write_bytes(bytes(range(32)))
    return tmp_path / "key"


@pytest.mark.parametrize("form", ["raw", "subvol"])
def test_an_encrypted_volume_arrives_encrypted(define: Define, tmp_path: Path, key: Path, form: str) -> None:
    sh(f"zfs create -o encryption=on -o keyformat=raw -o keylocation=file://{key} {POOL}/secret")
    define(pool=f"{POOL}/secret")
    source, stream = volumes.alloc(STORAGE, 100, SIZE, format=form, content="rootdir"), tmp_path / "stream"
    put(source, 1)
    volumes.snapshot(source, "one")
    with stream.open("wb") as out:
        transfer.export(source, "zfs", out.fileno(), transfer.State("one"))
    define()
    own = source.partition(":")[2].replace("100", "101")
    before = datasets()
    with stream.open("rb") as data, pytest.raises(PveError, match="the stream holds no snapshot 'other'"):
        transfer.import_(f"{STORAGE}:{own}", "zfs", data.fileno(), transfer.State("other"))
    assert datasets() == before
    with stream.open("rb") as data:
        transfer.import_(f"{STORAGE}:{own}", "zfs", data.fileno(), transfer.State("one"))
    assert {*datasets()} - {*before} == {own, f"{own}@one"}
    assert value("encryption", own) == "aes-256-gcm"
    sh(f"zfs load-key -L file://{key} {POOL}/{own}")
    assert holds(f"{STORAGE}:{own}", 1)


@pytest.fixture
def half(define: Define, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that has got half of the stream of a new volume, vm-101-disk-0."""
    source, stream = volumes.alloc(STORAGE, 100, SIZE), tmp_path / "stream"
    put(source, 1, 0, SIZE)
    volumes.snapshot(source, "one")
    with stream.open("wb") as out:
        transfer.export(source, "zfs", out.fileno(), transfer.State("one"))
    argv = [sys.executable, "-c", ENTRY.format(tool="pvesm"), "import", f"{STORAGE}:vm-101-disk-0", "zfs", "-"]
    with subprocess.Popen([*argv, "--snapshot", "one"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(stream.read_bytes()[: SIZE // 2])
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not any(name.endswith("/new") for name in datasets()):
            assert time.monotonic() < deadline, "nothing is received within 60 s"
            time.sleep(0.1)
        yield process
        process.kill()


def test_what_is_being_received_is_no_volume_yet_but_has_its_name(half: subprocess.Popen[bytes]) -> None:
    assert [found.volid for found in volumes.list_volumes(STORAGE)] == [f"{STORAGE}:vm-100-disk-0"]
    with pytest.raises(Exists, match="volume 'store:vm-101-disk-0' already exists"):
        volumes.alloc(STORAGE, 101, SIZE, name="vm-101-disk-0")
    assert volumes.alloc(STORAGE, 101, SIZE) == f"{STORAGE}:vm-101-disk-1"
    half.terminate()
    assert half.wait(60) == 130
    assert {*datasets()} == {"vm-100-disk-0", "vm-100-disk-0@one", "vm-101-disk-1"}


def test_what_a_killed_import_left_goes_with_the_next_new_volume(half: subprocess.Popen[bytes]) -> None:
    half.kill()
    half.wait(60)
    assert volumes.alloc(STORAGE, 101, SIZE) == f"{STORAGE}:vm-101-disk-0"
    assert {*datasets()} == {"vm-100-disk-0", "vm-100-disk-0@one", "vm-101-disk-0"}
