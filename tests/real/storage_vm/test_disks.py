"""The disks of a node: listed, wiped, and made into what storages need."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pvetools.api import tree
from pvetools.storage import defining, definition, volumes
from pvetools.storage.disks import smart
from pvetools.system.errors import PveError
from tests.real.storage_vm.beds import disk, sh
from tests.real.storage_vm.conftest import ENTRY

DISKS = "/nodes/localhost/disks"
SIZE = 6 << 30


class Pvesh:
    """Calls of the interface, in this process: starting Python takes seconds under emulation."""

    def call(self, verb: str, path: str, options: dict[str, object]) -> Any:
        row, variables = tree.find(tree.VERBS[verb], f"{DISKS}/{path}")
        given = {key.replace("__", "-"): str(value) for key, value in options.items()}
        return tree.call(row, {**variables, **given})

    def get(self, path: str, **options: object) -> Any:
        return self.call("get", path, options)

    def do(self, verb: str, path: str, **options: object) -> str:
        return str(self.call(verb, path, options))

    def refused(self, verb: str, path: str, **options: object) -> str:
        with pytest.raises(PveError) as caught:
            self.call(verb, path, options)
        return str(caught.value)

    def row(self, device: str, **options: object) -> dict[str, Any]:
        """A device in the list."""
        (found,) = [row for row in self.get("list", skipsmart=1, **options) if row["devpath"] == device]
        return found


@pytest.fixture
def pvesh(module_root: Path) -> Pvesh:
    tree.load("disks")
    return Pvesh()


@pytest.fixture
def vdx() -> str:
    """An empty disk, under the kernel's name."""
    return os.path.realpath(disk(4))


@pytest.fixture
def other() -> str:
    return os.path.realpath(disk(5))


def is_empty(device: str) -> bool:
    """Nothing that any tool knows lies on a disk, and it has no partitions."""
    sh("udevadm settle")
    return not sh(f"wipefs {device}") and sh(f"lsblk -nro NAME {device}").split() == [Path(device).name]


@contextlib.contextmanager
def after(command: str) -> Iterator[None]:
    try:
        yield
    finally:
        sh(f"set +e; {command}", check=False)  # what has gone already keeps nothing else
        sh("udevadm settle")


# The list.


def test_an_empty_disk_is_listed_as_unused(pvesh: Pvesh, vdx: str) -> None:
    found = {row["devpath"]: row for row in pvesh.get("list", type="unused")}
    assert vdx in found
    assert {"size": SIZE, "gpt": 0, "osdid": -1, "health": "UNKNOWN", "wearout": "N/A"}.items() <= found[vdx].items()
    assert "/dev/vda" not in found
    assert "used" not in found[vdx]


def test_the_disk_of_the_system_is_in_use(pvesh: Pvesh) -> None:
    row = pvesh.row("/dev/vda")
    assert (row["used"], row["mounted"]) == ("ext4", 1)


@pytest.mark.parametrize(
    ("make", "use", "undo"),
    [
        ("mkfs.xfs -q {0}", "xfs", "true"),
        ("mkswap {0}", "swap", "true"),
        ("vgcreate -q vgtry {0}", "LVM", "vgremove -qfy vgtry"),
        ("zpool create -o cachefile=none ztry {0}", "ZFS", "zpool destroy ztry"),
        ("echo 0 2048 linear {0} 0 | dmsetup create dmtry", "Device Mapper", "dmsetup remove dmtry"),
        ("echo 'label: gpt\n,100M\n' | sfdisk -q {0}", "partitions", "true"),
        ("echo 'label: gpt\n,100M,uefi\n' | sfdisk -q {0}", "EFI", "true"),
        ("echo 'label: gpt\n,1M,21686148-6449-6E6F-744E-656564454649\n' | sfdisk -q {0}", "BIOS boot", "true"),
        ("echo 'label: gpt\n,1G,lvm\n' | sfdisk -q {0}", "LVM", "true"),
    ],
)
def test_what_a_disk_is_used_for(pvesh: Pvesh, vdx: str, make: str, use: str, undo: str) -> None:
    with after(undo):
        sh(make.format(vdx) + "; udevadm settle")
        assert pvesh.row(vdx)["used"] == use


