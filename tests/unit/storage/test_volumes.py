"""Volumes of directory storages: making, listing, growing and removing real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pvetools.config import guest
from pvetools.storage import folders, registry, volumes
from pvetools.storage.backends import dir as backend
from pvetools.system import log, paths, run
from pvetools.system.errors import Exists, NotFound, PveError, Refused, RunError

MIB = 1 << 20
BACKUP = "backup/vzdump-qemu-100-2020_03_30-21_12_40.vma.zst"


def configure(text: str) -> None:
    paths.storage_config().write_text(text)


def image_info(path: Path) -> dict[str, object]:
    return dict(json.loads(run.run(["qemu-img", "info", "--output=json", path]).stdout))


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def put(local: Path, name: str, text: str = "x") -> Path:
    path = local / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Allocation.


def test_names_count_up_and_gaps_are_filled_whatever_the_format(local: Path) -> None:
    made = [volumes.alloc("local", 100, MIB, format=form) for form in ("raw", "qcow2", "raw")]
    assert made == ["local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-1.qcow2", "local:100/vm-100-disk-2.raw"]
    (local / "images/100/vm-100-disk-0.raw").rename(local / "images/100/base-100-disk-0.raw")
    volumes.free(made[1])
    assert volumes.alloc("local", 100, MIB) == "local:100/vm-100-disk-1.raw"
    assert volumes.alloc("local", 101, MIB) == "local:101/vm-101-disk-0.raw"
    assert volumes.alloc("local", 101, 0, format="subvol", content="rootdir") == "local:101/subvol-101-disk-1.subvol"


@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk"])
def test_images_have_their_format_and_size(local: Path, form: str) -> None:
    volid = volumes.alloc("local", 100, 5 * MIB + 3, format=form)
    said = image_info(volumes.path(volid))
    assert said["format"] == form
    assert volumes.info(volid).size >= 5 * MIB + 1024
    assert said["virtual-size"] == volumes.info(volid).size
    assert volumes.path(volid).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("mode", "form", "used"),
    [
        ("off", "raw", 0),
        ("metadata", "raw", 0),
        ("falloc", "raw", 8 * MIB),
        ("full", "raw", 8 * MIB),
        ("full", "qcow2", 8 * MIB),
    ],
)
def test_preallocation_takes_space_at_once(root: Path, mode: str, form: str, used: int) -> None:
    configure(f"dir: fast\n\tpath {root}/fast\n\tpreallocation {mode}\n")
    volume = volumes.info(volumes.alloc("fast", 100, 8 * MIB, format=form))
    assert used <= volume.used <= used + MIB


def test_qcow2_metadata_is_preallocated_unless_switched_off(root: Path) -> None:
    configure(f"dir: usual\n\tpath {root}/u\n\ndir: lean\n\tpath {root}/l\n\tpreallocation off\n")
    sizes = [
        volumes.path(volumes.alloc(name, 100, 256 * MIB, format="qcow2")).stat().st_size for name in ("usual", "lean")
    ]
    assert sizes[0] > 256 * MIB > sizes[1]


def test_a_folder_volume_has_no_size(local: Path) -> None:
    volid = volumes.alloc("local", 101, 0, format="subvol", content="rootdir")
    assert volumes.path(volid).is_dir()
    assert volumes.source(volid).kind == "folder"
    with pytest.raises(PveError, match="give size 0"):
        volumes.alloc("local", 101, MIB, format="subvol", content="rootdir")


def test_the_format_comes_from_wish_name_or_storage(root: Path) -> None:
    configure(f"dir: qq\n\tpath {root}/q\n\tformat qcow2\n")
    assert volumes.alloc("qq", 100, MIB).endswith(".qcow2")
    assert volumes.alloc("qq", 100, MIB, format="raw").endswith(".raw")
    assert volumes.alloc("qq", 100, MIB, name="vm-100-state-x.raw") == "qq:100/vm-100-state-x.raw"


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"name": "../vm-100-disk-0.raw"}, "unable to parse volume filename"),
        ({"name": "a/vm-100-disk-0.raw"}, "unable to parse volume filename"),
        ({"name": "..raw"}, "unable to parse volume filename"),
        ({"name": "vm-100-disk-0.raw", "format": "qcow2"}, "wrong extension for format 'qcow2'"),
        ({"name": "base-100-disk-0.raw"}, "new volumes can't be base volumes"),
        ({"format": "vhdx"}, "can't make images of format 'vhdx', only: qcow2, raw, subvol, vmdk"),
        ({"content": "iso"}, "can't|only"),
    ],
)
def test_wrong_wishes_are_refused_and_leave_nothing(root: Path, wish: dict[str, str], sentence: str) -> None:
    configure(f"dir: ss\n\tpath {root}/ss\n")
    volumes.usable("ss")
    before = files_below(root / "ss")
    with pytest.raises(PveError, match=sentence):
        volumes.alloc("ss", 100, MIB, **wish)
    assert files_below(root / "ss") == before


@pytest.mark.parametrize("size", [(1 << 63) - 1, 1 << 63, 1 << 100])
def test_sizes_that_no_file_can_have_are_refused(local: Path, size: int) -> None:
    with pytest.raises(PveError, match=r"^the size of a volume must be smaller than 8 EiB$"):
        volumes.alloc("local", 100, size)
    assert not (local / "images/100").exists()


def test_an_existing_name_is_not_overwritten(local: Path) -> None:
    volid = volumes.alloc("local", 100, MIB, name="vm-100-disk-7.raw")
    volumes.path(volid).write_bytes(b"data")
    with pytest.raises(Exists, match=r"vm-100-disk-7\.raw' already exists"):
        volumes.alloc("local", 100, MIB, name="vm-100-disk-7.raw")
    assert volumes.path(volid).read_bytes() == b"data"


def test_a_name_is_not_free_as_long_as_parts_of_its_image_are_there(local: Path) -> None:
    """An interrupted snapshot may have left them."""
    put(local, "images/100/snap-old-vm-100-disk-0.qcow2")
    put(local, "images/100/.vm-100-disk-1.qcow2.new")
    assert volumes.alloc("local", 100, MIB) == "local:100/vm-100-disk-2.raw"


def test_a_dangling_link_is_not_followed_when_a_volume_is_made(local: Path, tmp_path: Path) -> None:
    volumes.alloc("local", 100, MIB)
    (local / "images/100/vm-100-disk-5.raw").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exists):
        volumes.alloc("local", 100, MIB, name="vm-100-disk-5.raw")
    assert not (tmp_path / "elsewhere").exists()


def test_a_failed_allocation_leaves_nothing_behind(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes.usable("local")
    before = files_below(local)
    for broken, sentence in (
        (OSError(28, "No space left on device"), "storage 'local' is full: no space for a volume of 1.00 MiB, .* free"),
        (RunError(["qemu-img"], 1, "qemu-img: No space left on device"), "storage 'local' is full"),
        (RunError(["qemu-img"], 1, "odd"), "command 'qemu-img' failed: odd"),
        (KeyboardInterrupt(), None),
    ):

        def fail(*_: object, error: BaseException = broken) -> None:
            raise error

        monkeypatch.setattr(backend.Directory, "_fill", fail)
        with pytest.raises((PveError, KeyboardInterrupt), match=sentence):
            volumes.alloc("local", 100, MIB)
        assert files_below(local) == before


ALLOCATE = """
import sys
from pvetools.storage import volumes
for _ in range(5):
    print(volumes.alloc("local", 100, 1 << 20, format=sys.argv[1]))
