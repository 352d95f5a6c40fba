"""Disks of existing machines: import, detach, find again, grow."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pvetools.storage import inuse
from tests.real.qemu.machine import config, create, volumes
from tests.sandbox.root import Root


def image(path: Path, size: str = "4M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
    return path


def test_an_imported_disk_is_unused_at_first(root: Root, tmp_path: Path) -> None:
    create(root)
    said = root.cli("qm", "disk", "import", 100, image(tmp_path / "x.qcow2"), "local", "--format", "qcow2", ok=True)
    assert "unused0: successfully imported disk 'local:100/vm-100-disk-0.qcow2'" in said.stderr
    assert config(root)["unused0"] == "local:100/vm-100-disk-0.qcow2"
    root.cli("qm", "importdisk", 100, tmp_path / "x.qcow2", "local", ok=True)
    assert config(root)["unused1"] == "local:100/vm-100-disk-1.raw"


def test_a_disk_is_imported_to_where_it_is_wanted(root: Root, tmp_path: Path) -> None:
    create(root)
    root.cli("qm", "disk", "import", 100, image(tmp_path / "x.qcow2"), "local", "--target-disk", "scsi3", ok=True)
    assert config(root)["scsi3"] == "local:100/vm-100-disk-0.raw,size=4M"


def test_a_failed_import_leaves_nothing(root: Root, tmp_path: Path) -> None:
    create(root)
    bad = image(tmp_path / "bad.qcow2")
    damaged = bytearray(bad.read_bytes())
    table = int.from_bytes(damaged[40:48], "big")
    damaged[table : table + 8] = b"\xff" * 8
    bad.write_bytes(damaged)
    said = root.cli("qm", "disk", "import", 100, bad, "local")
    assert said.status != 0
    assert volumes(root) == []
    assert "unused" not in root.config(100).read_text()


def test_a_detached_disk_can_be_attached_again_or_removed(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    root.cli("qm", "disk", "unlink", 100, "--idlist", "scsi0", ok=True)
    assert config(root)["unused0"] == "local:100/vm-100-disk-0.raw"
    root.cli("qm", "set", 100, "--virtio0", "local:100/vm-100-disk-0.raw", ok=True)
    found = config(root)
    assert found["virtio0"] == "local:100/vm-100-disk-0.raw,size=1G"
    assert "unused0" not in found
    root.cli("qm", "disk", "unlink", 100, "--idlist", "virtio0", ok=True)
    root.cli("qm", "disk", "unlink", 100, "--idlist", "unused0", ok=True)
    assert volumes(root) == []


def test_a_disk_is_removed_at_once_by_force(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1", "--scsi1", "local:1")
    root.cli("qm", "disk", "unlink", 100, "--idlist", "scsi0", "--force", "1", ok=True)
    assert volumes(root) == ["vm-100-disk-1.raw"]
    root.cli("qm", "set", 100, "--delete", "scsi1", "--force", "1", ok=True)
    assert volumes(root) == []


def test_a_disk_grows_to_a_size_or_by_one(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1", "--scsi1", "local:1,format=qcow2")
    root.cli("qm", "disk", "resize", 100, "scsi0", "3G", ok=True)
    root.cli("qm", "resize", 100, "scsi1", "+1G", ok=True)
    found = config(root)
    assert found["scsi0"] == "local:100/vm-100-disk-0.raw,size=3G"
    assert found["scsi1"] == "local:100/vm-100-disk-1.qcow2,size=2G"
    assert (root / "var/lib/vz/images/100/vm-100-disk-0.raw").stat().st_size == 3 << 30
    info = root / "var/lib/vz/images/100/vm-100-disk-1.qcow2"
    assert (
        '"virtual-size": 2147483648'
        in subprocess.run(
            ["qemu-img", "info", "--output=json", info], capture_output=True, text=True, check=True
        ).stdout
    )


def test_rescan_finds_lost_volumes_and_new_sizes(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    root.cli("pvesm", "alloc", "local", 100, "vm-100-lost.raw", "1M", ok=True)
    with (root / "var/lib/vz/images/100/vm-100-disk-0.raw").open("r+b") as file:
        file.truncate(2 << 30)
    before = root.config(100).read_text()
    said = root.cli("qm", "disk", "rescan", "--vmid", 100, "--dryrun", ok=True)
    assert "vm-100-lost.raw" in said.stderr
    assert root.config(100).read_text() == before
    root.cli("qm", "rescan", ok=True)
    found = config(root)
    assert found["unused0"] == "local:100/vm-100-lost.raw"
    assert found["scsi0"] == "local:100/vm-100-disk-0.raw,size=2G"


def test_a_disk_by_another_of_its_names_is_neither_unused_nor_removed(root: Root) -> None:
    folder = root / "var/lib/vz"
    root.cli("pvesm", "add", "dir", "alias", "--path", folder, "--content", "images", ok=True)
    create(root, 100, "--scsi0", "local:1", "--scsi1", "local:1")
    text = root.config(100).read_text()
    changed = text.replace("scsi1: local:100/", f"scsi1: {folder}/images/100/")
    assert changed != text
    root.config(100).write_text(changed)
    root.cli("qm", "rescan", ok=True)
    assert root.config(100).read_text() == changed
    root.config(100).write_text(f"{changed}unused0: alias:100/vm-100-disk-0.raw\n")
    said = root.cli("qm", "set", 100, "--delete", "unused0", ok=True)
    assert "'alias:100/vm-100-disk-0.raw', it stays on the storage: it is a disk of VM 100 (scsi0)" in said.stderr
    assert (folder / "images/100/vm-100-disk-0.raw").exists()
    assert "unused0" not in config(root)


def test_a_path_into_a_storage_is_kept_as_a_volume(root: Root) -> None:
    folder = root / "var/lib/vz"
    root.cli("pvesm", "add", "dir", "aaa", "--path", folder, "--content", "images", "--nodes", "other", ok=True)
    create(root, 100)
    root.cli("pvesm", "alloc", "local", 100, "vm-100-own.raw", "1M", ok=True)
    root.cli("qm", "set", 100, "--scsi0", folder / "images/100/vm-100-own.raw", ok=True)
    assert config(root)["scsi0"] == "local:100/vm-100-own.raw,size=1M"


def test_a_replaced_disk_becomes_unused(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    root.cli("qm", "set", 100, "--scsi0", "local:2", ok=True)
    found = config(root)
    assert found["scsi0"] == "local:100/vm-100-disk-1.raw,size=2G"
    assert found["unused0"] == "local:100/vm-100-disk-0.raw"


def kept(root: Root, *names: str) -> bool:
    return all((root / "var/lib/vz/images" / name).exists() for name in names)


def test_a_disk_that_is_attached_in_the_same_breath_is_not_removed(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1", "--scsi1", "local:1")
    root.cli("qm", "set", 100, "--delete", "scsi1", ok=True)
    root.cli("qm", "set", 100, "--scsi1", "local:100/vm-100-disk-1.raw", "--delete", "unused0", ok=True)
    again = ("--scsi2", "local:100/vm-100-disk-1.raw")
    root.cli("qm", "set", 100, "--delete", "scsi1", "--force", "1", *again, ok=True)
    assert config(root)["scsi2"].startswith("local:100/vm-100-disk-1.raw")
    assert kept(root, "100/vm-100-disk-1.raw")


def test_a_disk_that_only_another_part_of_the_file_names_is_not_removed(root: Root) -> None:
    create(root, 100)
    root.cli("pvesm", "alloc", "local", 100, "vm-100-disk-0.raw", "1M", ok=True)
    for number, part in enumerate(("[PENDING]", "[old]", "[special:unknown]")):
        text = (
            f"unused{number}: local:100/vm-100-disk-0.raw\nmemory: 64\n\n{part}\nscsi0: local:100/vm-100-disk-0.raw\n"
        )
        root.config(100).write_text(text)
        root.cli("qm", "set", 100, "--delete", f"unused{number}", ok=True)
        assert kept(root, "100/vm-100-disk-0.raw")


def test_disks_that_other_machines_have_are_not_removed(root: Root) -> None:
    create(root, 120, "--scsi0", "local:1", "--scsi1", "local:1", "--scsi2", "local:1")
    shared = [f"local:120/vm-120-disk-{number}.raw" for number in (0, 1, 2)]
    create(root, 121, "--scsi0", shared[0], "--scsi1", shared[1], "--scsi2", shared[2])
    root.cli("qm", "disk", "unlink", 120, "--idlist", "scsi1", "--force", 1, ok=True)
    root.cli("qm", "set", 120, "--delete", "scsi2", ok=True)
    said = root.cli("qm", "destroy", 120, "--destroy-unreferenced-disks", 1, ok=True)
    assert (
        f"could not remove volume '{shared[0]}', it stays on the storage: it is a disk of VM 121 (scsi0)" in said.stderr
    )
    assert kept(root, *(name.removeprefix("local:") for name in shared))


def test_what_could_not_be_removed_keeps_its_entry(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    root.cli("qm", "set", 100, "--delete", "scsi0", ok=True)
    image_file = root / "var/lib/vz/images/100/vm-100-disk-0.raw"
    with inuse.filling(image_file):
        said = root.cli("qm", "set", 100, "--delete", "unused0", ok=True)
    assert "it stays on the storage" in said.stderr
    assert config(root)["unused0"] == "local:100/vm-100-disk-0.raw"


def test_an_entry_of_a_storage_that_is_gone_can_be_deleted(root: Root) -> None:
    create(root, 100)
    root.config(100).write_text("memory: 64\nscsi0: gone:100/vm-100-disk-0.raw\n")
    root.cli("qm", "set", 100, "--delete", "scsi0", ok=True)
    assert config(root)["unused0"] == "gone:100/vm-100-disk-0.raw"
    root.cli("qm", "set", 100, "--delete", "unused0", ok=True)
    assert "unused0" not in config(root)


@pytest.mark.parametrize("word", ["1", "yes", "on", "true"])
def test_a_protected_machine_keeps_its_disks_however_that_is_written(root: Root, word: str) -> None:
    create(root, 100, "--scsi0", "local:1")
    root.config(100).write_text(f"{root.config(100).read_text()}protection: {word}\n")
    for words in (("set", 100, "--delete", "scsi0", "--force", 1), ("destroy", 100)):
        assert "protection mode enabled" in root.cli("qm", *words).stderr.replace("is enabled", "enabled")
    assert kept(root, "100/vm-100-disk-0.raw")


def test_a_template_with_linked_clones_is_not_destroyed(root: Root) -> None:
    create(root, 110)
    folder = root / "var/lib/vz/images/110"
    root.cli("pvesm", "alloc", "local", 110, "vm-110-disk-1.raw", "1M", ok=True)
    image(folder / "base-110-disk-0.qcow2")
    (folder.parent / "111").mkdir()
    linked = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "../110/base-110-disk-0.qcow2"]
    subprocess.run([*linked, folder.parent / "111/vm-111-disk-0.qcow2"], check=True)
    text = "memory: 64\ntemplate: 1\nscsi0: local:110/base-110-disk-0.qcow2\nscsi1: local:110/vm-110-disk-1.raw\n"
    root.config(110).write_text(text)
    said = root.cli("qm", "destroy", 110)
    assert "base volume 'local:110/base-110-disk-0.qcow2' is still in use by linked clone" in said.stderr
    assert root.config(110).read_text() == text
    assert kept(root, "110/vm-110-disk-1.raw", "110/base-110-disk-0.qcow2")


def test_a_new_disk_that_is_not_wanted_any_more_becomes_unused(root: Root) -> None:
    create(root, 100)
    for words in (("--revert", "scsi1"), ("--delete", "scsi2")):
        key = words[1]
        root.cli("pvesm", "alloc", "local", 100, f"vm-100-{key}.raw", "1M", ok=True)
        text = root.config(100).read_text()
        root.config(100).write_text(f"{text}\n[PENDING]\n{key}: local:100/vm-100-{key}.raw,size=1M\n")
        root.cli("qm", "set", 100, *words, ok=True)
        assert f"local:100/vm-100-{key}.raw" in config(root).values()
        assert "PENDING" not in root.config(100).read_text()