def test_partitions_are_listed_when_asked_for(pvesh: Pvesh, vdx: str) -> None:
    sh(f"printf 'label: gpt\n,100M\n,200M,lvm\n' | sfdisk -q {vdx}; udevadm settle; mkfs.ext4 -q {vdx}1")
    sh("udevadm settle")
    assert pvesh.row(vdx, include__partitions=1)["used"] == "partitions"
    first = pvesh.row(f"{vdx}1", include__partitions=1)
    assert {"parent": vdx, "type": "partition", "used": "ext4", "gpt": 1, "size": 100 << 20}.items() <= first.items()
    assert pvesh.row(f"{vdx}2", include__partitions=1)["used"] == "LVM"


def test_a_virtual_disk_has_no_health_to_tell(pvesh: Pvesh, vdx: str) -> None:
    assert f"can't read the health of disk '{vdx}'" in pvesh.refused("get", "smart", disk=vdx)


@pytest.fixture
def nvme(vdx: str) -> Iterator[str]:
    """The disk behind the kernel's own NVMe controller, which is reached by TCP."""
    place = "/sys/kernel/config/nvmet"
    subsystem, port = f"{place}/subsystems/try", f"{place}/ports/99"
    sh(
        f"mkdir -p {subsystem}/namespaces/1 {port}; echo 1 > {subsystem}/attr_allow_any_host; "
        f"echo {vdx} > {subsystem}/namespaces/1/device_path; echo 1 > {subsystem}/namespaces/1/enable; "
        f"echo tcp > {port}/addr_trtype; echo ipv4 > {port}/addr_adrfam; echo 127.0.0.1 > {port}/addr_traddr; "
        f"echo 4499 > {port}/addr_trsvcid; ln -s {subsystem} {port}/subsystems/try; "
        "nvme connect -t tcp -a 127.0.0.1 -s 4499 -n try; udevadm settle"
    )
    try:
        (node,) = [path.name for path in Path("/sys/block").glob("nvme*") if "c" not in path.name]
        yield f"/dev/{node}"
    finally:
        sh(
            f"nvme disconnect -n try; rm {port}/subsystems/try; rmdir {port}; "
            f"echo 0 > {subsystem}/namespaces/1/enable; rmdir {subsystem}/namespaces/1 {subsystem}"
        )


def test_an_nvme_disk_tells_its_health(nvme: str) -> None:
    told = smart.read(Path(nvme)).as_data()
    assert (told["health"], told["type"], told["wearout"]) == ("PASSED", "text", 100)
    assert "Critical Warning" in told["text"]
    assert smart.read(Path(nvme), health_only=True).health == "PASSED"


def test_disks_of_a_server_are_none_of_this_node(pvesh: Pvesh, nvme: str, vdx: str) -> None:
    assert nvme not in [row["devpath"] for row in pvesh.get("list", skipsmart=1)]
    assert f"'{nvme}' is none of the disks of this node" in pvesh.refused("set", "wipedisk", disk=nvme)
    assert "is in use by the NVMe subsystem 'try'" in pvesh.refused("set", "wipedisk", disk=vdx)


# Partition tables and wiping.


def test_a_disk_gets_a_partition_table(pvesh: Pvesh, vdx: str) -> None:
    ident = str(uuid.uuid4())
    upid = pvesh.do("create", "initgpt", disk=vdx, uuid=ident)
    assert f":diskinit:{Path(vdx).name}:" in upid
    row = pvesh.row(vdx)
    assert row["gpt"] == 1
    assert "used" not in row
    assert sh(f"blkid -p -s PTUUID -o value {vdx}").strip() == ident
    pvesh.do("create", "initgpt", disk=vdx)
    assert sh(f"blkid -p -s PTUUID -o value {vdx}").strip() != ident


def test_a_partition_gets_no_partition_table(pvesh: Pvesh, vdx: str) -> None:
    sh(f"printf 'label: gpt\n,100M\n' | sfdisk -q {vdx}; udevadm settle")
    assert f"'{vdx}1' is a partition of '{vdx}'" in pvesh.refused("create", "initgpt", disk=f"{vdx}1")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/dev/nothing", "block device '/dev/nothing' does not exist"),
        ("/dev/null", "block device '/dev/null' does not exist"),
        ("/dev/mapper/../vda", "disk:"),
        ("/etc/passwd", "disk:"),
        ("/dev/vda;reboot", "disk:"),
        ("-f", "disk:"),
    ],
)
@pytest.mark.parametrize(("verb", "path"), [("set", "wipedisk"), ("create", "initgpt"), ("get", "smart")])
def test_what_is_no_disk_reaches_no_tool(pvesh: Pvesh, verb: str, path: str, name: str, why: str) -> None:
    assert why in pvesh.refused(verb, path, **{"disk": name})


