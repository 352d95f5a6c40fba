"""What only btrfs has: the layout of subvolumes, quotas, copy on write that is off, and what killed commands leave."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from pvetools.storage import subvolumes, volumes
from pvetools.system import paths, run
from pvetools.system.errors import NotFound, PveError, Refused
from tests.real.test_storage_contract import btrfs_file_system
from tests.sandbox.root import Result, Root
from tests.sandbox.steps import Walk

MIB = 1 << 20
DISK, FOLDER = "store:100/vm-100-disk-0.raw", "store:100/subvol-100-disk-0.subvol"


@pytest.fixture(scope="module")
def file_system() -> Iterator[Path]:
    with btrfs_file_system() as point:
        yield Path(point)


def define(place: Path, *options: str) -> None:
    lines = "".join(f"\t{option}\n" for option in ("content images,rootdir", *options))
    paths.storage_config().write_text(f"btrfs: store\n\tpath {place}\n{lines}")


@pytest.fixture
def store(root: Root, file_system: Path) -> Iterator[Path]:
    """Folder of the images of a storage ``store``."""
    place = file_system / "store"
    define(place)
    yield place / "images"
    define(place)
    for volume in volumes.list_volumes("store"):
        volumes.free(volume.volid)
    assert below(place / "images") == []


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(place: Path, byte: int, length: int = MIB) -> None:
    with place.open("r+b" if place.exists() else "wb") as file:
        file.write(bytes([byte]) * length)
        os.fsync(file.fileno())


# Layout.


def test_volumes_and_snapshots_lie_where_proxmox_ve_has_them(store: Path) -> None:
    assert volumes.alloc("store", 100, MIB) == DISK
    assert volumes.alloc("store", 100, 0, format="subvol", content="rootdir", name=FOLDER.rpartition("/")[2]) == FOLDER
    volumes.snapshot(DISK, "one")
    volumes.snapshot(FOLDER, "one")
    assert below(store) == [
        "100", "100/subvol-100-disk-0.subvol", "100/subvol-100-disk-0.subvol@one",
        "100/vm-100-disk-0", "100/vm-100-disk-0/disk.raw", "100/vm-100-disk-0@one", "100/vm-100-disk-0@one/disk.raw",
    ]  # fmt: skip
    assert volumes.path(DISK) == store / "100/vm-100-disk-0/disk.raw"
    assert volumes.volume_id(store / "100/vm-100-disk-0/disk.raw") == DISK
    assert volumes.volume_id(store / "100/subvol-100-disk-0.subvol") == FOLDER
    assert volumes.volume_id(store / "100/vm-100-disk-0@one/disk.raw") is None
    assert subvolumes.info(store / "100/vm-100-disk-0@one").read_only
    volumes.delete_snapshot(DISK, "one")
    base = volumes.make_base(DISK)
    assert volumes.path(base) == store / "100/base-100-disk-0/disk.raw"
    assert subvolumes.info(store / "100/base-100-disk-0").read_only
    assert volumes.clone(base, 101) == "store:101/vm-101-disk-0.raw"
    assert not subvolumes.info(store / "101/vm-101-disk-0").read_only


def test_a_volume_that_becomes_no_base_can_still_be_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes.alloc("store", 100, MIB)
    with monkeypatch.context() as patch:
        patch.setattr(subvolumes, "set_read_only", refuse)
        with pytest.raises(PveError, match="not now"):
            volumes.make_base(DISK)
    fill(volumes.path(DISK), 1)
    assert below(store) == ["100", "100/vm-100-disk-0", "100/vm-100-disk-0/disk.raw"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(PveError, match="not now"):
            volumes.make_base(DISK)
    assert not subvolumes.info(store / "100/vm-100-disk-0").read_only


def test_volumes_that_others_made_are_used_as_they_are(store: Path) -> None:
    folder = store / "100"
    folder.mkdir(parents=True)
    run.run(["btrfs", "subvolume", "create", folder / "vm-100-disk-0"])
    with (folder / "vm-100-disk-0/disk.raw").open("wb") as file:
        file.truncate(4 * MIB)
    run.run(["btrfs", "subvolume", "snapshot", "-r", folder / "vm-100-disk-0", folder / "vm-100-disk-0@one"])
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "vm-100-disk-1.qcow2", "1M"])
    (folder / "foreign").mkdir()
    (folder / "vm-100-disk-9.raw").write_bytes(b"a plain file is no volume here")
    found = {volume.volid: volume.size for volume in volumes.list_volumes("store")}
    assert found == {DISK: 4 * MIB, "store:100/vm-100-disk-1.qcow2": MIB}
    assert [snapshot.name for snapshot in volumes.snapshots(DISK)] == ["one"]
    fill(volumes.path(DISK), 7)
    volumes.rollback(DISK, "one")
    assert volumes.path(DISK).read_bytes() == bytes(4 * MIB)
    volumes.snapshot("store:100/vm-100-disk-1.qcow2", "inner")
    for volid in found:
        volumes.free(volid)
    assert below(folder) == ["foreign", "vm-100-disk-9.raw"]
    (folder / "foreign").rmdir()
    (folder / "vm-100-disk-9.raw").unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    "name",
    ["100/subvol-100-disk-0.subvol.raw", "100/vm-100-disk-0@one.raw", "100/subvol-100-disk-0.subvol@one",
     "100/vm-100-disk-0", "100/x.qcow2.raw", "100/../101/vm-100-disk-0.raw"],
)  # fmt: skip
def test_names_that_would_lead_into_other_volumes_are_refused(store: Path, name: str) -> None:
    volumes.alloc("store", 100, 0, format="subvol", content="rootdir")
    (volumes.path(FOLDER) / "disk.raw").write_bytes(b"made by a container")
    for act in (volumes.path, volumes.source, volumes.free):
        with pytest.raises(PveError, match="unable to parse"):
            act(f"store:{name}")
    assert volumes.exists(FOLDER)


# State of the storage.


def test_another_file_system_is_told(root: Root, cli: Callable[..., Result]) -> None:
    define(root / "plain")
    ran = cli("pvesm", "status", "--storage", "store", ok=True)
    assert "inactive" in ran.stdout
    assert f"WARN: unable to activate storage 'store' - '{root / 'plain'}' is not on a btrfs" in ran.stderr


def test_a_file_in_place_of_the_folder_is_told(root: Root) -> None:
    (root / "file").write_text("")
    for place in (root / "file", root / "file/below"):
        define(place)
        why = volumes.status("store")[0].reason
        assert f"unable to activate storage 'store' - '{root / 'file'}': Not a directory" in why


def test_a_file_system_that_is_not_mounted_is_told(store: Path, file_system: Path) -> None:
    define(file_system / "store", "is_mountpoint yes")
    assert "is expected to be a mount point but is not mounted" in volumes.status("store")[0].reason
    define(file_system / "store", f"is_mountpoint {file_system}")
    assert volumes.status("store")[0].active


def flags(path: Path) -> str:
    return subprocess.run(["lsattr", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_copy_on_write_can_be_off(store: Path, file_system: Path) -> None:
    volumes.alloc("store", 100, MIB)
    define(file_system / "store", "nocow 1")
    disk = volumes.alloc("store", 100, MIB)
    assert "C" not in flags(volumes.path(DISK))
    assert "C" in flags(volumes.path(disk))


@pytest.mark.parametrize(("options", "cache"), [((), "writeback"), (("nocow 1",), "none")])
def test_qemu_gets_the_cache_that_checksums_need(
    store: Path, file_system: Path, cli: Callable[..., Result], options: tuple[str, ...], cache: str
) -> None:
    define(file_system / "store", *options)
    cli("qm", "create", 100, "--kvm", 0, "--scsi0", "store:1", ok=True)
    words = cli("qm", "showcmd", 100, ok=True).stdout
    assert ('"direct":true' in words) == (cache == "none")
    cli("qm", "destroy", 100, ok=True)


def test_space_can_be_taken_at_once(store: Path, file_system: Path) -> None:
    define(file_system / "store", "preallocation full")
    assert volumes.info(volumes.alloc("store", 100, 4 * MIB)).used == 4 * MIB


# Quotas.


@pytest.fixture
def quotas(file_system: Path) -> Iterator[None]:
    run.run(["btrfs", "quota", "enable", file_system])
    yield
    run.run(["btrfs", "quota", "disable", file_system])


def test_folders_take_no_size_without_quotas(store: Path, cli: Callable[..., Result]) -> None:
    ran = cli("pvesm", "alloc", "store", "100", "", "8M", "--format", "subvol")
    assert ran.status == 255
    assert "its file system has no quotas: give size 0, or switch quotas on with: btrfs quota enable" in ran.stderr
    assert below(store) == []


@pytest.mark.usefixtures("quotas")
def test_the_size_of_a_folder_is_a_limit_that_copies_keep(store: Path) -> None:
    volid = volumes.alloc("store", 100, 8 * MIB, format="subvol", content="rootdir")
    assert volumes.info(volid).size == 8 * MIB
    with pytest.raises(OSError, match="quota exceeded"):
        fill(volumes.path(volid) / "big", 1, 20 * MIB)
    (volumes.path(volid) / "big").unlink()
    volumes.snapshot(volid, "one")
    volumes.rollback(volid, "one")
    assert volumes.info(volid).size == 8 * MIB
    volumes.resize(volid, 16 * MIB)
    assert volumes.info(volid).size == 16 * MIB
    volumes.delete_snapshot(volid, "one")
    clone = volumes.clone(volumes.make_base(volid), 101)
    assert volumes.info(clone).size == 16 * MIB
    unlimited = volumes.alloc("store", 102, 0, format="subvol", content="rootdir")
    with pytest.raises(Refused, match="it is a folder without a limit"):
        volumes.resize(unlimited, MIB)


@pytest.mark.usefixtures("quotas")
def test_a_clone_that_can_not_be_limited_goes_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = volumes.make_base(volumes.alloc("store", 100, 8 * MIB, format="subvol", content="rootdir"))
    monkeypatch.setattr(subvolumes, "limit", refuse)
    with pytest.raises(PveError, match="not now"):
        volumes.clone(base, 101)
    assert not (store / "101").exists()


def refuse(*_words: object) -> None:
    raise PveError("not now")


# What is inside of folders, and what is left over.


def test_a_folder_goes_with_the_subvolumes_that_were_made_in_it(store: Path) -> None:
    volumes.alloc("store", 100, 0, format="subvol", content="rootdir")
    place = volumes.path(FOLDER)
    (place / "var/lib").mkdir(parents=True)
    for inner in ("var/lib/machines", "var/lib/machines/one", "srv"):
        run.run(["btrfs", "subvolume", "create", place / inner])
    run.run(["btrfs", "subvolume", "snapshot", "-r", place / "srv", place / "kept"])
    volumes.snapshot(FOLDER, "one")
    volumes.free(FOLDER)
    assert below(store) == []


def test_folders_may_be_deeper_than_programs_like(store: Path) -> None:
    volumes.alloc("store", 100, 0, format="subvol", content="rootdir")
    place = volumes.path(FOLDER) / "/".join("d" * 1500)
    run.run(["mkdir", "-p", place])
    run.run(["btrfs", "subvolume", "create", place / "inner"])
    volumes.free(FOLDER)
    assert below(store) == []


def test_what_killed_commands_left_goes_with_the_next_one(store: Path) -> None:
    volumes.alloc("store", 100, MIB)
    folder = store / "100"
    for left in (".vm-100-disk-1.tmp", ".vm-100-disk-0.tmp", ".receive-x.tmp/vm-100-disk-0@one"):
        (folder / left).parent.mkdir(exist_ok=True)
        run.run(["btrfs", "subvolume", "create", folder / left])
    assert [volume.volid for volume in volumes.list_volumes("store")] == [DISK]
    made = volumes.alloc("store", 100, MIB)
    assert made == "store:100/vm-100-disk-1.raw"
    volumes.free(made)
    volumes.free(DISK)
    assert below(store) == []


MAKE = """
from pvetools.storage import volumes
{act}
"""


def test_a_killed_allocation_leaves_a_whole_volume_or_none(store: Path, root: Root) -> None:
    walk = Walk(root, "pvesm", "alloc", "store", "100", "", "4M")
    walk.count()
    volumes.free(DISK)
    for number in count(1):
        if not walk.kill_before(number).killed:
            assert number > 2
            break
        assert all(volume.size in (0, 4 * MIB) for volume in volumes.list_volumes("store"))
        volumes.alloc("store", 100, MIB)
        for volid in volumes.owned_by(100):
            volumes.free(volid)
        assert below(store) == []


@pytest.mark.parametrize(
    ("act", "contents"),
    [
        ("volumes.snapshot({!r}, 'two')", {2}),
        ("volumes.rollback({!r}, 'one')", {1, 2}),
        ("volumes.delete_snapshot({!r}, 'one')", {2}),
    ],
)
def test_a_killed_change_of_snapshots_is_done_or_not_done(
    store: Path, root: Root, act: str, contents: set[int]
) -> None:
    def prepare() -> None:
        volumes.free(DISK, missing_ok=True)
        volumes.alloc("store", 100, MIB)
        fill(volumes.path(DISK), 1)
        volumes.snapshot(DISK, "one")
        fill(volumes.path(DISK), 2)

    prepare()
    walk = Walk.of_code(root, MAKE.format(act=act.format(DISK)))
    walk.count()
    for number in count(1):
        prepare()
        if not walk.kill_before(number).killed:
            assert number > 1
            break
        data = volumes.path(DISK).read_bytes()
        assert {*data} <= contents
        assert len({*data}) == 1
        names = {snapshot.name for snapshot in volumes.snapshots(DISK)}
        assert names <= {"one", "two"}
        assert "one" in names or "delete" in act
        if "one" in names:
            volumes.rollback(DISK, "one")
            assert {*volumes.path(DISK).read_bytes()} == {1}


def test_a_killed_import_can_be_removed_and_repeated(store: Path, root: Root) -> None:
    volumes.alloc("store", 100, MIB)
    fill(volumes.path(DISK), 1)
    volumes.snapshot(DISK, "one")
    stream, target = str(root / "stream"), "store:200/vm-200-disk-0.raw"
    words = ("btrfs", stream, "--snapshot", "one")
    root.cli("pvesm", "export", DISK, *words, ok=True)
    walk = Walk(root, "pvesm", "import", target, *words)
    walk.count()
    for number in count(1):
        volumes.free(target, missing_ok=True)
        if not walk.kill_before(number).killed:
            assert number > 4
            break
        if volumes.exists(target):
            assert {*volumes.path(target).read_bytes()} == {1}
    volumes.free(target)
    assert not (store / "200").exists()


def test_a_base_can_be_removed_while_its_clones_live_on(store: Path) -> None:
    volumes.alloc("store", 100, MIB)
    fill(volumes.path(DISK), 3)
    base = volumes.make_base(DISK)
    clone = volumes.clone(base, 101)
    volumes.free(base)
    assert {*volumes.path(clone).read_bytes()} == {3}
    with pytest.raises(NotFound):
        volumes.clone(base, 101)


# Guests.


@pytest.mark.parametrize("size", [0, 1])
def test_a_container_lives_on_it_and_moves_by_backup(
    store: Path, root: Root, cli: Callable[..., Result], local_template: str, size: int
) -> None:
    cli("pct", "create", 101, local_template, "--rootfs", f"store:{size}", "--unprivileged", 0, ok=True)
    cli("pct", "start", 101, ok=True)
    cli("pct", "exec", 101, "--", "sh", "-c", "echo kept > /kept", ok=True)
    cli("pct", "stop", 101, ok=True)
    (root / "dump").mkdir()
    cli("vzdump", 101, "--compress", "zstd", "--dumpdir", root / "dump", "--mode", "stop", ok=True)
    archive = next((root / "dump").glob("*.tar.zst"))
    cli("pct", "restore", 102, archive, "--rootfs", "local:0", ok=True)
    assert (volumes.path(volumes.owned_by(102)[0]) / "kept").read_text() == "kept\n"
    cli("pct", "destroy", 101, ok=True)
    assert volumes.owned_by(101) == []
    cli("pct", "restore", 103, archive, "--rootfs", f"store:{size}", ok=True)
    cli("pct", "start", 103, ok=True)
    assert cli("pct", "exec", 103, "--", "cat", "/kept", ok=True).stdout == "kept\n"
    cli("pct", "stop", 103, ok=True)
    cli("pct", "destroy", 103, ok=True)


def test_subvolumes_inside_of_a_container_are_told_when_it_is_saved(
    store: Path, root: Root, cli: Callable[..., Result], local_template: str
) -> None:
    cli("pct", "create", 101, local_template, "--rootfs", "store:0", "--unprivileged", 1, ok=True)
    (folder,) = map(volumes.path, volumes.owned_by(101))
    subprocess.run(["btrfs", "subvolume", "create", folder / "nested"], check=True, stdout=subprocess.DEVNULL)
    said = "WARN: subvolume 'nested' inside of the container is not included in the backup"
    assert said in cli("vzdump", 101, "--compress", 0, "--storage", "local", ok=True).stderr
    cli("pct", "start", 101, ok=True)
    assert said in cli("vzdump", 101, "--compress", 0, "--storage", "local", "--mode", "suspend", ok=True).stderr
    cli("pct", "stop", 101, ok=True)
