"""Making and destroying virtual machines."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.real.qemu.machine import config, create, volumes
from tests.sandbox.root import Root


def test_a_new_machine_gets_what_the_user_left_out(root: Root) -> None:
    create(root, 100, "--name", "web", "--scsi0", "local:1", "--net0", "virtio,bridge=vmbr0", "--vmgenid", 1)
    found = config(root)
    assert re.fullmatch(r"virtio=BC:24:11(:[0-9A-F]{2}){3},bridge=vmbr0", str(found["net0"]))
    assert re.fullmatch(r"uuid=[0-9a-f-]{36}", str(found["smbios1"]))
    assert re.fullmatch(r"[0-9a-f-]{36}", str(found["vmgenid"]))
    assert re.fullmatch(r"creation-qemu=[0-9.]+,ctime=[0-9]+", str(found["meta"]))
    assert found["boot"] == "order=scsi0;net0"
    assert found["scsi0"] == "local:100/vm-100-disk-0.raw,size=1G"
    assert (root / "var/lib/vz/images/100/vm-100-disk-0.raw").stat().st_size == 1 << 30


def test_disks_are_allocated_in_the_format_and_size_that_were_asked_for(root: Root) -> None:
    create(
        root, 100, "--scsi0", "local:0.5,format=qcow2,discard=on", "--ide2", "none,media=cdrom", "--virtio1", "local:1"
    )
    found = config(root)
    assert found["scsi0"] == "local:100/vm-100-disk-0.qcow2,discard=on,size=512M"
    assert found["boot"] == "order=scsi0;ide2"
    info = subprocess.run(
        ["qemu-img", "info", "--output=json", root / "var/lib/vz/images/100/vm-100-disk-0.qcow2"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(info.stdout)["virtual-size"] == 512 << 20


def test_a_windows_keeps_the_machine_version_of_the_day(root: Root) -> None:
    create(root, 100, "--ostype", "win10")
    assert re.fullmatch(r"pc-i440fx-[0-9]+\.[0-9]+", str(config(root)["machine"]))


@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk"])
def test_an_image_is_imported_bit_for_bit(root: Root, form: str, tmp_path: Path) -> None:
    data = tmp_path / "data.raw"
    data.write_bytes(bytes(range(256)) * 4096 + bytes(1 << 20) + b"end" * 1000)
    source = tmp_path / f"image.{form}"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, data, source], check=True)
    create(root, 100, "--scsi0", f"local:0,import-from={source},format=qcow2")
    target = root / "var/lib/vz/images/100/vm-100-disk-0.qcow2"
    compared = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", data, target], check=False)
    assert compared.returncode == 0


def test_an_image_without_a_telling_name_is_recognised_by_its_content(root: Root, tmp_path: Path) -> None:
    source = tmp_path / "cloud.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", source, "3M"], check=True)
    create(root, 100, "--scsi0", f"local:0,import-from={source}")
    assert config(root)["scsi0"] == "local:100/vm-100-disk-0.raw,size=3M"


def test_a_volume_of_another_guest_is_imported_and_may_grow(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1,format=qcow2")
    create(root, 101, "--scsi0", "local:2,import-from=local:100/vm-100-disk-0.qcow2")
    assert config(root, 101)["scsi0"] == "local:101/vm-101-disk-0.raw,size=2G"


def test_an_image_that_reads_other_files_is_not_imported(root: Root, tmp_path: Path) -> None:
    source = tmp_path / "evil.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/shadow", str(source), "1M"]
    subprocess.run(command, check=True)
    said = root.cli("qm", "create", 100, "--scsi0", f"local:0,import-from={source}")
    assert said.status != 0
    assert "/etc/shadow" in said.stderr
    assert volumes(root) == []
    assert not root.config(100).exists()


def test_a_failed_creation_leaves_nothing(root: Root) -> None:
    said = root.cli("qm", "create", 100, "--scsi0", "local:1", "--scsi1", "local:99/vm-99-disk-0.raw")
    assert said.status != 0
    assert "vm-99-disk-0.raw" in said.stderr
    assert volumes(root) == []
    assert not root.config(100).exists()


def test_cdrom_is_another_word_for_ide2(root: Root) -> None:
    (root / "var/lib/vz/template/iso/small.iso").write_bytes(bytes(1 << 20))
    create(root, 100, "--cdrom", "local:iso/small.iso")
    assert config(root)["ide2"] == "local:iso/small.iso,media=cdrom,size=1M"


def test_destroying_removes_the_disks_and_the_file(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    root.cli("qm", "set", 100, "--delete", "scsi0", ok=True)
    assert config(root)["unused0"] == "local:100/vm-100-disk-0.raw"
    root.cli("qm", "destroy", 100, ok=True)
    assert volumes(root) == []
    assert not root.config(100).exists()


def test_unreferenced_disks_are_removed_on_request_only(root: Root) -> None:
    for vmid in (100, 101):
        create(root, vmid)
        root.cli("pvesm", "alloc", "local", vmid, f"vm-{vmid}-lost.raw", "1M", ok=True)
    root.cli("qm", "destroy", 100, ok=True)
    root.cli("qm", "destroy", 101, "--destroy-unreferenced-disks", ok=True)
    assert volumes(root, 100) == ["vm-100-lost.raw"]
    assert volumes(root, 101) == []


def test_a_protected_machine_and_its_disks_stay(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1", "--protection", 1)
    for words in (["destroy", 100], ["set", 100, "--delete", "scsi0"], ["disk", "unlink", 100, "--idlist", "scsi0"]):
        said = root.cli("qm", *words)
        assert said.status != 0
        assert "protection" in said.stderr
    assert volumes(root) == ["vm-100-disk-0.raw"]