def test_other_block_devices_are_none_of_the_disks(pvesh: Pvesh, vdx: str) -> None:
    with after("dmsetup remove dmtry"):
        sh(f"echo 0 2048 linear {vdx} 0 | dmsetup create dmtry; udevadm settle")
        node = os.path.realpath("/dev/mapper/dmtry")
        assert f"'{node}' is none of the disks of this node" in pvesh.refused("create", "lvm", name="x1", device=node)


@pytest.mark.parametrize("make", ["mkfs.ext4 -q {0}", "mkfs.btrfs -q {0}", "mkswap {0}", "pvcreate -q {0}"])
def test_a_wiped_disk_is_empty(pvesh: Pvesh, vdx: str, make: str) -> None:
    sh(make.format(vdx) + f"; dd if=/dev/urandom of={vdx} bs=64k count=4 seek=3190 oflag=direct status=none")
    upid = pvesh.do("set", "wipedisk", disk=vdx)
    assert f":wipedisk:{Path(vdx).name}:" in upid
    assert is_empty(vdx)
    assert "used" not in pvesh.row(vdx)
    sh(f"cmp -n {200 << 20} {vdx} /dev/zero")


def test_a_disk_is_wiped_with_its_partitions(pvesh: Pvesh, vdx: str, other: str) -> None:
    sh(f"printf 'label: gpt\n,500M\n,1G\n' | sfdisk -q {vdx}; udevadm settle; mkfs.ext4 -q {vdx}1; mkfs.xfs -q {vdx}2")
    sh(f"mkfs.ext4 -q {other}; udevadm settle")
    pvesh.do("set", "wipedisk", disk=vdx)
    assert is_empty(vdx)
    sh(f"printf 'label: gpt\n,500M\n,1G\n' | sfdisk -q --wipe-partitions never {vdx}; udevadm settle")
    assert not sh(f"wipefs {vdx}1; wipefs {vdx}2")
    assert "ext4" in sh(f"wipefs {other}")


def test_a_partition_is_wiped_alone(pvesh: Pvesh, vdx: str) -> None:
    sh(f"printf 'label: gpt\n,500M\n,1G,lvm\n' | sfdisk -q {vdx}; udevadm settle")
    sh(f"mkfs.ext4 -q {vdx}1; pvcreate -q {vdx}2")
    pvesh.do("set", "wipedisk", disk=f"{vdx}2")
    assert not sh(f"wipefs {vdx}2")
    assert "used" not in pvesh.row(f"{vdx}2", include__partitions=1)
    assert "ext4" in sh(f"wipefs {vdx}1")


USERS = [
    ("mkfs.ext4 -q {0}; mkdir -p /mnt/try; mount {0} /mnt/try", "the mount '/mnt/try'", "umount /mnt/try"),
    ("mkswap {0}; swapon {0}", "the host as swap space", "swapoff {0}"),
    ("echo 0 2048 linear {0} 0 | dmsetup create dmtry", "the device 'dmtry'", "dmsetup remove dmtry"),
    ("zpool create -o cachefile=none ztry {0}", "the ZFS pool 'ztry'", "zpool destroy ztry"),
    (
        "vgcreate -q vgtry {0}; lvcreate -qy -n lv -L 8M vgtry", "the device 'vgtry-lv'", "vgremove -qfy vgtry",
    ),
    (
        "printf 'label: gpt\n,500M\n' | sfdisk -q {0}; udevadm settle; mkfs.ext4 -q {0}1; mkdir -p /mnt/try; "
        "mount {0}1 /mnt/try", "the mount '/mnt/try'", "umount /mnt/try",
    ),
]  # fmt: skip


def attempts(device: str) -> list[tuple[str, str, dict[str, object]]]:
    """Everything that would write to a disk."""
    pool = {"name": "try1", "devices": device, "raidlevel": "single"}
    made = [("create", path, {"name": "try1", "device": device}) for path in ("lvm", "lvmthin", "directory")]
    return [
        *made,
        ("create", "zfs", pool),
        ("create", "initgpt", {"disk": device}),
        ("set", "wipedisk", {"disk": device}),
    ]


