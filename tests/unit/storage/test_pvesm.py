"""The command ``pvesm``: output columns, definitions, and what it says to wrong input."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pvetools.cli import app, pvesh, pvesm
from pvetools.guest.common import references
from pvetools.storage import mounts
from pvetools.system import paths


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run one ``pvesm`` command line as root."""

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["pvesm", *words])
        monkeypatch.setattr("os.geteuid", lambda: 0)
        with pytest.raises(SystemExit) as ended:
            app.main(pvesm.TOOL)
        gc.enable()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def ok(run: Callable[..., Ran]) -> Callable[..., str]:
    """Run a command line that has to succeed; gives its output."""

    def ok(*words: str) -> str:
        ran = run(*words)
        assert ran.code == 0, ran.err
        return ran.out

    return ok


def config() -> str:
    path = paths.storage_config()
    return path.read_text() if path.exists() else ""


def tree(root: Path) -> dict[str, int]:
    """Everything below the storage and the configuration, with sizes."""
    below = [*root.glob("etc/**/*"), *root.glob("var/lib/vz/**/*")]
    return {str(path): path.stat().st_size for path in below if path.is_file()}


# Output.


def test_status_has_the_columns_of_proxmox_ve_in_kib(ok: Callable[..., str], root: Path) -> None:
    ok("add", "dir", "off", "--path", f"{root}/off", "--disable", "1")
    header, local, off = ok("status").splitlines()
    assert header == "Name         Type     Status           Total            Used       Available        %"
    found = os.statvfs(root)
    total = found.f_blocks * found.f_frsize // 1024
    assert re.fullmatch(rf"local +dir +active +{total} +\d+ +\d+ +\d+\.\d\d%", local)
    assert off == "off           dir   disabled               0               0               0      N/A"
    assert {len(header), len(local), len(off)} == {85}


def test_status_can_be_limited(ok: Callable[..., str], root: Path) -> None:
    ok("add", "dir", "isos", "--path", f"{root}/isos", "--content", "iso")
    ok("add", "dir", "off", "--path", f"{root}/off", "--disable")
    for words, names in (
        (["--storage", "isos"], ["isos"]),
        (["--content", "iso"], ["isos", "local"]),
        (["--content", "rootdir"], ["local"]),
        (["--enabled"], ["isos", "local"]),
    ):
        assert [line.split()[0] for line in ok("status", *words).splitlines()[1:]] == names


def test_a_storage_that_cannot_be_used_is_inactive_and_says_why(run: Callable[..., Ran], root: Path) -> None:
    paths.storage_config().write_text(f"dir: gone\n\tpath {root}/gone\n\tmkdir 0\n\npbs: far\n\tdatastore x\n")
    ran = run("status")
    assert ran.code == 0
    assert "gone          dir   inactive" in ran.out
    assert f"WARN: unable to activate storage 'gone' - directory '{root}/gone' does not exist" in ran.err
    assert "far           pbs   inactive" in ran.out
    assert "WARN: storage type 'pbs' is not served by this version" in ran.err


def test_list_has_the_columns_of_proxmox_ve_in_bytes(ok: Callable[..., str], root: Path) -> None:
    ok("alloc", "local", "100", "", "4M")
    ok("alloc", "local", "101", "vm-101-disk-3.qcow2", "1048576")
    iso = root / "var/lib/vz/template/iso/a b.iso"
    iso.write_bytes(b"x" * 5)
    assert ok("list", "local") == (
        "Volid                         Format  Type            Size VMID\n"
        "local:100/vm-100-disk-0.raw   raw     images       4194304 100\n"
        "local:101/vm-101-disk-3.qcow2 qcow2   images    1073741824 101\n"
        "local:iso/a b.iso             iso     iso                5\n"
    )
    assert ok("list", "local", "--vmid", "100", "--content", "images").splitlines()[1:] == [
        "local:100/vm-100-disk-0.raw raw     images    4194304 100"
    ]


def test_an_empty_storage_lists_only_the_header(ok: Callable[..., str]) -> None:
    assert ok("list", "local").split() == ["Volid", "Format", "Type", "Size", "VMID"]


def test_alloc_path_and_free(ok: Callable[..., str], run: Callable[..., Ran], root: Path) -> None:
    volid = "local:100/vm-100-disk-0.raw"
    assert ok("alloc", "local", "100", "", "100") == f"successfully created '{volid}'\n"
    path = ok("path", volid).strip()
    assert path == f"{root}/var/lib/vz/images/100/vm-100-disk-0.raw"
    assert Path(path).stat().st_size == 100 << 10
    ran = run("free", volid)
    assert (ran.code, ran.err) == (0, f"Removed volume '{volid}'\n")
    assert not Path(path).exists()