"""


def test_a_hundred_parallel_allocations_never_collide(local: Path) -> None:
    volumes.usable("local")
    argv = [sys.executable, "-c", ALLOCATE]
    workers = [
        subprocess.Popen([*argv, form], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
        for form in ["raw"] * 16 + ["qcow2"] * 4
    ]
    made = [line for worker in workers for line in worker.communicate(timeout=120)[0].split()]
    assert all(worker.returncode == 0 for worker in workers)
    numbers = sorted(int(volid.rpartition("-")[2].partition(".")[0]) for volid in made)
    assert numbers == list(range(100))
    assert sorted(volume.volid for volume in volumes.list_volumes("local")) == sorted(made)


# Where storages may be used.


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("disable", "storage 'ss' is disabled"),
        ("nodes elsewhere,nowhere", "storage 'ss' is not available on node"),
        ("content iso,backup", "storage 'ss' does not support content type 'images', only: backup, iso"),
        ("content none", "storage 'ss' does not support content type 'images', only: nothing"),
        ("is_mountpoint yes", "is expected to be a mount point but is not mounted: '.*/ss'"),
        ("is_mountpoint /no/such/mount", "is not mounted: '/no/such/mount'"),
        ("create-base-path 0", "directory '.*/ss' does not exist or is unreachable"),
        ("mkdir 0", "directory '.*/ss' does not exist or is unreachable"),
        ("preallocation sometimes", r"storage\.cfg line 1: storage 'ss': preallocation: value 'sometimes' does not"),
    ],
)
def test_storages_that_may_not_be_used_say_why(root: Path, option: str, sentence: str) -> None:
    configure(f"dir: ss\n\tpath {root}/ss\n\t{option}\n")
    with pytest.raises(PveError, match=sentence):
        volumes.alloc("ss", 100, MIB)
    assert not list(root.glob("s/images/*"))


def test_a_directory_that_cannot_be_made_is_named(root: Path) -> None:
    configure(f"dir: ss\n\tpath {root}/ss\n\tcontent iso\n")
    (root / "ss").mkdir()
    (root / "ss/template").write_text("")
    with pytest.raises(PveError, match=r"unable to activate storage 'ss' - can't make '.*/ss/template/iso': Not a"):
        volumes.list_volumes("ss")


def test_unknown_storages_and_types_are_named(root: Path) -> None:
    configure("pbs: far\n\tdatastore main\n\tserver 10.0.0.1\n\tcontent images\n\nfancy: ff\n\tpath /f\n")
    with pytest.raises(NotFound, match="storage 'nope' does not exist"):
        volumes.alloc("nope", 100, MIB)
    with pytest.raises(Refused, match="storage type 'pbs' is not served by this version, only: "):
        volumes.alloc("far", 100, MIB)
    with pytest.raises(PveError, match=r"line 6: storage 'ff': unsupported type 'fancy'"):
        volumes.alloc("ff", 100, MIB)


def test_subdirectories_are_made_for_configured_content_unless_switched_off(root: Path) -> None:
    configure(f"dir: ss\n\tpath {root}/ss\n\tcontent iso,backup\n\tcontent-dirs backup=mine/dumps\n")
    assert volumes.content_dir("ss", "backup") == root / "ss/mine/dumps"
    assert files_below(root / "ss") == ["mine", "mine/dumps", "template", "template/iso"]
    configure(f"dir: tt\n\tpath {root}/tt\n\tcontent iso\n\tcreate-subdirs 0\n")
    with pytest.raises(PveError, match=r"directory '.*/tt/template/iso' for content type 'iso' does not exist"):
        volumes.content_dir("tt", "iso")
    with pytest.raises(Refused, match="does not support content type 'backup'"):
        volumes.content_dir("tt", "backup")


def test_local_needs_no_configuration_and_takes_everything(root: Path) -> None:
    found = volumes.get("local")
    assert found.implicit
    assert found.options.path == str(root / "var/lib/vz")
    assert found.content == {"backup", "images", "import", "iso", "rootdir", "snippets", "vztmpl"}
    configure("dir: local\n\tpath /elsewhere\n\tcontent iso\n")
    assert volumes.get("local").options.path == "/elsewhere"
    assert not volumes.get("local").implicit


def test_one_damaged_storage_does_not_hide_the_others(root: Path) -> None:
    configure(f"dir: bad\n\tpath relative\n\nfancy: ff\n\ndir: good\n\tpath {root}/good\nnonsense\n")
    lines: list[str] = []
    with log.sink(lines.append):
        assert list(volumes.storages()) == ["local", "good"]
    for part in (
        "line 1: storage 'bad': path: ",
        "line 4: storage 'ff': unsupported type",
        "line 8: section 'good' - ignore",
    ):
        assert any(part in line for line in lines)


def test_status_shows_space_and_why_a_storage_is_inactive(root: Path) -> None:
    configure(
        f"dir: aa\n\tpath {root}/aa\n\tcontent iso\n\ndir: off\n\tpath {root}/o\n\tdisable\n\n"
        f"dir: gone\n\tpath {root}/g\n\tmkdir 0\n\ndir: away\n\tpath {root}/w\n\tnodes other\n"
    )
    rows = {row.definition.id: row for row in volumes.status()}
    assert {name: (row.enabled, row.active) for name, row in rows.items()} == {
        "aa": (True, True), "away": (False, False), "gone": (True, False), "local": (True, True), "off": (False, False),
    }  # fmt: skip
    found = os.statvfs(root / "aa")
    space = rows["aa"].space
    assert space and space.total == found.f_blocks * found.f_frsize
    assert abs(space.avail - found.f_bavail * found.f_frsize) < 1 << 30
    assert "does not exist" in rows["gone"].reason
    assert [row.definition.id for row in volumes.status(contents=["iso"])] == ["aa", "local"]
    assert [row.definition.id for row in volumes.status(enabled=True)] == ["aa", "gone", "local"]
    assert [row.definition.id for row in volumes.status("off")] == ["off"]
    with pytest.raises(NotFound):
        volumes.status("nope")


# Listing.


def test_listing_tells_content_formats_and_owners(local: Path) -> None:
    guest.create("lxc", 101, {"hostname": "ct"})
    put(local, "template/iso/a.ISO")
    put(local, "template/iso/readme.txt")
    put(local, "template/cache/debian.tar.zst")
    put(local, f"{BACKUP.replace('backup', 'dump', 1)}")
    put(local, f"{BACKUP.replace('backup', 'dump', 1)}.notes", "first\nsecond\n")
    put(local, f"{BACKUP.replace('backup', 'dump', 1)}.protected", "")
    put(local, "dump/vzdump-qemu-100-2020_03_30-21_12_40.log")
    put(local, "dump/my-own.tar")
    put(local, "dump/old-102-mail.vma")
    put(local, "snippets/hook.sh")
    put(local, "import/box.ova")
    volumes.alloc("local", 100, MIB)
    volumes.alloc("local", 101, MIB, content="rootdir")
    put(local, "images/100/.hidden.raw")
    put(local, "images/100/notes.txt")
    put(local, "images/abc/vm-1-disk-0.raw")
    (local / "images/100/folder.raw").mkdir()
    rows = {row.volid.removeprefix("local:"): row for row in volumes.list_volumes("local")}
    assert {name: (row.content, row.format, row.vmid) for name, row in rows.items()} == {
        "100/vm-100-disk-0.raw": ("images", "raw", 100),
        "101/vm-101-disk-0.raw": ("rootdir", "raw", 101),
        "backup/my-own.tar": ("backup", "tar", None),
        "backup/old-102-mail.vma": ("backup", "vma", 102),
        BACKUP: ("backup", "vma.zst", 100),
        "import/box.ova": ("import", "ova", None),
        "iso/a.ISO": ("iso", "iso", None),
        "snippets/hook.sh": ("snippets", "snippet", None),
        "vztmpl/debian.tar.zst": ("vztmpl", "tzst", None),
    }
    backup = rows[BACKUP]
    assert (backup.subtype, backup.notes, backup.protected) == ("qemu", "first", True)
    assert [row.volid for row in volumes.list_volumes("local", ["images", "backup"], 100)] == [
        "local:100/vm-100-disk-0.raw", f"local:{BACKUP}",
    ]  # fmt: skip
    assert [row.volid for row in volumes.list_volumes("local", ["backup"], 102)] == ["local:backup/old-102-mail.vma"]
    assert volumes.owned_by(100) == ["local:100/vm-100-disk-0.raw"]
    assert volumes.owned_by(101) == ["local:101/vm-101-disk-0.raw"]


def test_a_damaged_image_is_listed_with_a_warning(local: Path) -> None:
    put(local, "images/100/vm-100-disk-0.qcow2", "no image at all")
    lines: list[str] = []
    with log.sink(lines.append):
        assert [row.size for row in volumes.list_volumes("local")] == [0]
    assert "is not a valid qcow2 image" in lines[0]


@pytest.mark.parametrize("gone", ["template/iso/b.iso", f"dump/{Path(BACKUP).name}"])
def test_a_file_that_is_removed_while_it_is_listed_hides_no_others(
    local: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(local, "template/iso/a.iso")
    put(local, "snippets/s.sh")
    path, scan = put(local, gone), folders._scan

    def removed(folder: Path) -> list[os.DirEntry[str]]:
        found = scan(folder)
        if folder == path.parent:
            for entry in found:
                entry.is_file()
            path.unlink()
        return found

    monkeypatch.setattr(folders, "_scan", removed)
    found = [*registry.driver(volumes.get("local")).volumes({"backup", "iso", "snippets"}, None)]
    assert {volume.volid for volume in found} == {"local:iso/a.iso", "local:snippets/s.sh"}


def test_content_that_a_storage_may_not_hold_is_not_listed(root: Path) -> None:
    configure(f"dir: ss\n\tpath {root}/ss\n\tcontent iso\n")
    put(root / "ss", "template/iso/a.iso")
    put(root / "ss", "snippets/a.sh")
    assert [row.volid for row in volumes.list_volumes("ss")] == ["ss:iso/a.iso"]
    assert volumes.list_volumes("ss", ["snippets"]) == []


def test_linked_clones_name_their_base(local: Path) -> None:
    base = volumes.path(volumes.alloc("local", 100, MIB, format="qcow2"))
    base = base.rename(base.with_name("base-100-disk-0.qcow2"))
    clone = local / "images/101/vm-101-disk-0.qcow2"
    clone.parent.mkdir()
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", f"../100/{base.name}", clone])
    volid = "local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2"
    assert volumes.owned_by(101) == [volid]
    assert volumes.info(volid).parent == "../100/base-100-disk-0.qcow2"
    assert volumes.volume_id(clone) == volid
    assert volumes.owner(volid) == 101
    with pytest.raises(Refused, match=f"base volume 'local:100/{base.name}' is still in use by linked clone '{volid}'"):
        volumes.free(f"local:100/{base.name}")
    volumes.free(volid)
    volumes.free(f"local:100/{base.name}")
    assert files_below(local / "images") == []


def beside(act: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Do something at the same time; gives it time to be through."""
    said: list[object] = []

    def run() -> None:
        try:
            said.append(act())
        except PveError as error:
            said.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(0.5)
    return thread, said