@pytest.mark.parametrize(("make", "user", "undo"), USERS)
def test_a_disk_in_use_is_left_alone(pvesh: Pvesh, vdx: str, make: str, user: str, undo: str) -> None:
    with after(undo.format(vdx)):
        sh(make.format(vdx) + "; udevadm settle; sync")
        look = f"wipefs -O DEVICE,TYPE,UUID {vdx}* | sort -u"  # a pool at work signs itself at ever more places
        before = sh(look)
        for verb, path, options in attempts(vdx):
            assert f"is in use by {user}" in pvesh.refused(verb, path, **options), path
        assert sh(look) == before


def test_a_disk_with_something_on_it_is_left_alone(pvesh: Pvesh, vdx: str) -> None:
    sh(f"mkfs.ext4 -q {vdx}; udevadm settle")
    for verb, path, options in attempts(vdx)[:-1]:
        assert f"'{vdx}' is not empty: ext4" in pvesh.refused(verb, path, **options), path
    sh(f"fsck.ext4 -fn {vdx}")


def test_a_disk_that_a_guest_is_given_is_left_alone(pvesh: Pvesh, vdx: str, module_root: Path) -> None:
    pvesh.get("list", skipsmart=1)
    folder = module_root / f"etc/pve/nodes/{os.uname().nodename}/qemu-server"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "150.conf"
    config.write_text("name: x\nscsi1: /dev/disk/by-id/virtio-data4,size=6G\n")
    try:
        assert "is in use by VM 150" in pvesh.refused("set", "wipedisk", disk=vdx)
        assert "is in use by VM 150" in pvesh.refused("create", "lvm", name="try1", device=vdx)
    finally:
        config.unlink()


# Volume groups and thin pools.


def storages() -> dict[str, dict[str, Any]]:
    """The storages that are defined."""
    return {name: found.as_data() | {"type": found.type} for name, found in definition.every()[0].items()}


def test_a_volume_group_and_its_storage(pvesh: Pvesh, vdx: str) -> None:
    upid = pvesh.do("create", "lvm", name="one", device="/dev/disk/by-id/virtio-data4", add_storage=1)
    assert ":lvmcreate:one:" in upid
    (group,) = [row for row in pvesh.get("lvm")["children"] if row["name"] == "one"]
    assert group["leaf"] == 0
    assert group["size"] == group["free"] > SIZE - (16 << 20)
    assert [row["name"] for row in group["children"]] == [vdx]
    assert {"type": "lvm", "vgname": "one", "nodes": os.uname().nodename}.items() <= storages()["one"].items()
    assert volumes.alloc("one", 100, 8 << 20) == "one:vm-100-disk-0"
    assert pvesh.row(vdx)["used"] == "LVM"
    assert "volume group 'one' exists already" in pvesh.refused("create", "lvm", name="one", device=disk(5))

    assert ":lvmremove:one:" in pvesh.do("delete", "lvm/one", cleanup__config=1, cleanup__disks=1)
    assert is_empty(vdx)
    assert "one" not in storages()
    assert "one" not in sh("vgs --noheadings -o vg_name")


def test_a_removed_group_leaves_what_it_was_not_told_to_clean(pvesh: Pvesh, vdx: str) -> None:
    pvesh.do("create", "lvm", name="one", device=vdx, add_storage=1)
    pvesh.do("delete", "lvm/one")
    assert "one" in storages()
    assert "LVM2_member" in sh(f"wipefs {vdx}")
    defining.remove("one")
    assert "not found" in pvesh.refused("delete", "lvm/one")
    pvesh.do("set", "wipedisk", disk=vdx)