def test_the_disk_of_a_guest_is_not_freed_under_it(ok: Callable[..., str], run: Callable[..., Ran]) -> None:
    volid = "local:100/vm-100-disk-0.raw"
    ok("alloc", "local", "100", "", "100")
    guest = paths.guest_config("qemu", 100)
    guest.parent.mkdir(parents=True, exist_ok=True)
    for line in (f"scsi0: {volid},size=100K", f"scsi0: iothread=1,file={volid}"):
        guest.write_text(f"name: web\n{line}\n")
        ran = run("free", volid)
        assert (ran.code, ran.err) == (255, f"volume '{volid}' is a disk of VM 100 (scsi0); detach it there first\n")
    guest.write_text(f"scsi0: {volid}x,size=100K\nunused0: {volid}\n")
    assert run("free", volid).code == 0


def test_a_disk_of_a_guest_is_not_freed_by_another_of_its_names(
    ok: Callable[..., str], run: Callable[..., Ran], root: Path
) -> None:
    ok("alloc", "local", "100", "", "100")
    ok("add", "dir", "again", "--path", root / "var/lib/vz", "--content", "images")
    guest = paths.guest_config("qemu", 100)
    guest.parent.mkdir(parents=True, exist_ok=True)
    own, invented = "local:100/vm-100-disk-0.raw", "local:9/base-9-x.raw/100/vm-100-disk-0.raw"
    for named, freed in ((own, invented), (invented, own), (own, "again:100/vm-100-disk-0.raw")):
        guest.write_text(f"name: web\nscsi0: {named},size=100K\n")
        ran = run("free", freed)
        assert (ran.code, ran.err) == (255, f"volume '{freed}' is a disk of VM 100 (scsi0); detach it there first\n")
    guest.write_text("scsi0: gone:100/vm-100-disk-0.raw\n")
    assert run("free", own).code == 0


@pytest.mark.parametrize(
    "line",
    [
        "scsi0:  local:100/vm-100-disk-0.raw,size=1M", "scsi0:local:100/vm-100-disk-0.raw",
        "scsi0:\tlocal:100/vm-100-disk-0.raw", "scsi0: local:100/vm-100-disk-0.raw  ",
        "scsi0: @ROOT@/var/lib/vz/images/100/vm-100-disk-0.raw", "scsi0: @ROOT@/link,cache=none",
        "scsi0: local:100/vm-100-disk-0.raw ,size=1M", "scsi0: local:100/vm-100-link.raw",
        "scsi0: broken:100/vm-100-disk-0.raw",
        "[old]\nscsi0:  local:100/vm-100-disk-0.raw",
    ],
)  # fmt: skip
def test_whatever_way_a_guest_names_its_disk_it_stays(
    ok: Callable[..., str], run: Callable[..., Ran], root: Path, line: str
) -> None:
    ok("alloc", "local", "100", "", "100")
    image = root / "var/lib/vz/images/100/vm-100-disk-0.raw"
    (root / "link").symlink_to(image)
    image.with_name("vm-100-link.raw").symlink_to(image.name)
    paths.storage_config().write_text(f"dir: broken\n\tpath {root}/var/lib/vz\n\tcontent foo\n")
    guest = paths.guest_config("qemu", 100)
    guest.parent.mkdir(parents=True, exist_ok=True)
    guest.write_text(f"memory: 64\n{line.replace('@ROOT@', str(root))}\n")
    assert "is a disk of VM 100 (scsi0)" in run("free", "local:100/vm-100-disk-0.raw").err
    assert image.exists()


def test_storages_that_are_not_served_keep_nothing_from_being_freed(ok: Callable[..., str], root: Path) -> None:
    ok("alloc", "local", "100", "", "100")
    paths.storage_config().write_text("pbs: bak\n\tserver 192.0.2.1\n\tdatastore d\n\tcontent backup\n")
    guest = paths.guest_config("qemu", 101)
    guest.parent.mkdir(parents=True, exist_ok=True)
    guest.write_text("scsi0: bak:100/vm-100-disk-0.raw\n")
    ok("free", "local:100/vm-100-disk-0.raw")