def test_a_base_stays_while_a_clone_of_it_is_made(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = volumes.make_base(volumes.alloc("local", 100, MIB, format="qcow2"))
    started, create = [], run.run

    def slow(argv: list[str], **more: object) -> run.Completed:
        if argv[:2] == ["qemu-img", "create"]:
            started.append(beside(lambda: volumes.free(base)))
        return create(argv, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "run", slow)
    clone = volumes.clone(base, 101)
    ((thread, said),) = started
    thread.join(20)
    assert str(said[0]) == f"base volume '{base}' is still in use by linked clone '{clone}'"
    assert volumes.exists(base)


def test_of_a_base_that_is_removed_no_clone_is_made(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = volumes.make_base(volumes.alloc("local", 100, MIB, format="qcow2"))
    started, check = [], folders.FolderStorage._check_unused

    def slow(storage: folders.FolderStorage, name: str, path: Path) -> None:
        check(storage, name, path)
        started.append(beside(lambda: volumes.clone(base, 101)))

    monkeypatch.setattr(folders.FolderStorage, "_check_unused", slow)
    volumes.free(base)
    ((thread, said),) = started
    thread.join(20)
    assert str(said[0]) == f"volume '{base}' does not exist"
    assert files_below(local / "images") == []


# Removing, growing, attributes.


def test_freeing_removes_the_file_and_an_empty_folder(local: Path) -> None:
    first, second = (volumes.alloc("local", 100, MIB) for _ in range(2))
    volumes.free(first)
    assert not volumes.exists(first)
    assert volumes.exists(second)
    volumes.free(second)
    assert not (local / "images/100").exists()
    with pytest.raises(NotFound, match=f"volume '{second}' does not exist"):
        volumes.free(second)
    volumes.free(second, missing_ok=True)


def test_freeing_a_folder_does_not_follow_links(local: Path, tmp_path: Path) -> None:
    precious = put(tmp_path, "precious/data")
    volid = volumes.alloc("local", 101, 0, format="subvol", content="rootdir")
    folder = volumes.path(volid)
    (folder / "link").symlink_to(precious.parent)
    (folder / "etc").mkdir()
    (folder / "etc/link").symlink_to("/")
    volumes.free(volid)
    assert not folder.exists()
    assert precious.exists()


def test_freeing_a_link_removes_only_the_link(local: Path, tmp_path: Path) -> None:
    precious = put(tmp_path, "precious.raw")
    link = put(local, "images/100/x").with_name("vm-100-disk-0.raw")
    link.symlink_to(precious)
    volumes.free("local:100/vm-100-disk-0.raw")
    assert precious.exists()
    assert not link.is_symlink()


@pytest.mark.parametrize("name", ["100/../../x.raw", "iso/../../../x.iso", "../x", "100/..", "snippets/.."])
def test_names_that_lead_out_of_the_storage_touch_nothing(local: Path, name: str) -> None:
    before = files_below(local)
    for call in (volumes.free, volumes.info, volumes.path, volumes.exists, volumes.source, volumes.notes):
        with pytest.raises(PveError, match="unable to parse"):
            call(f"local:{name}")
    assert files_below(local) == before


def test_a_protected_backup_stays_and_others_go_with_log_and_notes(local: Path) -> None:
    for suffix in (".vma.zst", ".vma.zst.notes", ".log"):
        put(local, f"dump/vzdump-qemu-100-2020_03_30-21_12_40{suffix}")
    volid = f"local:{BACKUP}"
    volumes.protect(volid, True)
    with pytest.raises(Refused, match=f"can't remove protected backup '{volid}'"):
        volumes.free(volid)
    volumes.protect(volid, False)
    volumes.free(volid)
    assert files_below(local / "dump") == []


def test_notes_of_a_renamed_backup_go_with_it(local: Path) -> None:
    put(local, "dump/mine.vma.zst")
    volumes.set_notes("local:backup/mine.vma.zst", "old")
    volumes.free("local:backup/mine.vma.zst")
    assert files_below(local / "dump") == []


def test_files_say_how_much_space_they_take(local: Path) -> None:
    for name in ("iso/a.iso", "backup/vzdump-qemu-100-2020_03_30-21_12_40.vma"):
        place = put(local, f"template/{name}" if "iso" in name else name.replace("backup", "dump"), "x" * 10000)
        os.sync()
        os.truncate(place, MIB)
        assert volumes.info(f"local:{name}").used == place.stat().st_blocks * 512 > 0


def test_a_list_is_sorted_without_regard_to_case(local: Path) -> None:
    for name in ("Zed.iso", "alpine.ISO", "Alpine.iso", "b.iso"):
        put(local, f"template/iso/{name}")
    found = [row.volid.rpartition("/")[2] for row in volumes.list_volumes("local", ["iso"])]
    assert found == ["Alpine.iso", "alpine.ISO", "b.iso", "Zed.iso"]


def test_the_number_of_protected_backups_can_be_limited(root: Path) -> None:
    configure(f"dir: ss\n\tpath {root}/ss\n\tcontent backup\n\tmax-protected-backups 1\n")
    volids = [f"ss:backup/vzdump-lxc-{vmid}-2020_03_30-21_12_4{n}.tar" for vmid, n in ((100, 0), (100, 1), (101, 0))]
    for volid in volids:
        put(root / "ss", volid.replace("ss:backup", "dump"))
    volumes.protect(volids[0], True)
    volumes.protect(volids[0], True)
    with pytest.raises(Refused, match="protected backups per guest is limited to 1 on storage 'ss'"):
        volumes.protect(volids[1], True)
    volumes.protect(volids[2], True)
    put(root / "ss", "dump/vzdump-qemu-100-2020_03_30-21_12_40.vma")
    volumes.protect("ss:backup/vzdump-qemu-100-2020_03_30-21_12_40.vma", True)


def test_notes_of_backups(local: Path) -> None:
    put(local, BACKUP.replace("backup", "dump", 1))
    volid = f"local:{BACKUP}"
    assert volumes.notes(volid) == ""
    volumes.set_notes(volid, "größer\nzweite")
    assert volumes.notes(volid) == "größer\nzweite"
    assert volumes.info(volid).notes == "größer"
    volumes.set_notes(volid, "")
    assert files_below(local / "dump") == [volid.rpartition("/")[2]]
    with pytest.raises(Refused, match="'notes' is for backups only, not for content type 'images'"):
        volumes.set_notes(volumes.alloc("local", 100, MIB), "x")
    with pytest.raises(NotFound):
        volumes.set_notes("local:backup/vzdump-qemu-9999-2020_03_30-21_12_40.vma", "x")


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_volumes_grow_and_never_shrink(local: Path, form: str) -> None:
    volid = volumes.alloc("local", 100, 4 * MIB, format=form)
    volumes.resize(volid, 9 * MIB)
    assert image_info(volumes.path(volid))["virtual-size"] == 9 * MIB
    with pytest.raises(Refused, match=r"can't shrink volume .* from 9.00 MiB to 4.00 MiB"):
        volumes.resize(volid, 4 * MIB)
    assert volumes.info(volid).size == 9 * MIB


def test_folders_and_vmdk_images_cannot_grow(local: Path) -> None:
    for volid in (volumes.alloc("local", 1000, 0, format="subvol"), volumes.alloc("local", 1000, MIB, format="vmdk")):
        with pytest.raises(Refused, match="does not allow it"):
            volumes.resize(volid, 9 * MIB)


def test_paths_and_foreign_files(local: Path, tmp_path: Path) -> None:
    assert volumes.path("local:iso/x.iso") == local / "template/iso/x.iso"
    assert volumes.locate("/dev/sda") == Path("/dev/sda")
    assert volumes.locate("local:iso/x.iso") == local / "template/iso/x.iso"
    assert volumes.volume_id(tmp_path / "x.iso") is None
    assert volumes.volume_id(local / "template/iso/x.iso") == "local:iso/x.iso"


def test_the_lowest_limit_counts_unless_another_is_asked_for(root: Path) -> None:
    configure("dir: aa\n\tpath /a\n\tbwlimit default=100,restore=50\n\ndir: bb\n\tpath /b\n\tbwlimit default=80\n")
    assert volumes.bwlimit("restore", ["aa", "bb"]) == 50
    assert volumes.bwlimit("clone", ["aa", "bb", "local"]) == 80
    assert volumes.bwlimit("clone", ["local"]) == 0
    assert volumes.bwlimit("restore", ["aa"], 7) == 7
    assert volumes.bwlimit("restore", ["aa"], 0) == 0


# Odd files.


@pytest.mark.parametrize("name", ["images/101/vm-101-disk-0.qcow2", "images/101/vm-101-disk-0.raw"])
def test_a_pipe_at_the_place_of_an_image_keeps_nobody_waiting(local: Path, name: str) -> None:
    volid = volumes.alloc("local", 100, MIB)
    put(local, name).unlink()
    os.mkfifo(local / name)
    pipe = f"local:{name.removeprefix('images/')}"
    with log.only(lambda _: None):
        assert [found.volid for found in volumes.list_volumes("local")] == [volid, pipe]
        volumes.free(volid)
        with pytest.raises(PveError, match="is neither a file nor a block device"):
            volumes.resize(pipe, 2 * MIB)
        volumes.free(pipe)
    assert not (local / name).exists()


@pytest.mark.parametrize("name", ["import/x.ova", "import/x.ovf"])
def test_a_pipe_is_nothing_to_import(local: Path, name: str) -> None:
    put(local, name).unlink()
    os.mkfifo(local / name)
    assert volumes.list_volumes("local") == []
    with pytest.raises(PveError, match="is neither a file nor a block device"):
        volumes.guest(f"local:{name}")


def test_notes_that_can_not_be_read_hide_no_backup(local: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    makers: list[Callable[[Path], object]] = [
        os.mkfifo, Path.mkdir, lambda path: path.symlink_to(tmp_path / "secret"), lambda path: path.symlink_to("/x/y"),
    ]  # fmt: skip
    for vmid, make in enumerate(makers, 100):
        archive = put(local, BACKUP.replace("-100-", f"-{vmid}-").replace("backup/", "dump/"))
        make(archive.with_name(f"{archive.name}.notes"))
    found = volumes.list_volumes("local", ["backup"])
    assert [(volume.vmid, volume.notes) for volume in found] == [(vmid, "") for vmid in range(100, 104)]
    assert volumes.notes(f"local:{BACKUP.replace('-100-', '-102-')}") == ""


@pytest.mark.parametrize("odd", ["A\nx", "a\tb", "\udcff"])
def test_files_with_names_that_no_volume_can_have_hide_no_others(local: Path, odd: str) -> None:
    kinds = {"iso": ("template/iso", "iso"), "vztmpl": ("template/cache", "tar.gz"), "backup": ("dump", "tar"),
             "snippets": ("snippets", "txt"), "import": ("import", "ova")}  # fmt: skip
    for folder, extension in kinds.values():
        for name in (odd, "plain"):
            put(local, f"{folder}/{name}.{extension}")
    put(local, f"images/100/{odd}.raw")
    found = [volume.volid for volume in volumes.list_volumes("local")]
    assert found == sorted(f"local:{content}/plain.{extension}" for content, (_, extension) in kinds.items())
    assert volumes.info("local:iso/plain.iso").size == 1


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_stands_where_a_guests_folder_belongs_is_told(local: Path, make: Callable[[Path], None]) -> None:
    put(local, "images/100").unlink()
    make(local / "images/100")
    with pytest.raises(PveError, match=f"^storage 'local': '{local}/images/100' is no folder$"):
        volumes.alloc("local", 100, MIB)


def test_whoever_asks_for_one_guest_sees_no_templates(local: Path) -> None:
    put(local, "template/iso/a.iso")
    put(local, "template/cache/b.tar.gz")
    put(local, "snippets/c")
    volid = volumes.alloc("local", 100, MIB)
    assert [found.volid for found in volumes.list_volumes("local", vmid=100)] == [volid, "local:snippets/c"]
    assert len(volumes.list_volumes("local")) == 4
