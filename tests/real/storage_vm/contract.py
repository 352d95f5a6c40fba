"""What every storage backend has to do, whatever lies behind it: one suite for all of them.

A test file takes it in with `from tests.real.storage_vm.contract import *` and supplies the fixture `case`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pvetools.storage import driver, registry, transfer, volumes
from pvetools.storage.transfer import State
from pvetools.system.errors import Exists, NotFound, PveError, Refused
from tests.real.storage_vm.beds import STORAGE, Bed, sh
from tests.sandbox import enter

MIB = 1 << 20
SIZE = 32 * MIB
CROWD = 100
BLOCK = 64 << 10
EVIL = (
    "", "/", "..", "../..", "../../etc/passwd", "vm-100-disk-0/../../x", "vm-100-disk-0;reboot", "vm-100-$(id)", "-f",
    "--help", "vm-100-disk-0 x", "vm-100-disk-0\nx", "vm-100-disk-0@snap", "vm-0-disk-0", "vm--disk-0", "vm-100-",
    "vm-100-disk-0\x00", "vm-١٠٠-disk-0", "@", "vm-100-disk-0/vm-101-disk-0", "a" * 300,
)  # fmt: skip


@dataclass
class Case:
    """One storage with one image format."""

    bed: Bed
    form: str

    @property
    def info(self) -> driver.Capabilities:
        return registry.driver(volumes.get(STORAGE)).info

    @property
    def folders(self) -> bool:
        return self.form == "subvol"

    @property
    def size(self) -> int:
        """Size that a volume of the usual size has: 0 for folders without a limit."""
        return 0 if self.folders and not self.info.limits_folders else SIZE

    def alloc(self, vmid: int = 100, size: int = SIZE, **options: str) -> str:
        if not self.size:
            size = 0
        return volumes.alloc(STORAGE, vmid, size, format=self.form, **options)

    def listed(self) -> dict[str, driver.Volume]:
        return {found.volid: found for found in volumes.list_volumes(STORAGE)}

    def free_all(self) -> None:
        """Remove everything; clones before the bases that they lie on."""
        for _ in range(3):
            for volid in (left := self.listed()):
                with contextlib.suppress(Refused):
                    volumes.free(volid)
            if not left:
                return
        assert not self.listed()

    def need(self, capability: str) -> None:
        if self.form not in getattr(self.info, capability):
            pytest.skip(f"the storage says that it has no {capability} for {self.form}")


@pytest.fixture
def empty(case: Case) -> Iterator[Case]:
    """The case, with nothing on the storage; every test leaves it so."""
    yield case
    case.free_all()


def own_name(volid: str) -> str:
    """A volume's name without its storage, folder and base."""
    return volid.replace(":", "/").rpartition("/")[2]


# Content: a byte repeated over a block, at a place of the volume.


def put(volid: str, byte: int, place: int = 0, length: int = BLOCK) -> None:
    found = volumes.source(volid)
    if found.kind == "folder":
        (found.path / f"at-{place}").write_bytes(bytes([byte]) * length)
        sh("sync")
    elif found.format == "raw" and found.kind != "network":
        with found.path.open("r+b", buffering=0) as file:
            file.seek(place)
            for start in range(0, length, MIB):
                file.write(bytes([byte]) * min(MIB, length - start))
            os.fsync(file.fileno())
    else:
        qemu_io(found, f"write -P {byte} {place} {length}")


def holds(volid: str, byte: int, place: int = 0, length: int = BLOCK) -> bool:
    found = volumes.source(volid)
    if found.kind == "folder":
        path = found.path / f"at-{place}"
        have = path.read_bytes() if path.exists() else bytes(length)
        return have == bytes([byte]) * length
    if found.format == "raw" and found.kind != "network":
        with found.path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(place)
            return all(
                file.read(min(MIB, length - start)) == bytes([byte]) * min(MIB, length - start)
                for start in range(0, length, MIB)
            )
    return "failed" not in qemu_io(found, f"read -P {byte} {place} {length}")


