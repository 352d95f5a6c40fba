"""Restore of virtual machines from VMA archives, on a root of its own; the archives are made by vzdump or by hand."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pvetools.backup import restore_qemu, vma
from pvetools.backup.restore_qemu import Request
from pvetools.config import guest as config
from pvetools.storage import volumes
from pvetools.storage.driver import Space
from pvetools.system import paths
from pvetools.system.errors import Exists, Locked, NotFound, ParamErrors, PveError, Refused
from pvetools.system.streams import FileSource
from tests.unit.vzdump.conftest import Node, Outcome

Vzdump = Callable[..., Outcome]
KIB = 1024


@pytest.fixture
def archive(node: Node, vzdump: Vzdump) -> Path:
    """A compressed backup of VM 100: a raw disk and a qcow2 disk."""
    node.vm(100, "virtio1: local:100/vm-100-disk-1.qcow2,cache=none,size=1M", "net0: virtio=BC:24:11:00:00:01",
            "smbios1: uuid=11111111-2222-3333-4444-555555555555", "lock: x")  # fmt: skip
    second = node.images / "100/vm-100-disk-1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", second, "1M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 64k 128k", second], check=True)
    node.config(100).write_text(node.config(100).read_text().replace("lock: x\n", ""))
    paths.firewall_config(100).write_text("[RULES]\n")
    assert vzdump(100, compress="zstd").error == ""
    return node.archives(100)[0]


def same(one: Path, other: Path) -> bool:
    done = subprocess.run(["qemu-img", "compare", "-q", one, other], check=False)
    return done.returncode == 0


def conf(vmid: int) -> dict[str, str]:
    return dict(config.load("qemu", vmid).current)


def test_a_new_machine_has_the_same_disks_and_options(node: Node, archive: Path):
    restore_qemu.restore(Request(str(archive), 200))
    found = conf(200)
    assert found == {
        **conf(100),
        "scsi0": "local:200/vm-200-disk-0.raw,size=256K",
        "virtio1": "local:200/vm-200-disk-1.qcow2,cache=none,size=1M",
    }
    for number, form in enumerate(("raw", "qcow2")):
        old, new = (node.images / f"{vmid}/vm-{vmid}-disk-{number}.{form}" for vmid in (100, 200))
        assert same(old, new)
    assert paths.firewall_config(200).read_text() == "[RULES]\n"


def test_zeros_take_no_space(node: Node, archive: Path):
    restore_qemu.restore(Request(str(archive), 200))
    assert (node.images / "200/vm-200-disk-1.qcow2").stat().st_blocks * 512 < 700 * KIB


@pytest.mark.parametrize("compress", ["0", "gzip", "lzo", "zstd"])
def test_every_compression_is_read_back(node: Node, vzdump: Vzdump, compress: str):
    image = node.vm(100)
    vzdump(100, compress=compress)
    restore_qemu.restore(Request(f"local:backup/{node.archives()[0].name}", 200))
    assert (node.images / "200/vm-200-disk-0.raw").read_bytes() == image.read_bytes()


def test_an_uncompressed_archive_comes_from_standard_input(node: Node, vzdump: Vzdump):
    image = node.vm(100)
    vzdump(100)
    done = node.cli("qmrestore", "-", 200, input=node.archives()[0].read_bytes())
    assert done.returncode == 0, done.stderr
    assert (node.images / "200/vm-200-disk-0.raw").read_bytes() == image.read_bytes()


def test_unique_changes_addresses_and_identity(archive: Path):
    restore_qemu.restore(Request(str(archive), 200, unique=True))
    assert conf(200)["net0"] != conf(100)["net0"]
    assert conf(200)["smbios1"] != conf(100)["smbios1"]


def test_one_storage_for_all_disks_and_formats_that_it_can_hold(node: Node, archive: Path, tmp_path: Path):
    (tmp_path / "fast").mkdir()
    paths.storage_config().write_text(f"dir: fast\n\tpath {tmp_path}/fast\n\tcontent images\n")
    restore_qemu.restore(Request(str(archive), 200, storage="fast"))
    assert conf(200)["scsi0"].startswith("fast:200/vm-200-disk-0.raw,")
    assert conf(200)["virtio1"].startswith("fast:200/vm-200-disk-1.qcow2,")


def test_given_options_replace_those_of_the_archive_but_no_disks(archive: Path):
    restore_qemu.restore(Request(str(archive), 200, overrides={"memory": "128", "onboot": "1"}))
    assert (conf(200)["memory"], conf(200)["onboot"]) == ("128", "1")
    with pytest.raises(ParamErrors, match="scsi3"):
        restore_qemu.restore(Request(str(archive), 201, overrides={"scsi3": "local:1"}))


# -- replacing --------------------------------------------------------------------------------------------------------


def test_an_id_in_use_is_kept_unless_forced(node: Node, archive: Path):
    before = node.files()
    with pytest.raises(Exists, match="already exists; replace it with --force"):
        restore_qemu.restore(Request(str(archive), 100))
    assert node.files() == before


def test_force_replaces_disks_and_options_and_keeps_other_disks_unused(node: Node, archive: Path):
    extra = volumes.alloc("local", 100, 64 * KIB, format="raw")
    stale = volumes.alloc("local", 100, 64 * KIB, format="raw")
    node.config(100).write_text(
        f"name: newer\nscsi0: local:100/vm-100-disk-0.raw\nscsi5: {extra}\nunused0: {stale}\n\n"
        "[PENDING]\nmemory: 99\n\n[before]\nmemory: 32\n"
    )
    restore_qemu.restore(Request(str(archive), 100, force=True))
    found = config.load("qemu", 100)
    assert found.current["name"] == "vm100"
    assert {found.current["unused0"], found.current["unused1"]} >= {extra}
    assert (found.pending, found.snapshots, found.lock) == ({}, {}, "")
    assert not (node.images / "100/vm-100-disk-0.raw").exists()
    named = {text.partition(",")[0] for key, text in found.current.items() if key[:4] in ("scsi", "virt", "unus")}
    assert named == set(volumes.owned_by(100))


@pytest.mark.parametrize("room", [True, False])
def test_the_cloud_init_drive_of_a_replaced_machine_stays(
    node: Node, vzdump: Vzdump, room: bool, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    drive = volumes.alloc("local", 100, 64 * KIB, name="vm-100-cloudinit.qcow2")
    node.vm(100, f"ide2: {drive},media=cdrom")
    assert vzdump(100).error == ""
    if not room:
        monkeypatch.setattr(restore_qemu._Restore, "_needs_room", lambda _: True)
    restore_qemu.restore(Request(str(node.archives(100)[0]), 100, force=True))
    assert conf(100)["ide2"] == f"{drive},media=cdrom,size=64K"
    assert drive in volumes.owned_by(100)
    assert len(volumes.owned_by(100)) == 2


def test_a_new_machine_gets_a_cloud_init_drive_of_its_own(node: Node, vzdump: Vzdump):
    drive = volumes.alloc("local", 100, 64 * KIB, name="vm-100-cloudinit.qcow2")
    node.vm(100, f"ide2: {drive},media=cdrom")
    assert vzdump(100).error == ""
    restore_qemu.restore(Request(str(node.archives(100)[0]), 200))
    assert conf(200)["ide2"] == "local:200/vm-200-cloudinit.qcow2,media=cdrom,size=4M"
    assert volumes.info("local:200/vm-200-cloudinit.qcow2").size == 4 << 20


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [("lock: migrate", Locked, "locked"), ("protection: 1", Refused, "protection mode enabled")],
)
def test_force_spares_locked_and_protected_machines(
    node: Node, archive: Path, line: str, error: type[PveError], words: str
):  # fmt: skip
    node.config(100).write_text(node.config(100).read_text() + line + "\n")
    before = (node.config(100).read_text(), node.files())
    with pytest.raises(error, match=words):
        restore_qemu.restore(Request(str(archive), 100, force=True))
    assert (node.config(100).read_text(), node.files()) == before


def test_a_container_of_that_id_is_never_replaced(node: Node, archive: Path):
    paths.guest_config("lxc", 300).write_text("hostname: x\n")
    with pytest.raises(Exists, match="guest 300 is a container"):
        restore_qemu.restore(Request(str(archive), 300, force=True))


# -- bad archives -----------------------------------------------------------------------------------------------------


def damage(archive: Path, name: str, change: Callable[[bytearray], bytes]) -> Path:
    path = archive.with_name(name)
    path.write_bytes(change(bytearray(archive.read_bytes())))
    return path


def flipped(at: int) -> Callable[[bytearray], bytes]:
    def change(data: bytearray) -> bytes:
        data[at] ^= 0xFF
        return bytes(data)

    return change


BAD: dict[str, tuple[str, Callable[[bytearray], bytes]]] = {
    "truncated within the data": (".vma", lambda data: bytes(data[: len(data) // 2])),
    "truncated within the header": (".vma", lambda data: bytes(data[:5000])),
    "truncated between extents": (".vma", lambda data: bytes(data[:12800])),
    "header damaged": (".vma", flipped(2100)),
    "extent damaged": (".vma", flipped(12850)),
    "foreign content": (".vma", lambda data: b"something else" * 4000),
    "empty": (".vma", lambda data: b""),
    "foreign compressed content": (".vma.zst", lambda data: b"something else" * 4000),
}


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_archive_is_told_in_one_sentence_and_nothing_changes(
    node: Node, vzdump: Vzdump, what: str, replace: bool
):  # fmt: skip
    node.vm(100)
    vzdump(100)
    suffix, change = BAD[what]
    bad = damage(node.archives()[0], f"vzdump-qemu-100-bad{suffix}", change)
    before = (node.files(), node.config(100).read_text())
    with pytest.raises(PveError) as caught:
        restore_qemu.restore(Request(str(bad), 100 if replace else 200, force=replace))
    assert len(str(caught.value).splitlines()) == 1
    assert (node.files(), node.config(100).read_text()) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("backup.vma", "couldn't determine archive info"),
        ("vzdump-lxc-100-x.tar", "use pct restore"),
        ("vzdump-qemu-100-x.tar", "can't be restored, only vma"),
    ],
)
def test_names_that_are_not_those_of_vm_archives_are_refused(
    node: Node, vzdump: Vzdump, name: str, words: str
):  # fmt: skip
    node.vm(100)
    vzdump(100)
    other = node.archives()[0].rename(node.dump / name)
    with pytest.raises(PveError, match=words):
        restore_qemu.restore(Request(str(other), 200))


def test_a_missing_archive_or_storage_is_named(archive: Path):
    with pytest.raises(NotFound, match=r"archive ./nowhere/vzdump-qemu-1\.vma. does not exist"):
        restore_qemu.restore(Request("/nowhere/vzdump-qemu-1.vma", 200))
    with pytest.raises(NotFound, match="storage 'nowhere' does not exist"):
        restore_qemu.restore(Request(str(archive), 200, storage="nowhere"))
    paths.storage_config().write_text("dir: isos\n\tpath /tmp\n\tcontent iso\n")
    with pytest.raises(Refused, match="does not support content type 'images'"):
        restore_qemu.restore(Request(str(archive), 200, storage="isos"))


def handmade(node: Node, text: str, names: list[str]) -> Path:
    """An archive with that configuration and small devices of those names."""
    blob = node.root / "blob"
    blob.write_bytes(os.urandom(4 * KIB))
    path = node.dump / "vzdump-qemu-100-handmade.vma"
    with path.open("wb") as out, blob.open("rb") as data:
        disks = [vma.Disk(name, FileSource(data.fileno())) for name in names]
        vma.write(out.fileno(), {"qemu-server.conf": text.encode()}, disks)
    return path


@pytest.mark.parametrize(
    ("maps", "devices", "words"),
    [
        (["scsi0:drive-scsi0"], ["drive-scsi0", "drive-scsi1"], "does not say which disk is device 'drive-scsi1'"),
        (["scsi0:drive-scsi0", "scsi1:drive-scsi1"], ["drive-scsi0"], "does not contain data for drive 'scsi1'"),
        (["scsi0:drive-a", "scsi0:drive-b"], ["drive-a", "drive-b"], "maps disk 'scsi0' twice"),
    ],
)
def test_disks_and_devices_must_fit_together(node: Node, maps: list[str], devices: list[str], words: str):
    text = "memory: 64\n" + "".join(f"#qmdump#map:{line}:local:raw:\n" for line in maps)
    before_dump = handmade(node, text, devices)
    before = node.files()
    with pytest.raises(PveError, match=words):
        restore_qemu.restore(Request(str(before_dump), 200))
    assert node.files() == before


def test_values_that_make_no_sense_are_left_out_with_a_warning(node: Node, capsys: pytest.CaptureFixture[str]):
    text = "cores: many\nmemory: 64\nnewoption: 7\n[evil]\nx\n#qmdump#map:scsi0:drive-scsi0:local:raw:\n"
    path = handmade(node, text, ["drive-scsi0"])
    restore_qemu.restore(Request(str(path), 200))
    assert {"cores", "evil"}.isdisjoint(conf(200))
    assert conf(200)["newoption"] == "7"
    assert "cores" in capsys.readouterr().err


def test_a_cloud_init_drive_is_made_anew(node: Node):
    text = "ide2: local:100/vm-100-cloudinit.qcow2,media=cdrom\n#qmdump#map:scsi0:drive-scsi0:local:raw:\n"
    restore_qemu.restore(Request(str(handmade(node, text, ["drive-scsi0"])), 200))
    assert conf(200)["ide2"] == "local:200/vm-200-cloudinit.qcow2,media=cdrom,size=4M"
    assert (node.images / "200/vm-200-cloudinit.qcow2").exists()


# -- as commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["pool", "ha-managed", "live-restore"])
def test_options_without_effect_are_refused_by_name(node: Node, archive: Path, option: str):
    done = node.cli("qmrestore", archive, 200, f"--{option}", "1")
    assert done.returncode == 255
    assert option in done.stderr.decode()
    assert not node.config(200).exists()


def test_the_configuration_in_an_archive_can_be_read(node: Node, archive: Path):
    volid = f"local:backup/{archive.name}"
    text = node.cli("pvesm", "extractconfig", volid).stdout.decode()
    assert "name: vm100\n" in text
    assert "#qmdump#map:scsi0:drive-scsi0:local:raw:\n" in text
    done = node.cli(
        "pvesh", "get", "/nodes/localhost/vzdump/extractconfig", "--volume", volid, "--output-format", "json"
    )
    assert json.loads(done.stdout).rstrip("\n") == text.rstrip("\n")


def test_restoring_is_a_task_of_its_own(node: Node, archive: Path):
    assert node.cli("qmrestore", archive, 200).returncode == 0
    listed = json.loads(node.cli("pvesh", "get", "/nodes/localhost/tasks", "--output-format", "json").stdout)
    assert ("qmrestore", "200", "OK") in {(row["type"], row["id"], row["status"]) for row in listed}


def test_a_lost_disk_is_not_removed_again_by_another_of_its_names(node: Node, archive: Path):
    """The new disk has the file of the old one, which was gone."""
    paths.storage_config().write_text(f"dir: al\n\tpath {node.images.parent}\n\tcontent images\n")
    before = node.config(100).read_text()
    node.config(100).write_text(before.replace("local:100/vm-100-disk-0.raw", "al:100/vm-100-disk-0.raw"))
    (node.images / "100/vm-100-disk-0.raw").unlink()
    restore_qemu.restore(Request(str(archive), 100, force=True))
    name = conf(100)["scsi0"].split(",")[0]
    assert volumes.exists(name)


def test_old_disks_stay_where_their_space_is_of_no_use(
    node: Node, archive: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    small = tmp_path_factory.mktemp("small")
    paths.storage_config().write_text(f"dir: small\n\tpath {small}\n\tcontent images\n")
    status = volumes.status

    def full(storage: str = "", **more: object) -> list[volumes.Status]:
        rows = status(storage, **more)
        return [replace(row, space=Space(10, 10, 0)) if row.definition.id == "small" else row for row in rows]

    monkeypatch.setattr(volumes, "status", full)
    assert not restore_qemu.gives_room({"small": 1 << 20}, ["local:100/vm-100-disk-0.raw"])
    assert restore_qemu.gives_room({"small": 1}, ["small:100/vm-100-disk-0.raw"]) is False
    volid = volumes.alloc("small", 100, 1 << 20, format="raw")
    (small / "images/100/vm-100-disk-0.raw").write_bytes(b"x" * (1 << 20))
    assert restore_qemu.gives_room({"small": 1 << 20}, [volid])


def test_an_entry_of_a_storage_that_is_gone_hinders_no_restore(node: Node, archive: Path):
    node.config(100).write_text(node.config(100).read_text() + "unused0: gone:100/vm-100-disk-7.raw\n")
    restore_qemu.restore(Request(str(archive), 100, force=True))
    assert "gone:100/vm-100-disk-7.raw" in conf(100).values()


def test_a_machine_that_starts_meanwhile_is_not_replaced(
    node: Node, archive: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    answers = iter([False, True])
    monkeypatch.setattr(restore_qemu, "QEMU", restore_qemu.QEMU._replace(is_running=lambda _: next(answers)))
    before = node.config(100).read_text()
    with pytest.raises(Refused, match="VM is running"):
        restore_qemu.restore(Request(str(archive), 100, force=True))
    assert node.config(100).read_text() == before


def test_a_disk_that_starts_as_qcow2_is_saved_as_one(node: Node, vzdump: Vzdump, tmp_path: Path):
    disk = tmp_path / "own.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 64k 128k", disk], check=True)
    node.vm(100, f"virtio1: {disk},size=1M")
    assert vzdump(100).error == ""
    restore_qemu.restore(Request(str(node.archives(100)[0]), 200))
    volid = conf(200)["virtio1"].split(",")[0]
    assert same(disk, volumes.path(volid))


def test_a_restored_machine_has_no_disks_of_others(node: Node, vzdump: Vzdump):
    volumes.alloc("local", 100, 64 * KIB, name="vm-100-disk-5.raw")
    node.vm(100, "virtio1: local:100/vm-100-disk-5.raw,backup=No,size=64K", "efidisk0: local:100/vm-100-disk-7.raw")
    assert vzdump(100).error == ""
    restore_qemu.restore(Request(str(node.archives(100)[0]), 200))
    assert not [key for key, text in conf(200).items() if "local:100/" in text and key != "description"]
