"""What only ZFS over iSCSI has: a pool on a server, whose target offers the volumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import volumes
from pvetools.system import paths
from tests.real.storage_vm import beds
from tests.real.storage_vm.beds import STORAGE, sh
from tests.real.storage_vm.contract import BLOCK, SIZE, holds, in_use, put
from tests.real.storage_vm.datasets import datasets, value

Define = Callable[..., None]


@pytest.fixture(scope="module")
def server(module_root: Path) -> Iterator[beds.Bed]:
    with beds.zfs() as bed:
        yield bed


@pytest.fixture
def remote(server: beds.Bed) -> Iterator[Define]:
    """Define the storage on the server, with options; afterwards it is empty."""

    def write(**options: object) -> None:
        lines = dict(line.strip().split(" ", 1) for line in server.section.splitlines()[1:])
        lines |= {key.replace("__", "-"): str(value) for key, value in options.items()}
        text = "".join(f"\t{key} {value}\n" for key, value in lines.items() if value)
        paths.storage_config().write_text(f"zfs: {STORAGE}\n{text}")

    write()
    yield write
    write()
    for volume in reversed(volumes.list_volumes(STORAGE)):
        volumes.free(volume.volid)
    assert datasets() == []


def offered() -> list[str]:
    """Names of what the target offers."""
    folder = Path(f"/sys/kernel/config/target/iscsi/{beds.ZFS_TARGET}/tpgt_1/lun")
    return sorted(link.readlink().name for link in folder.glob("lun_*/*") if link.is_symlink())


def saved() -> list[str]:
    """What the server will offer again when it starts anew."""
    kept = json.loads(Path("/etc/rtslib-fb-target/saveconfig.json").read_text())
    return sorted(store["name"] for store in kept["storage_objects"])


def test_a_volume_is_offered_as_proxmox_does_it_and_taken_back(remote: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, SIZE)
    assert offered() == saved() == ["tank-vms-vm-100-disk-0"]
    found = volumes.source(volid)
    assert found.network
    assert found.network.name.startswith(f"{beds.ZFS_TARGET}/")
    assert found.network.hosts == (("127.0.0.1", 3260),)
    assert "virtual size" in sh(f"qemu-img info -f raw '{found.image}'")
    base = volumes.make_base(volid)
    volumes.clone(base, 101)
    assert offered() == saved() == ["tank-vms-base-100-disk-0", "tank-vms-vm-101-disk-0"]
    volumes.free(f"{STORAGE}:vm-101-disk-0")
    volumes.free(base)
    assert offered() == saved() == []


def test_a_volume_that_its_server_forgot_to_offer_is_offered_again(remote: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, SIZE)
    put(volid, 0x11)
    sh("targetcli /backstores/block delete tank-vms-vm-100-disk-0")
    assert offered() == []
    assert holds(volid, 0x11)
    assert offered() == ["tank-vms-vm-100-disk-0"]
    sh("targetcli /backstores/block delete tank-vms-vm-100-disk-0")
    volumes.free(volid)


def test_a_volume_that_others_offer_under_another_name_is_found(remote: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, SIZE)
    sh("targetcli /backstores/block delete tank-vms-vm-100-disk-0")
    sh("targetcli /backstores/block create name=vm-100-disk-0 dev=/dev/zvol/tank/vms/vm-100-disk-0")
    sh(f"targetcli /iscsi/{beds.ZFS_TARGET}/tpg1/luns create /backstores/block/vm-100-disk-0 7")
    assert volumes.source(volid).network.name == f"{beds.ZFS_TARGET}/7"  # type: ignore[union-attr]
    put(volid, 0x11)
    assert holds(volid, 0x11)
    volumes.free(volid)
    assert offered() == []


def test_without_a_write_cache_every_write_is_on_the_disks(remote: Define) -> None:
    remote(nowritecache=1, sparse=0)
    volumes.alloc(STORAGE, 100, SIZE)
    assert value("sync", "vm-100-disk-0") == "always"
    assert value("volblocksize", "vm-100-disk-0") == "16384"
    assert int(value("refreservation", "vm-100-disk-0")) >= SIZE


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"iscsiprovider": "comstar"}, "iSCSI provider 'comstar' is not served by this version, only: LIO"),
        ({"iscsiprovider": "istgt"}, "iSCSI provider 'istgt' is not served"),
        ({"lio_tpg": ""}, "needs the option 'lio_tpg'"),
        ({"lio_tpg": "tpg7"}, "has no target 'iqn.2003-01.org.example:zfs' with portal group tpg7"),
        ({"lio_tpg": "../x"}, "does not look like a target portal group"),
        ({"comstar_tg": "x"}, "option 'comstar_tg' has no effect with the iSCSI provider LIO"),
        ({"target": "iqn.2003-01.org.example:none"}, "has no target 'iqn.2003-01.org.example:none'"),
        ({"target": "iqn.x;reboot"}, "does not look like"),
        ({"pool": "tank/none"}, "there is no ZFS dataset 'tank/none'"),
        ({"portal": "127.0.0.2"}, "there is no ssh key"),
        ({"portal": "127.0.0.1:3333"}, "does not answer"),
    ],
)
def test_what_is_wrong_with_a_server_is_told(remote: Define, options: dict[str, str], reason: str) -> None:
    remote(**options)
    (row,) = volumes.status(STORAGE)
    assert not row.active
    assert reason in row.reason


def test_a_server_that_does_not_take_the_key_is_told(remote: Define) -> None:
    control = paths.run_dir() / "ssh-127.0.0.1"
    sh(f"ssh -O exit -o ControlPath={control} root@127.0.0.1 || true")
    keys = Path("/root/.ssh/authorized_keys")
    right = keys.read_text()
    keys.write_text("")
    try:
        (row,) = volumes.status(STORAGE)
        assert not row.active
        assert "can't reach root@127.0.0.1 by ssh" in row.reason
        assert "Permission denied" in row.reason
    finally:
        keys.write_text(right)


def test_another_base_path_is_that_of_the_devices(remote: Define) -> None:
    sh("mkdir -p /srv/devices; ln -sfn /dev/zvol/tank /srv/devices/tank")
    remote(zfs__base__path="/srv/devices")
    volid = volumes.alloc(STORAGE, 100, SIZE)
    devices = Path("/sys/kernel/config/target/core").glob("iblock_*/tank-vms-vm-100-disk-0/udev_path")
    assert [path.read_text().strip() for path in devices] == ["/srv/devices/tank/vms/vm-100-disk-0"]
    put(volid, 0x11)
    remote()
    assert holds(volid, 0x11)


def test_a_guest_that_writes_sees_its_volume_grow(remote: Define) -> None:
    volid = volumes.alloc(STORAGE, 100, SIZE)
    with in_use(volumes.source(volid)):
        volumes.resize(volid, 2 * SIZE)
        assert holds(volid, 0, 2 * SIZE - BLOCK)
