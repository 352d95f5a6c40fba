"""The configuration inside VM archives."""

import re

import pytest

from pvetools.backup import vmconf
from pvetools.system.errors import PveError

FILE = """#a description
#with%3A escapes
boot: order=scsi0
lock: backup
name: web
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
parent: before
scsi0: local:100/vm-100-disk-0.qcow2,size=4G
scsi1: local:100/vm-100-disk-1.raw,backup=0,size=1G
smbios1: uuid=ddf91b3f-a597-42be-9a7e-fb6421dcd5cd
unused0: local:100/vm-100-disk-7.raw
vmgenid: 11111111-2222-3333-4444-555555555555
#qmdump#map:old:drive-old:local:raw:

[PENDING]
memory: 1024

[before]
scsi0: local:100/vm-100-disk-0.qcow2,size=4G
"""
MAPS = [vmconf.MapLine("scsi0", "drive-scsi0", "local", "qcow2"), vmconf.MapLine("virtio3", "drive-virtio3", "", "")]


def how(**more: object) -> vmconf.Rewrite:
    values = {"volumes": {}, "unique": False, "new_mac": lambda: "BC:24:11:AA:AA:AA", **more}
    return vmconf.Rewrite(**values)


def test_stored_are_the_current_lines_and_the_map_behind_them():
    text = vmconf.stored(FILE, MAPS)
    assert text.splitlines()[:3] == ["#a description", "#with%3A escapes", "boot: order=scsi0"]
    assert text.endswith("#qmdump#map:scsi0:drive-scsi0:local:qcow2:\n#qmdump#map:virtio3:drive-virtio3:::\n")
    assert not re.search("lock|parent|unused|memory|drive-old|\n\n|before", text)


def test_the_map_is_read_back():
    assert vmconf.maps(vmconf.stored(FILE, MAPS)) == MAPS


@pytest.mark.parametrize("line", ["scsi0:drive-b:x:raw", "scsi9:drive-scsi0:x:raw"])
def test_a_map_that_names_a_disk_or_device_twice_is_refused(line: str):
    with pytest.raises(PveError, match="twice"):
        vmconf.maps(f"#qmdump#map:scsi0:drive-scsi0:local:raw:\n#qmdump#map:{line}:\n")


@pytest.mark.parametrize("line", ["#qmdump#map::drive:x:raw:", "#qmdump#map:a b:drive:x:raw:", "#qmdump#map:a:b:c:d"])
def test_malformed_map_lines_do_not_count(line: str):
    assert vmconf.maps(line) == []


def test_device_names_follow_the_key():
    assert vmconf.device_name("scsi10") == "drive-scsi10"
    assert vmconf.device_name("tpmstate0") == "drive-tpmstate0-backup"


def test_a_restored_disk_gets_its_new_volume_and_loses_its_format():
    line = "scsi0: file=old:1/a.raw,cache=none,format=raw,size=1G\n"
    assert vmconf.rewritten(line, how(volumes={"scsi0": "new:2/b"})) == "scsi0: new:2/b,cache=none,size=1G\n"


def test_disks_without_backup_become_comments_and_others_stay():
    text = vmconf.rewritten(FILE, how(volumes={"scsi0": "new:100/x"}))
    assert "#scsi1: local:100/vm-100-disk-1.raw,backup=0,size=1G\n" in text
    assert "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n" in text
    assert "uuid=ddf91b3f-a597-42be-9a7e-fb6421dcd5cd" in text


def test_the_generation_id_changes_unless_it_is_off():
    old = "11111111-2222-3333-4444-555555555555"
    assert re.fullmatch(r"vmgenid: [0-9a-f-]{36}\n", text := vmconf.rewritten(f"vmgenid: {old}\n", how()))
    assert old not in text
    assert vmconf.rewritten("vmgenid: 0\n", how()) == "vmgenid: 0\n"


def test_unique_gives_new_addresses_and_a_new_uuid():
    text = vmconf.rewritten(FILE, how(unique=True))
    assert "net0: virtio=BC:24:11:AA:AA:AA,bridge=vmbr0\n" in text
    assert re.search(r"smbios1: uuid=[0-9a-f-]{36}\n", text)
    assert "ddf91b3f" not in text


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("ide2: local:cloudinit,media=cdrom", ["ide2"]),
        ("scsi3: local:100/vm-100-cloudinit.qcow2,media=cdrom,size=4M", ["scsi3"]),
        ("ide0: lvm:vm-100-cloudinit,media=cdrom", ["ide0"]),
        ("ide2: local:iso/cloudinit.iso,media=cdrom", []),
        ("scsi0: local:100/vm-100-disk-0.raw,serial=cloudinit", []),
    ],
)
def test_cloud_init_drives_are_recognised(line: str, keys: list[str]):
    assert vmconf.cloudinit_keys(line + "\n") == keys
