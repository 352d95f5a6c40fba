"""Virtual machines from OVF descriptors and OVA archives."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from pvetools.system import paths
from tests.real.qemu.machine import config, create, volumes
from tests.sandbox.root import Root

DESCRIPTOR = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
  <References><File ovf:href="web-disk1.vmdk" ovf:id="file1"/></References>
  <DiskSection><Disk ovf:capacity="6291456" ovf:diskId="vmdisk1" ovf:fileRef="file1"/></DiskSection>
  <VirtualSystem ovf:id="vm"><Name>Web server</Name><OperatingSystemSection ovf:id="96"/><VirtualHardwareSection>
    <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
      <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
    <Item><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
      <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
    <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType>
      <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType></Item>
    <Item><rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType><rasd:Parent>3</rasd:Parent>
      <rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource></Item>
    <Item><rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType>
      <rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType></Item>
  </VirtualHardwareSection></VirtualSystem>
</Envelope>
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.raw"
    path.write_bytes(bytes(range(256)) * 8192 + bytes(4 << 20))
    return path


@pytest.fixture
def exported(tmp_path: Path, data: Path) -> Path:
    """A folder as VMware exports one."""
    folder = tmp_path / "web"
    folder.mkdir()
    words = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*words, str(data), str(folder / "web-disk1.vmdk")], check=True)
    (folder / "web.ovf").write_text(DESCRIPTOR)
    sums = (f"SHA256({name})= {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in
            ("web.ovf", "web-disk1.vmdk"))  # fmt: skip
    (folder / "web.mf").write_text("".join(sums))
    return folder


@pytest.fixture
def archive(root: Root, exported: Path) -> Path:
    """The same as an OVA on storage `local`."""
    path = root / "var/lib/vz/import/web.ova"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as packed:
        for name in ("web.ovf", "web.mf", "web-disk1.vmdk"):
            packed.add(exported / name, name)
    return path


def same(data: Path, image: Path, form: str) -> bool:
    words = ["qemu-img", "compare", "-f", "raw", "-F", form, str(data), str(image)]
    return subprocess.run(words, check=False).returncode == 0


def test_a_disk_in_an_archive_is_imported_bit_for_bit(root: Root, archive: Path, data: Path) -> None:
    where = f"/nodes/{paths.node()}/storage/local/import-metadata"
    said = root.cli("pvesh", "get", where, "--volume", "import/web.ova", "--output-format", "json", ok=True)
    found = json.loads(said.stdout)
    assert found["create-args"] == {
        "boot": "order=scsi0", "cores": "2", "memory": "512", "name": "Webserver", "ostype": "l26", "scsihw": "pvscsi",
    }  # fmt: skip
    assert found["net"] == {"net0": {"model": "vmxnet3"}}
    assert found["warnings"] == [{"type": "ova-needs-extracting"}]
    source = found["disks"]["scsi0"]["volid"]
    assert found["disks"]["scsi0"] == {"volid": "local:import/web.ova/web-disk1.vmdk", "size": 6 << 20}
    create(root, 100, "--scsi0", f"local:0,import-from={source},format=qcow2")
    assert same(data, root / "var/lib/vz/images/100/vm-100-disk-0.qcow2", "qcow2")
    assert [path.name for path in archive.parent.iterdir()] == ["web.ova"]


def test_disks_are_unpacked_where_the_user_wants_it(root: Root, archive: Path, data: Path) -> None:
    words = ["--scsi0", "local:0,import-from=local:import/web.ova/web-disk1.vmdk", "--import-working-storage"]
    paths.storage_config().write_text(
        f"dir: other\n\tpath {root.path}/other\n\tcontent images\n\ndir: isos\n\tpath {root.path}/isos\n\tcontent iso\n"
    )
    said = root.cli("qm", "create", 100, *words, "isos")
    assert said.status != 0
    assert "storage 'isos' does not support content type 'images'" in said.stderr
    create(root, 100, *words, "other")
    assert same(data, root / "var/lib/vz/images/100/vm-100-disk-0.raw", "raw")
    assert list((root / "other/images").iterdir()) == []  # which was made for it


def test_a_failed_import_leaves_neither_a_guest_nor_what_was_unpacked(root: Root, archive: Path) -> None:
    damaged = bytearray(archive.read_bytes())
    at = damaged.index(b"KDMV") + 5000
    damaged[at] ^= 1
    archive.write_bytes(damaged)
    said = root.cli("qm", "create", 100, "--scsi0", "local:0,import-from=local:import/web.ova/web-disk1.vmdk")
    assert said.status != 0
    assert "sha256 checksum is" in said.stderr
    assert [path.name for path in archive.parent.iterdir()] == ["web.ova"]
    assert volumes(root) == []
    assert not root.config(100).exists()


def test_the_archive_itself_is_no_disk(root: Root, archive: Path) -> None:
    for name, sentence in (("web.ova", "name one of its disks"), ("web.ova/other.vmdk", "holds no disk 'other.vmdk'")):
        said = root.cli("qm", "create", 100, "--scsi0", f"local:0,import-from=local:import/{name}")
        assert said.status != 0
        assert sentence in said.stderr


def test_a_machine_is_made_from_a_descriptor(root: Root, exported: Path, data: Path) -> None:
    shown = root.cli(
        "qm", "importovf", 100, exported / "web.ovf", "local", "--dryrun", "--output-format", "json", ok=True
    )
    assert json.loads(shown.stdout)["qm"]["name"] == "Webserver"
    assert not root.config(100).exists()
    root.cli("qm", "importovf", 100, exported / "web.ovf", "local", "--format", "qcow2", ok=True)
    found = config(root)
    assert (found["name"], found["memory"], found["cores"], found["boot"]) == ("Webserver", "512", 2, "order=scsi0")
    assert found["scsi0"] == "local:100/vm-100-disk-0.qcow2,size=6M"
    assert same(data, root / "var/lib/vz/images/100/vm-100-disk-0.qcow2", "qcow2")


def test_a_descriptor_without_its_disks_makes_nothing(root: Root, exported: Path) -> None:
    (exported / "web-disk1.vmdk").unlink()
    said = root.cli("qm", "importovf", 100, exported / "web.ovf", "local")
    assert said.status != 0
    assert "web-disk1.vmdk' is not there" in said.stderr
    assert not root.config(100).exists()


def test_a_folder_whose_path_would_be_an_option_is_refused(root: Root, exported: Path) -> None:
    folder = exported.rename(exported.with_name("web,format=raw"))
    said = root.cli("qm", "importovf", 100, folder / "web.ovf", "local")
    assert said.status != 0
    assert f"can't import from folder '{folder}': the paths of disks may not contain commas" in said.stderr
    assert not root.config(100).exists()