def test_a_thin_pool_and_its_storage(pvesh: Pvesh, vdx: str) -> None:
    assert ":lvmthincreate:thin:" in pvesh.do("create", "lvmthin", name="thin", device=vdx, add_storage=1)
    (pool,) = pvesh.get("lvmthin")
    assert (pool["lv"], pool["vg"], pool["metadata_size"], pool["used"]) == ("thin", "thin", 1 << 30, 0)
    assert 3 << 30 < pool["lv_size"] < 4 << 30
    wanted = {"type": "lvmthin", "vgname": "thin", "thinpool": "thin"}
    assert wanted.items() <= storages()["thin"].items()
    path = volumes.source(volumes.alloc("thin", 100, 64 << 20)).path
    sh(f"dd if=/dev/urandom of={path} bs=1M count=40 oflag=direct status=none; sync")
    (pool,) = pvesh.get("lvmthin")
    assert 30 << 20 < pool["used"] < 60 << 20
    assert pool["metadata_used"] > 0

    options = {"volume__group": "thin", "cleanup__config": 1, "cleanup__disks": 1}
    assert "thin pool 'nix'" in pvesh.refused("delete", "lvmthin/nix", volume__group="thin")
    assert ":lvmthinremove:thin:" in pvesh.do("delete", "lvmthin/thin", **options)
    assert is_empty(vdx)
    assert "thin" not in storages()


def test_a_group_in_use_is_not_removed(pvesh: Pvesh, vdx: str, module_root: Path) -> None:
    pvesh.do("create", "lvmthin", name="thin", device=vdx, add_storage=1)
    with after("umount /mnt/try; vgremove -qfy thin"):
        sh("lvcreate -qy -n foreign -V 100M -T thin/thin; lvcreate -qy -n plain -L 8M thin")
        sh("mkfs.ext4 -q /dev/thin/foreign; mkdir -p /mnt/try; mount /dev/thin/foreign /mnt/try")
        Path("/mnt/try/file").write_text("kept\n")
        said = pvesh.refused("delete", "lvmthin/thin", volume__group="thin")
        assert "logical volume 'thin/foreign' is in use by the mount '/mnt/try'" in said
        said = pvesh.refused("delete", "lvm/thin", cleanup__disks=1)
        assert "logical volume 'thin/foreign' is in use by the mount '/mnt/try'" in said
        said = pvesh.refused("delete", "lvmthin/thin", volume__group="thin", cleanup__disks=1)
        assert "volume group 'thin' holds more than thin pool 'thin': plain" in said
        assert Path("/mnt/try/file").read_text() == "kept\n"
        sh("umount /mnt/try")

        config = module_root / f"etc/pve/nodes/{os.uname().nodename}/lxc/151.conf"
        config.write_text("rootfs: thin:vm-151-disk-0,size=1G\n")
        try:
            said = pvesh.refused("delete", "lvm/thin")
            assert "volume 'thin:vm-151-disk-0' belongs to CT 151 (rootfs)" in said
        finally:
            config.unlink()
        assert "foreign" in sh("lvs --noheadings -o lv_name thin")
    defining.remove("thin")


def test_a_partition_is_used_alone(pvesh: Pvesh, vdx: str) -> None:
    sh(f"printf 'label: gpt\n,1G\n,2G\n' | sfdisk -q {vdx}; udevadm settle; mkfs.ext4 -q {vdx}1; udevadm settle")
    pvesh.do("create", "lvm", name="one", device=f"{vdx}2")
    assert "e6d6d379-f507-44c2-a23c-238f2a3df928" in sh(f"lsblk -no PARTTYPE {vdx}2")
    assert pvesh.row(f"{vdx}1", include__partitions=1)["used"] == "ext4"
    pvesh.do("delete", "lvm/one", cleanup__disks=1)
    sh("udevadm settle")
    assert not sh(f"wipefs {vdx}2")
    sh(f"fsck.ext4 -fn {vdx}1")


# ZFS pools.