def test_a_disk_behind_a_link_to_a_server_stays(
    ok: Callable[..., str], run: Callable[..., Ran], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "nas").mkdir()
    (root / "link").symlink_to("nas")
    paths.storage_config().write_text(
        "".join(f"dir: {name}\n\tpath {root}/{name}\n\tcontent images\n\n" for name in ("nas", "link"))
    )
    ok("alloc", "nas", "100", "", "100")
    guest = paths.guest_config("qemu", 100)
    guest.parent.mkdir(parents=True, exist_ok=True)
    guest.write_text("scsi0: nas:100/vm-100-disk-0.raw\n")
    monkeypatch.setattr(mounts, "every", lambda: [mounts.Mount(f"{root}/nas", "nas:/x", "nfs4", "", "", "/")])
    assert "is a disk of VM 100 (scsi0)" in run("free", "link:100/vm-100-disk-0.raw").err


def test_a_folder_at_the_place_of_an_image_stays(run: Callable[..., Ran], root: Path) -> None:
    kept = root / "var/lib/vz/images/100/vm-100-old.raw/file"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert "is a folder, not a volume" in run("free", "local:100/vm-100-old.raw").err
    assert kept.exists()


def test_a_damaged_image_keeps_no_other_from_being_freed(ok: Callable[..., str], root: Path) -> None:
    ok("alloc", "local", "200", "", "100")
    head = bytearray(104)
    head[:8], head[8:20], head[20:32] = (
        b"QFI\xfb\0\0\0\3",
        bytes([*bytes(7), 90, 0, 0, 0, 5]),
        bytes([0, 0, 0, 16, *bytes(8)]),
    )
    head[90:95] = b"a\0bcd"
    damaged = root / "var/lib/vz/images/100/vm-100-nul.qcow2"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(head)
    own, made = damaged.with_name("vm-100-own.qcow2"), root / "made.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", own, made, "1M"], check=True)
    made.rename(own)
    for volid in ("local:200/vm-200-disk-0.raw", "local:100/vm-100-nul.qcow2", "local:100/vm-100-own.qcow2"):
        ok("free", volid)
    assert not list(root.glob("var/lib/vz/images/*/*"))


def test_a_disk_of_a_guest_may_have_a_colon_in_its_name(root: Path) -> None:
    guest = paths.guest_config("qemu", 100)
    guest.parent.mkdir(parents=True, exist_ok=True)
    guest.write_text("scsi0: san:ns1.nvme-A_B:1,size=1G\nide2: none,media=cdrom\n")
    assert references.disk_of("san:ns1.nvme-A_B:1") == "VM 100 (scsi0)"
    assert references.disk_of("san:ns1.nvme-A_B:2") == references.disk_of("other:ns1.nvme-A_B:1") == ""


def test_the_format_can_be_chosen(ok: Callable[..., str]) -> None:
    assert "vm-100-disk-0.qcow2" in ok("alloc", "local", "100", "", "1G", "--format", "qcow2")
    assert "subvol-100-disk-1.subvol" in ok("alloc", "local", "100", "", "0", "--format", "subvol")


# Definitions.


def test_add_set_and_remove_write_the_usual_file(ok: Callable[..., str], root: Path) -> None:
    ok("add", "dir", "backups", "--path", f"{root}/b", "--content", "backup,iso", "--shared", "1")
    assert config() == f"dir: backups\n\tpath {root}/b\n\tcontent backup,iso\n\tshared 1\n"
    assert (root / "b/dump").is_dir()
    ok("set", "backups", "--disable", "-nodes", "n1,n2", "--delete", "shared", "--prune-backups", "keep-last=3")
    assert config() == (
        f"dir: backups\n\tdisable\n\tpath {root}/b\n\tcontent backup,iso\n\tnodes n1,n2\n\tprune-backups keep-last=3\n"
    )
    ok("remove", "backups")
    assert config() == ""
    assert (root / "b/dump").is_dir()


def test_setting_the_built_in_storage_writes_its_definition(ok: Callable[..., str], root: Path) -> None:
    ok("set", "local", "--content", "iso,vztmpl")
    assert config() == f"dir: local\n\tpath {root}/var/lib/vz\n\tcontent iso,vztmpl\n"
    ok("remove", "local")
    assert "local" in ok("status")


def test_a_property_that_stands_twice_counts_as_the_first(
    ok: Callable[..., str], run: Callable[..., Ran], root: Path
) -> None:
    for name in "ab":
        (root / name).mkdir()
    paths.storage_config().write_text(f"dir: two\n\tpath {root}/a\n\tpath {root}/b\n")
    assert ok("path", "two:iso/x.iso") == f"{root}/a/template/iso/x.iso\n"
    assert "storage 'two': 'path' stands there several times, the first counts" in run("status").err
    ok("set", "two", "--content", "iso")
    assert config() == f"dir: two\n\tpath {root}/a\n\tcontent iso\n"