def qemu_io(found: driver.Source, command: str) -> str:
    how = ["-r"] if command.startswith("read") else []  # SMB servers open no base for writing
    done = subprocess.run(
        ["qemu-io", *how, *found.options, "-f", found.format, "-c", command, found.image],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "bytes at offset" in done.stdout or "Pattern verification failed" in done.stdout, done.stdout + done.stderr
    return done.stdout


# The storage itself.


def test_the_storage_is_active_and_its_space_adds_up(empty: Case) -> None:
    (row,) = volumes.status(STORAGE)
    assert row.active, row.reason
    assert row.space
    assert row.space.total > 256 * MIB
    assert 0 < row.space.avail <= row.space.total
    assert 0 <= row.space.used + row.space.avail <= row.space.total


# Making, finding, removing.


def test_new_volumes_get_the_next_free_names_of_their_guest(empty: Case) -> None:
    names = [own_name(empty.alloc(vmid)).partition(".")[0] for vmid in (100, 100, 1001)]
    start = "subvol" if empty.folders else "vm"
    assert names == [f"{start}-100-disk-0", f"{start}-100-disk-1", f"{start}-1001-disk-0"]


def test_a_freed_name_is_used_again_for_the_next_volume(empty: Case) -> None:
    first = empty.alloc()
    second = empty.alloc()
    volumes.free(first)
    assert empty.alloc() == first != second


@pytest.mark.core
def test_a_new_volume_is_listed_with_size_owner_and_format(empty: Case) -> None:
    volid = empty.alloc(123)
    assert [*empty.listed()] == [volid]
    found = volumes.info(volid)
    assert found == empty.listed()[volid]
    assert (found.format, found.vmid, found.content) == (empty.form, 123, "images")
    assert found.size == empty.size
    assert found.ctime > 1_600_000_000 or not found.ctime  # Ceph's lists don't tell
    assert volumes.list_volumes(STORAGE, vmid=124) == []
    assert volumes.owned_by(123) == [volid]
    assert volumes.exists(volid)


def test_a_new_volume_is_there_and_empty(empty: Case) -> None:
    volid = empty.alloc()
    found = volumes.source(volid)
    assert found.path == volumes.path(volid)
    assert found.kind in (("folder",) if empty.folders else ("file",) if empty.info.files else ("block", "network"))
    assert found.path.is_dir() == empty.folders
    assert found.path.is_block_device() == (found.kind == "block")
    assert bool(found.network) == (found.kind == "network")
    assert holds(volid, 0)
    assert holds(volid, 0, SIZE - BLOCK)


def test_volumes_keep_their_data_apart(empty: Case) -> None:
    one, two = empty.alloc(), empty.alloc()
    put(one, 0x11)
    put(two, 0x22)
    put(two, 0x33, SIZE - BLOCK)
    assert holds(one, 0x11)
    assert holds(one, 0, SIZE - BLOCK)
    assert holds(two, 0x22)
    assert holds(two, 0x33, SIZE - BLOCK)


def test_a_wanted_name_is_taken_once(empty: Case) -> None:
    start, end = ("subvol" if empty.folders else "vm"), ("." + empty.form)
    if not empty.info.files and empty.form != "qcow2":
        end = ""
    volid = empty.alloc(name=f"{start}-100-mine{end}")
    assert own_name(volid) == f"{start}-100-mine{end}"
    put(volid, 0x44)
    with pytest.raises(Exists, match="already exists"):
        empty.alloc(name=f"{start}-100-mine{end}")
    assert holds(volid, 0x44)


def test_sizes_are_never_less_than_asked_for(empty: Case) -> None:
    if empty.folders:
        pytest.skip("a quota, not a size")
    volid = empty.alloc(size=5 * MIB + 1536)
    assert 5 * MIB + 1536 <= volumes.info(volid).size < 16 * MIB


def test_impossible_wishes_are_refused_and_leave_nothing(empty: Case) -> None:
    wishes = [{"format": "vhd"}, {"size": -1}, {"name": "base-100-disk-0"}]
    wishes += [] if empty.folders else [{"size": 0}]
    for wish in wishes:
        asked = {"size": SIZE, "format": empty.form, **wish}
        assert refused(volumes.alloc, STORAGE, 100, asked.pop("size"), **asked), wish
    assert not empty.listed()


def refused(act: Callable[..., object], *words: object, **options: object) -> bool:
    """Whether something fails with a sentence of ours."""
    try:
        act(*words, **options)
    except PveError:
        return True
    return False


def test_names_that_are_none_reach_no_tool(empty: Case) -> None:
    acts = (volumes.path, volumes.source, volumes.info, volumes.free)
    for name in EVIL:
        volid = f"{STORAGE}:{name}"
        assert not [act for act in acts if not refused(act, volid)], name
        assert refused(volumes.resize, volid, SIZE), name
        assert not name or refused(empty.alloc, name=name), name
    assert not empty.listed()


def test_more_than_there_is_is_refused_and_leaves_nothing(empty: Case) -> None:
    if empty.bed.thin:
        pytest.skip("space is taken when it is written")
    with pytest.raises(PveError, match=f"storage '{STORAGE}' is full: no space for a volume of"):
        empty.alloc(size=1 << 40)
    assert not empty.listed()


def test_a_freed_volume_is_gone(empty: Case) -> None:
    volid, other = empty.alloc(), empty.alloc()
    put(other, 0x55)
    volumes.free(volid)
    assert not volumes.exists(volid)
    assert not volumes.path(volid).exists()
    assert [*empty.listed()] == [other]
    assert holds(other, 0x55)
    for act in (volumes.free, volumes.info, volumes.source, lambda volid: volumes.resize(volid, SIZE)):
        with pytest.raises(NotFound, match="does not exist"):
            act(volid)
    volumes.free(volid, missing_ok=True)


def test_a_volume_in_use_is_not_removed(empty: Case) -> None:
    volid = empty.alloc()
    found = volumes.source(volid)
    with in_use(found):
        with pytest.raises(Refused, match="is in use"):
            volumes.free(volid)
        assert volumes.exists(volid)
    volumes.free(volid)


@contextlib.contextmanager
def in_use(found: driver.Source) -> Iterator[None]:
    """Something uses the volume as a guest would: mounted, or open in QEMU's way."""
    if found.kind in ("file", "network") or found.format == "qcow2":
        held = subprocess.Popen(
            ["qemu-io", *found.options, "-f", found.format, found.image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert held.stdin and held.stdout
        held.stdin.write("length\n")
        held.stdin.flush()
        held.stdout.readline()  # it is open now
        try:
            yield
        finally:
            held.stdin.close()
            held.wait(30)
        return
    point = found.path / "inner" if found.kind == "folder" else Path("/mnt/used")
    point.mkdir(exist_ok=True)
    sh(
        f"mount -t tmpfs none {point}"
        if found.kind == "folder"
        else f"mkfs.ext4 -qF {found.path}; mount {found.path} {point}"
    )
    try:
        yield
    finally:
        sh(f"umount {point}")


def test_what_a_removed_volume_held_never_shows_in_a_new_one(empty: Case) -> None:
    volid = empty.alloc()
    put(volid, 0x66, 0, SIZE // 2 if empty.folders else SIZE)
    volumes.free(volid)
    assert holds(empty.alloc(101), 0, 0, SIZE)


def test_foreign_volumes_are_neither_listed_nor_touched(case: Case) -> None:
    name, untouched = case.bed.foreign()
    assert untouched()
    assert f"{STORAGE}:{name}" not in case.listed()
    for act in (volumes.free, volumes.source, volumes.info):
        with pytest.raises(PveError):
            act(f"{STORAGE}:{name}")
    volid = case.alloc()
    volumes.free(volid)
    assert untouched()


# Growing.


def test_a_volume_grows_and_keeps_its_data(empty: Case) -> None:
    empty.need("resize")
    volid = empty.alloc()
    put(volid, 0x77)
    volumes.resize(volid, 2 * SIZE)
    assert volumes.info(volid).size == 2 * SIZE
    assert holds(volid, 0x77)
    if not empty.folders:
        assert holds(volid, 0, SIZE, SIZE)
        put(volid, 0x78, 2 * SIZE - BLOCK)
        assert holds(volid, 0x78, 2 * SIZE - BLOCK)


def test_what_was_removed_does_not_show_in_what_grew(empty: Case) -> None:
    empty.need("resize")
    volid, other = empty.alloc(), empty.alloc(101)
    put(other, 0x79, 0, SIZE // 2 if empty.folders else SIZE)
    volumes.free(other)
    volumes.resize(volid, 2 * SIZE)
    assert empty.folders or holds(volid, 0, SIZE, SIZE)


def test_a_volume_does_not_shrink(empty: Case) -> None:
    empty.need("resize")
    volid = empty.alloc()
    with pytest.raises(Refused, match="can't shrink volume"):
        volumes.resize(volid, SIZE // 2)
    assert volumes.info(volid).size == SIZE


def test_a_volume_grows_while_it_is_used_where_the_storage_says_so(empty: Case) -> None:
    empty.need("online_resize")
    volid = empty.alloc()
    with in_use(volumes.source(volid)):
        volumes.resize(volid, 2 * SIZE)
    assert volumes.info(volid).size == 2 * SIZE


# Snapshots.


@pytest.mark.core
def test_a_snapshot_keeps_what_a_volume_held(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    put(volid, 0x11)
    volumes.snapshot(volid, "first")
    put(volid, 0x22)
    put(volid, 0x23, SIZE // 2)
    assert [found.name for found in volumes.snapshots(volid)] == ["first"]
    assert holds(volid, 0x22)
    volumes.rollback(volid, "first")
    assert holds(volid, 0x11)
    assert holds(volid, 0, SIZE // 2)
    assert [found.name for found in volumes.snapshots(volid)] == ["first"]
    put(volid, 0x33)
    volumes.rollback(volid, "first")
    assert holds(volid, 0x11)


def test_snapshots_are_no_volumes(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    volumes.snapshot(volid, "first")
    assert [*empty.listed()] == [volid]
    assert volumes.snapshots(empty.alloc()) == []


def test_snapshots_are_listed_from_the_oldest_to_the_newest(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    for name in ("zebra", "ape", "lion_2"):
        volumes.snapshot(volid, name)
    found = volumes.snapshots(volid)
    assert {row.name for row in found} == {"zebra", "ape", "lion_2"}
    assert [row.ctime for row in found] == sorted(row.ctime for row in found)
    assert all(row.ctime > 1_600_000_000 for row in found)


def test_a_removed_snapshot_takes_nothing_else_along(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    for number, name in enumerate(("one", "two", "three"), 1):
        put(volid, number)
        volumes.snapshot(volid, name)
    put(volid, 9)
    volumes.delete_snapshot(volid, "two")
    assert {row.name for row in volumes.snapshots(volid)} == {"one", "three"}
    assert holds(volid, 9)
    volumes.rollback(volid, "three")
    assert holds(volid, 3)
    volumes.delete_snapshot(volid, "three")
    volumes.rollback(volid, "one")
    assert holds(volid, 1)


def test_rollback_past_newer_snapshots_works_or_names_them(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    put(volid, 1)
    volumes.snapshot(volid, "old")
    put(volid, 2)
    volumes.snapshot(volid, "new")
    put(volid, 3)
    if empty.info.rollback_to_newest:
        with pytest.raises(Refused, match="not its most recent snapshot, remove the newer ones first: new"):
            volumes.rollback(volid, "old")
        assert holds(volid, 3)
        return
    volumes.rollback(volid, "old")
    assert holds(volid, 1)
    volumes.rollback(volid, "new")
    assert holds(volid, 2)


def test_wrong_names_of_snapshots_are_refused(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    for name in ("", "-x", "a b", "a/b", "a@b", "1st", "ä", "a" * 100, "x\ny", "current;id"):
        for act in (volumes.snapshot, volumes.rollback, volumes.delete_snapshot):
            assert refused(act, volid, name), (act, name)
    assert volumes.snapshots(volid) == []


def test_snapshots_that_are_or_are_not_there(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    volumes.snapshot(volid, "first")
    with pytest.raises(Exists, match="has a snapshot 'first' already"):
        volumes.snapshot(volid, "first")
    for act in (volumes.rollback, volumes.delete_snapshot):
        with pytest.raises(NotFound, match="has no snapshot 'other'"):
            act(volid, "other")
    volumes.free(volid)
    for act in (volumes.rollback, volumes.delete_snapshot, volumes.snapshot):
        with pytest.raises(NotFound, match="does not exist"):
            act(volid, "first")


def test_a_volume_in_use_is_not_rolled_back(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    volumes.snapshot(volid, "first")
    with in_use(volumes.source(volid)), pytest.raises(Refused, match="is in use"):
        volumes.rollback(volid, "first")
    volumes.rollback(volid, "first")


def test_snapshots_go_with_their_volume(empty: Case) -> None:
    empty.need("snapshot")
    volid = empty.alloc()
    volumes.snapshot(volid, "first")
    volumes.free(volid)
    assert empty.alloc() == volid
    assert volumes.snapshots(volid) == []


def test_a_storage_without_snapshots_says_so(empty: Case) -> None:
    if empty.form in empty.info.snapshot:
        pytest.skip("it has snapshots")
    volid = empty.alloc()
    with pytest.raises(Refused, match=f"has no snapshots of volumes of format '{empty.form}'"):
        volumes.snapshot(volid, "first")


# Base volumes and linked clones.


def test_clones_of_a_base_hold_its_data_and_go_their_own_way(empty: Case) -> None:
    empty.need("base")
    volid = empty.alloc()
    put(volid, 0x11)
    base = volumes.make_base(volid)
    assert volumes.parse(base).is_base
    assert own_name(base).startswith("base")
    assert not volumes.exists(volid)
    assert volumes.info(base).size == empty.size
    one, two = volumes.clone(base, 101), volumes.clone(base, 101)
    assert [volumes.owner(volid) for volid in (one, two)] == [101, 101]
    assert holds(one, 0x11)
    assert holds(two, 0x11)
    put(one, 0x22)
    assert holds(one, 0x22)
    assert holds(two, 0x11)
    assert holds(base, 0x11)
    assert {base, one, two} == {*empty.listed()}
    assert volumes.info(one).parent or empty.bed.independent_clones
    assert volumes.info(one).size == empty.size
    assert not volumes.info(base).parent


def test_clones_outlive_every_attempt_to_remove_their_base(empty: Case) -> None:
    empty.need("base")
    base = volumes.make_base(empty.alloc())
    clone = volumes.clone(base, 101)
    put(clone, 0x33)
    with contextlib.suppress(Refused):
        volumes.free(base)
    assert holds(clone, 0x33)
    assert holds(clone, 0, SIZE // 2)


def test_only_a_base_can_be_cloned_and_only_once_made(empty: Case) -> None:
    empty.need("base")
    volid = empty.alloc()
    with pytest.raises(Refused, match="is not a base volume"):
        volumes.clone(volid, 101)
    base = volumes.make_base(volid)
    with pytest.raises(Refused, match="is a base volume already"):
        volumes.make_base(base)
    with pytest.raises(NotFound):
        volumes.make_base(volid)


def test_a_volume_with_snapshots_or_in_use_is_no_base(empty: Case) -> None:
    empty.need("base")
    volid = empty.alloc()
    if empty.form in empty.info.snapshot:
        volumes.snapshot(volid, "first")
        with pytest.raises(Refused, match="it has the snapshot 'first'"):
            volumes.make_base(volid)
        volumes.delete_snapshot(volid, "first")
    with in_use(volumes.source(volid)), pytest.raises(Refused, match="is in use"):
        volumes.make_base(volid)
    assert volumes.exists(volid)


# Many at once.


def _one_of_many(form: str, number: int, size: int) -> str:
    return volumes.alloc(STORAGE, 100 + number % 2, size, format=form)


@pytest.mark.timeout(1800)  # emulated processors take many times as long
def test_many_processes_that_allocate_at_once_get_volumes_of_their_own(empty: Case) -> None:
    size = MIB if empty.size else 0
    # the one emulated processor of the VM serves no hundred programs within the seconds that a server has to answer
    at_once = CROWD // 10 if os.environ.get(enter.MARK) == "storage-vm" else CROWD
    with multiprocessing.get_context("fork").Pool(at_once) as pool:
        made = pool.starmap(_one_of_many, [(empty.form, number, size) for number in range(CROWD)], chunksize=1)
        assert len({*made}) == CROWD
        assert {*made} == {*empty.listed()}
        numbers = sorted(int(own_name(volid).partition(".")[0].rpartition("-")[2]) for volid in made)
        assert numbers == sorted([*range(CROWD // 2)] * 2)
        pool.map(volumes.free, made, chunksize=1)
    assert not empty.listed()


# Streams: to a file, and from there to a volume of another guest.


def written(volid: str, form: str, place: Path, state: State = transfer.NOW) -> Path:
    with place.open("wb") as file:
        transfer.export(volid, form, file.fileno(), state)
    return place


def made_from(place: Path, volid: str, form: str, state: State = transfer.NOW) -> str:
    """Import a stream under a name that guest 200 may have."""
    with place.open("rb") as file:
        return transfer.import_(volid.replace("100", "200"), form, file.fileno(), state)


@pytest.mark.core
def test_a_volume_gets_out_as_a_stream_and_in_again(empty: Case, tmp_path: Path) -> None:
    volid = empty.alloc()
    put(volid, 0x11)
    put(volid, 0x22, SIZE - BLOCK)
    (form,) = transfer.exports(volid)
    assert form == ("tar+size" if empty.folders else "raw+size")
    stream = written(volid, form, tmp_path / "stream")
    assert int.from_bytes(stream.read_bytes()[:8], "little") == empty.size
    made = made_from(stream, volid, form)
    assert made == volid.replace("100", "200")
    assert volumes.info(made).size == empty.size
    assert holds(made, 0x11)
    assert holds(made, 0, BLOCK, SIZE - 2 * BLOCK)
    assert holds(made, 0x22, SIZE - BLOCK)
    with pytest.raises(Exists, match="already exists"):
        made_from(stream, volid, form)
    assert {*empty.listed()} == {volid, made}


def test_a_stream_that_ends_too_early_leaves_no_volume(empty: Case, tmp_path: Path) -> None:
    volid = empty.alloc()
    put(volid, 0x11)
    (form,) = transfer.exports(volid)
    stream = written(volid, form, tmp_path / "stream")
    for length in (40_000, 5000, 8, 3):
        os.truncate(stream, length)
        with pytest.raises(PveError):
            made_from(stream, volid, form)
        assert [*empty.listed()] == [volid]


def test_snapshots_travel_in_the_storages_own_streams(empty: Case, tmp_path: Path) -> None:
    own = [form for form in empty.info.exports(empty.form) if not form.endswith("+size")]
    if not own:
        pytest.skip("the storage has no streams of its own")
    volid, stream = empty.alloc(), tmp_path / "stream"
    for byte, name in enumerate(("one", "two", "three"), 1):
        put(volid, byte)
        volumes.snapshot(volid, name)
    first, rest = State("one"), State("three", "one", with_snapshots=True)
    made = made_from(written(volid, own[0], stream, first), volid, own[0], first)
    assert holds(made, 1)
    put(made, 9, BLOCK)  # what is in no snapshot goes
    assert made_from(written(volid, own[0], stream, rest), volid, own[0], rest) == made
    assert holds(made, 3)
    assert holds(made, 0, BLOCK)
    assert [found.name for found in volumes.snapshots(made)] == ["one", "two", "three"]
    volumes.delete_snapshot(made, "three")
    volumes.rollback(made, "two")
    assert holds(made, 2)
    os.truncate(written(volid, own[0], stream, State("two")), 9000)
    with pytest.raises(PveError):
        made_from(stream, volid.replace("disk-0", "disk-1"), own[0], State("two"))
    assert {*empty.listed()} == {volid, made}


# As users see it.


def test_pvesm_makes_shows_and_removes_it(empty: Case, cli: Callable[..., str]) -> None:
    size = "32M" if empty.size else "0"
    volid = cli("pvesm", "alloc", STORAGE, "100", "", size, "--format", empty.form).strip().split("'")[1]
    assert volid in cli("pvesm", "list", STORAGE)
    assert cli("pvesm", "path", volid).strip() == volumes.source(volid).image
    cli("pvesm", "free", volid)
    assert not empty.listed()


def test_an_image_gets_in_and_out_byte_by_byte(empty: Case, tmp_path: Path) -> None:
    if empty.folders:
        pytest.skip("folders hold no images")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(MIB) + bytes(6 * MIB) + os.urandom(MIB))
    volid = empty.alloc(size=8 * MIB)
    found = volumes.source(volid)
    image, opening = shlex.quote(found.image), shlex.join(found.options)
    sh(f"qemu-img convert {opening} -n -f raw -O {found.format} {source} {image}")
    sh(f"qemu-img convert {opening} -f {found.format} -O raw {image} {back}")
    assert back.read_bytes()[: 8 * MIB] == source.read_bytes()