@pytest.mark.parametrize(
    ("level", "count", "more"),
    [
        ("single", 1, {}),
        ("mirror", 2, {"compression": "zstd", "ashift": 13}),
        ("raid10", 4, {}),
        ("raidz", 3, {}),
        ("raidz2", 4, {}),
        ("raidz3", 5, {}),
        ("draid", 4, {"draid__config": "data=2,spares=1"}),
        ("draid2", 5, {}),
        ("draid3", 6, {"draid__config": "data=2,spares=0"}),
    ],
)
def test_zfs_pools_of_every_level(pvesh: Pvesh, level: str, count: int, more: dict[str, object]) -> None:
    devices = [os.path.realpath(disk(number)) for number in range(count)]
    options = {"name": "pool1", "raidlevel": level, "devices": ",".join(devices), **more}
    with after("zpool destroy pool1"):
        assert ":zfscreate:pool1:" in pvesh.do("create", "zfs", **options)
        (pool,) = [row for row in pvesh.get("zfs") if row["name"] == "pool1"]
        assert (pool["health"], pool["dedup"]) == ("ONLINE", 1)
        assert 0 < pool["alloc"] < pool["free"] < pool["size"]
        found = pvesh.get("zfs/pool1")
        assert (found["name"], found["state"], found["errors"]) == ("pool1", "ONLINE", "No known data errors")
        leaves = sorted(walk(found["children"][0]))
        assert leaves == sorted(f"{device}1" for device in devices)
        assert sh("zpool get -Ho value ashift pool1").strip() == str(more.get("ashift", 12))
        assert sh("zfs get -Ho value compression pool1").strip() == more.get("compression", "on")
        kinds = {"single": "/dev/", "raid10": "mirror-1"}
        assert kinds.get(level, level) in json.dumps(found)
        assert {pvesh.row(device)["used"] for device in devices} == {"ZFS"}
        assert ":zfsremove:pool1:" in pvesh.do("delete", "zfs/pool1", cleanup__disks=1)
    assert all(is_empty(device) for device in devices)
    assert "pool1" not in [row["name"] for row in pvesh.get("zfs")]
    assert "there is no ZFS pool 'pool1'" in pvesh.refused("get", "zfs/pool1")


def walk(row: dict[str, Any]) -> Iterator[str]:
    if row["leaf"] and row["name"].startswith("/dev/"):
        yield row["name"]
    for child in row.get("children", ()):
        yield from walk(child)


def test_a_pool_and_its_storage(pvesh: Pvesh, vdx: str) -> None:
    options = {"name": "pool1", "raidlevel": "single", "devices": vdx, "add_storage": 1}
    with after("zpool destroy pool1"):
        pvesh.do("create", "zfs", **options)
        assert {"type": "zfspool", "pool": "pool1"}.items() <= storages()["pool1"].items()
        volumes.source(volumes.alloc("pool1", 100, 8 << 20))
        sh("mkfs.ext4 -q /dev/zvol/pool1/vm-100-disk-0; mkdir -p /mnt/try")
        with after("umount /mnt/try"):
            sh("mount /dev/zvol/pool1/vm-100-disk-0 /mnt/try")
            assert "busy" in pvesh.refused("delete", "zfs/pool1", cleanup__config=1)
            assert "pool1" in storages()
        pvesh.do("delete", "zfs/pool1", cleanup__config=1, cleanup__disks=1)
    assert "pool1" not in storages()
    assert is_empty(vdx)


def test_pools_that_cannot_be_made(pvesh: Pvesh, vdx: str, other: str) -> None:
    pair = {"devices": f"{vdx},{other}"}
    assert "raidz" in pvesh.refused("create", "zfs", name="pool1", raidlevel="raidz", **pair)
    same = {"devices": f"{vdx},/dev/disk/by-id/virtio-data4"}
    assert "a disk is named twice" in pvesh.refused("create", "zfs", name="pool1", raidlevel="mirror", **same)
    assert "name" in pvesh.refused("create", "zfs", name="-f", raidlevel="mirror", **pair)
    sh("mkdir -p /pool1/full")
    with after("rm -r /pool1"):
        assert "pool1" in pvesh.refused("create", "zfs", name="pool1", raidlevel="mirror", **pair)
    assert is_empty(vdx)
    assert is_empty(other)
    sh(f"mkfs.ext4 -q {other}; udevadm settle")
    assert f"'{other}' is not empty" in pvesh.refused("create", "zfs", name="pool1", raidlevel="mirror", **pair)
    assert is_empty(vdx)