def test_an_unknown_property_is_told_and_can_be_deleted(
    ok: Callable[..., str], run: Callable[..., Ran], root: Path
) -> None:
    text = f"dir: two\n\tpath {root}/a\n\tfancy 1\n"
    paths.storage_config().write_text(text)
    assert "storage 'two': 'fancy' is no property of storage type 'dir'" in run("status").err
    assert "--delete fancy removes it" in run("set", "two", "--content", "iso").err
    assert config() == text
    ok("set", "two", "--content", "iso", "--delete", "fancy")
    assert config() == f"dir: two\n\tpath {root}/a\n\tcontent iso\n"


def test_comments_and_other_storages_survive(ok: Callable[..., str], root: Path) -> None:
    text = "# mine\nfancy: one\n\toption x\n\n# two\ndir: two\n\tpath /two\n\tcontent iso\n"
    paths.storage_config().write_text(text)
    ok("set", "two", "--shared", "1")
    assert config() == f"{text}\tshared 1\n"


# Wrong input: a clear sentence, a status, nothing changed.

PATH = ["--path", "@ROOT@/new"]
WRONG = [
    (["add", "dir", "new", *PATH, "--nonsense", "1"], "Unknown option: nonsense"),
    (["add", "dir", "new", "--path", "rel", "--content", "foo"], "path: invalid format - value 'rel'"),
    (["add", "dir", "new", "--path", "rel", "--content", "foo"], "content: invalid format - invalid content type"),
    (["add", "dir", "new"], "path: property is missing and it is not optional"),
    (["add", "dir", "new", *PATH, "--server", "x"], "server: unexpected property for storage type 'dir'"),
    (["add", "dir", "new", *PATH, "--bwlimit", "fast=1"], "bwlimit.fast: property is not defined"),
    (["add", "dir", "new", *PATH, "--format", "vhdx"], "format: value 'vhdx' does not have a value in the enumeration"),
    (["add", "dir", "new", *PATH, "--content-dirs", "iso=../x"], "content-dirs: invalid format"),
    (["add", "dir", "new", *PATH, "--content-dirs", "iso=x,iso=y"], "content-dirs: invalid format - 'iso' stands"),
    (["add", "dir", "1x", *PATH], "storage: invalid format - value '1x'"),
    (["add", "fancy", "new", *PATH], "type: value 'fancy' does not have a value in the enumeration"),
    (["add", "pbs", "new", "--server", "a", "--datastore", "b"], "storage type 'pbs' is not served"),
    (["add", "dir", "local", *PATH], "storage 'local' is built in"),
    (["add", "dir", "used", *PATH], "'used' is already defined in"),
    (["add", "dir", "new", "--path", "/proc/nope"], "unable to activate storage 'new' - directory '/proc/nope'"),
    (["add", "dir", "new", *PATH, "--is_mountpoint", "yes"], "is expected to be a mount point but is not mounted"),
    (["set", "nope", "--disable", "1"], "storage 'nope' does not exist"),
    (["set", "used", "--path", "/other"], "path: can't change value of fixed parameter 'path'"),
    (["set", "used", "--delete", "path"], "delete: unable to delete required or fixed option 'path'"),
    (["set", "used", "--delete", "fancy"], "delete: unknown option 'fancy'"),
    (["set", "used", "--content", "iso", "--delete", "content"], "content: unable to set and delete"),
    (["set", "used", "--shared", "maybe"], "shared: type check ('boolean') failed - got 'maybe'"),
    (["set", "used", "--shared", "1", "--digest", "0" * 40], "detected modified storage.cfg"),
    (["remove", "nope"], "storage 'nope' does not exist"),
    (["remove", "local"], "storage 'local' is built in and can't be removed"),
    (["status", "--storage", "nope"], "storage 'nope' does not exist"),
    (["list", "nope"], "storage 'nope' does not exist"),
    (["list"], "not enough arguments"),
    (["list", "local", "extra"], "too many arguments"),
    (["list", "off"], "storage 'off' is disabled"),
    (["path", "local"], "volume: invalid format - value 'local' does not look like a valid volume ID"),
    (["path", "local:../x"], "unable to parse directory volume name '../x'"),
    (["path", "local:100/x.exe"], "unable to parse volume filename 'x.exe'"),
    (["alloc", "local", "99", "", "1G"], "vmid: value must have a minimum value of 100"),
    (["alloc", "local", "100", "", "1X"], "size: value '1X' does not match"),
    (["alloc", "local", "100", "", "0"], "the size of a volume must be larger than 0"),
    (["alloc", "local", "100", "", "99999999999999999"], "the size of a volume must be smaller than 8 EiB"),
    (["alloc", "local", "100", "", "8589934592G", "--format", "qcow2"], "must be smaller than 8 EiB"),
    (["alloc", "local", "100", "", "9" * 5000], "does not match"),
    (["alloc", "local", "100", "../x.raw", "1M"], "unable to parse volume filename '../x.raw'"),
    (["alloc", "local", "100", "a/x.raw", "1M"], "unable to parse volume filename 'a/x.raw'"),
    (["alloc", "local", "100", "x.raw", "1M", "--format", "qcow2"], "wrong extension for format 'qcow2'"),
    (["alloc", "used", "100", "", "1M"], "storage 'used' does not support content type 'images', only: iso"),
    (["alloc", "off", "100", "", "1M"], "storage 'off' is disabled"),
    (["free", "local:100/vm-100-disk-9.raw"], "volume 'local:100/vm-100-disk-9.raw' does not exist"),
    (["free", "local:100/../../etc/passwd"], "unable to parse directory volume name"),
    (["free", "local:iso/.."], "unable to parse directory volume name"),
    (["free", "vm-100-disk-9.raw"], "storage: is needed when the volume is given without its storage"),
    (["free", "local:iso/x.iso", "--storage", "used"], "storage: 'used' does not match that of volume"),
    (["import", "local:99/vm-99-disk-0.raw", "raw+size", "-"], "guest id: value must have a minimum value of 100"),
    (["import", "local:100/vm-100-disk-0.raw", "raw+size", "unix://"], "'unix://' names no path to listen at"),
    (["extractconfig", "local:backup/vzdump-qemu-100-2020_03_30-21_12_40.vma"], ""),
    (["frobnicate"], "unknown command 'pvesm frobnicate'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_input_changes_nothing(run: Callable[..., Ran], root: Path, words: list[str], sentence: str) -> None:
    paths.storage_config().write_text(
        f"dir: used\n\tpath {root}/used\n\tcontent iso\n\ndir: off\n\tpath {root}/off\n\tdisable\n"
    )
    before = tree(root)
    ran = run(*[word.replace("@ROOT@", str(root)) for word in words])
    assert ran.code != 0
    assert ran.out == ""
    assert sentence in ran.err
    assert "Traceback" not in ran.err
    assert "internal error" not in ran.err
    assert tree(root) == before
    assert not (root / "new").exists()


def test_all_wrong_options_are_reported_at_once(run: Callable[..., Ran]) -> None:
    err = run("add", "dir", "new", "--path", "rel", "--content", "x", "--shared", "maybe", "--nodes", "a b!").err
    assert [line.partition(":")[0] for line in err.splitlines()[1:]] == ["path", "content", "shared", "nodes"]


# The same over the method tree.


def test_the_tree_serves_definitions_status_and_volumes(
    root: Path, ok: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    def get(path: str, *words: str, verb: str = "get") -> object:
        pvesh.run(pvesh.TOOL, [verb, path, *words, "--output-format", "json"])
        out = capsys.readouterr().out
        return json.loads(out) if out.strip() else None

    ok("alloc", "local", "100", "", "1M")
    backup = "backup/vzdump-qemu-100-2020_03_30-21_12_40.vma"
    (root / "var/lib/vz/dump" / backup.partition("/")[2]).write_bytes(b"12345")
    node = f"/nodes/{paths.node()}/storage"
    listed = get("/storage")
    assert isinstance(listed, list)
    assert [(row["storage"], row["type"]) for row in listed] == [("local", "dir")]
    assert get("/storage", "--type", "nfs") == []
    status = get(f"{node}/local/status")
    assert isinstance(status, dict)
    assert status["active"] == 1
    assert status["total"] > status["avail"] > 0
    formats = get(node, "--format", "1")
    assert isinstance(formats, list)
    assert formats[0]["formats"] == {"supported": ["qcow2", "raw", "subvol", "vmdk"], "default": "raw"}
    volume = get(f"{node}/local/content/100/vm-100-disk-0.raw")
    assert volume == get(f"{node}/local/content/local:100/vm-100-disk-0.raw")
    assert isinstance(volume, dict)
    assert (volume["size"], volume["format"]) == (1 << 20, "raw")
    get(f"{node}/local/content/local:{backup}", "--notes", "mine\nmore", "--protected", "1", verb="set")
    shown = get(f"{node}/local/content/local:{backup}")
    assert isinstance(shown, dict)
    assert (shown["notes"], shown["protected"], shown["size"]) == ("mine\nmore", 1, 5)
    content = get(f"{node}/local/content", "--content", "backup")
    assert isinstance(content, list)
    assert [(row["notes"], row["protected"]) for row in content] == [("mine", 1)]