# Directories.


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_directory_and_its_storage(pvesh: Pvesh, vdx: str, module_root: Path, kind: str) -> None:
    place = module_root / "mnt/pve/my-dir"
    with after(f"umount {place}; rm -f /etc/systemd/system/*my?x2ddir.mount; systemctl daemon-reload"):
        upid = pvesh.do("create", "directory", name="my-dir", device=vdx, filesystem=kind, add_storage=1)
        assert ":dircreate:my-dir:" in upid
        assert sh(f"findmnt -no FSTYPE,SOURCE {place}").split() == [kind, f"{vdx}1"]
        (found,) = pvesh.get("directory")
        assert (found["path"], found["type"], found["options"]) == (str(place), kind, "defaults")
        assert found["device"].startswith("/dev/disk/by-uuid/")
        unit = Path(found["unitfile"]).name
        assert sh(f"systemd-escape -p --suffix=mount {place}").strip() == unit
        assert sh(f"systemctl is-enabled '{unit}'").strip() == "enabled"
        assert {"type": "dir", "path": str(place), "is_mountpoint": "1"}.items() <= storages()["my-dir"].items()
        volumes.alloc("my-dir", 100, 8 << 20)
        sh(f"systemctl stop '{unit}'; systemctl start '{unit}'; test -e {place}/images/100/vm-100-disk-0.raw")

        sh(f"sleep 300 < {place}/images/100/vm-100-disk-0.raw > /dev/null 2>&1 & echo $! > /tmp/holder")
        with after("kill $(cat /tmp/holder)"):
            pvesh.refused("delete", "directory/my-dir", cleanup__config=1, cleanup__disks=1)
            assert place.is_mount()
            assert "my-dir" in storages()
        upid = pvesh.do("delete", "directory/my-dir", cleanup__config=1, cleanup__disks=1)
        assert ":dirremove:my-dir:" in upid
    assert not place.exists()
    assert pvesh.get("directory") == []
    assert "my-dir" not in storages()
    assert is_empty(vdx)


def test_a_directory_that_is_removed_keeps_its_files(pvesh: Pvesh, vdx: str, module_root: Path) -> None:
    place = module_root / "mnt/pve/keep"
    pvesh.do("create", "directory", name="keep", device=vdx)
    (place / "file").write_text("kept")
    assert "exists already" in pvesh.refused("create", "directory", name="keep", device=disk(5))
    pvesh.do("delete", "directory/keep")
    assert "there is no mount unit" in pvesh.refused("delete", "directory/keep")
    sh(f"mkdir -p /mnt/try; mount {vdx}1 /mnt/try")
    with after("umount /mnt/try"):
        assert Path("/mnt/try/file").read_text() == "kept"


# Reliability.


def test_two_at_once_get_one_disk_once(pvesh: Pvesh, vdx: str) -> None:
    names, ended = ["first", "second", "third"], {}

    def create(name: str) -> None:
        words = [sys.executable, "-c", ENTRY.format(tool="pvesh"), "create", f"{DISKS}/lvm", "--name", name]
        done = subprocess.run(
            [*words, "--device", vdx], capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        ended[name] = (done.returncode, done.stderr)

    threads = [threading.Thread(target=create, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [name for name in names if ended[name][0] == 0]
    with after(f"vgremove -qfy {winner}"):
        assert sh(f"pvs --noheadings -o vg_name {vdx}").strip() == winner
        for name in set(names) - {winner}:
            assert f"'{vdx}' is not empty: LVM" in ended[name][1]


def test_a_name_that_another_storage_has_is_told_before_the_disk_is_touched(pvesh: Pvesh, vdx: str) -> None:
    defining.add("taken", "dir", {"path": "/var/tmp/taken"})
    for path in ("lvm", "lvmthin", "directory"):
        said = pvesh.refused("create", path, name="taken", device=vdx, add_storage=1)
        assert "storage 'taken' exists already" in said
    said = pvesh.refused("create", "zfs", name="taken", devices=vdx, raidlevel="single", add_storage=1)
    assert "storage 'taken' exists already" in said
    assert is_empty(vdx)


@pytest.mark.parametrize("path", ["lvm", "lvmthin", "zfs", "directory"])
def test_what_fails_at_its_last_step_is_undone(pvesh: Pvesh, vdx: str, module_root: Path, path: str) -> None:
    """The storage's definition cannot be written."""
    options = {"devices": vdx, "raidlevel": "single"} if path == "zfs" else {"device": vdx}
    folder = module_root / "etc/pve"
    sh(f"chattr +i {folder}")
    try:
        with pytest.raises((PveError, OSError)):
            pvesh.do("create", path, name="fails", add_storage=1, **options)
    finally:
        sh(f"chattr -i {folder}")
    assert is_empty(vdx)
    pvesh.do("create", path, name="fails", **options)
    more = {"volume__group": "fails"} if path == "lvmthin" else {}
    pvesh.do("delete", f"{path}/fails", cleanup__disks=1, **more)
    assert is_empty(vdx)
