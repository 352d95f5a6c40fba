"""How the tables behave as a door for input and as a reader of files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pvetools.options.backup import PruneBackups, VzdumpOptions
from pvetools.options.drive import Drive, ScsiDrive, Threaded
from pvetools.options.lxc import LxcNic, LxcOptions, MountPoint, Rootfs
from pvetools.options.nic import Nic
from pvetools.options.qemu import Agent, Boot, QemuOptions
from pvetools.options.storage import StorageOptions
from pvetools.schema.core import NestedErrors


def test_a_virtual_machine_is_read_into_typed_values() -> None:
    vm = QemuOptions.read(
        {
            "cores": "4",
            "memory": "2048",
            "scsi0": "local:100/vm-100-disk-0.qcow2,discard=on,iothread=1,size=32G",
            "net0": "virtio=BC:24:11:12:34:56,bridge=vmbr0,firewall=1",
            "boot": "order=scsi0;net0",
            "numa": "1",
            "numa0": "cpus=0-3,memory=2048",
            "startup": "order=2,up=30",
            "tags": "web;prod",
            "unknown_key": "kept elsewhere",
        }
    )
    assert (vm.cores, vm.sockets, vm.memory.current, vm.tags) == (4, 1, 2048, ["web", "prod"])
    assert vm.scsi[0].size == 32 << 30
    assert vm.scsi[0].iothread is True
    assert (vm.net[0].model, vm.net[0].macaddr, vm.net[0].bridge) == ("virtio", "BC:24:11:12:34:56", "vmbr0")
    assert vm.boot is not None
    assert vm.boot.order == ["scsi0", "net0"]
    assert (vm.numa, vm.numa_nodes[0].cpus) == (True, "0-3")
    assert vm.startup is not None
    assert (vm.startup.order, vm.startup.up, vm.startup.down) == (2, 30, None)


def test_defaults_hold_for_what_is_not_given() -> None:
    vm, ct, backup = QemuOptions(), LxcOptions(), VzdumpOptions()
    assert (vm.memory.current, vm.kvm, vm.bios, vm.hotplug, vm.scsi) == (
        512,
        True,
        "seabios",
        ["network", "disk", "usb"],
        {},
    )
    assert (ct.memory, ct.swap, ct.unprivileged, ct.rootfs) == (512, 512, False, None)
    assert backup.prune_backups == PruneBackups(keep_all=True)


def test_all_wrong_parameters_are_reported_at_once() -> None:
    with pytest.raises(NestedErrors) as caught:
        QemuOptions.check(
            {
                "cores": "0",
                "scsi3": "local:1,discard=x,nonsense=1",
                "net0": "virtio=zz",
                "scsi31": "local:1",
                "foo": "1",
            }
        )
    assert caught.value.errors.keys() == {"cores", "scsi3.discard", "scsi3.nonsense", "net0.macaddr", "scsi31", "foo"}


def test_a_new_disk_may_be_imported_or_allocated_by_size() -> None:
    drive = QemuOptions.check({"scsi0": "local:0,import-from=/tmp/disk.img"}).scsi[0]
    assert (drive.file, drive.import_from) == ("local:0", "/tmp/disk.img")
    assert LxcOptions.check({"rootfs": "local:8"}).rootfs == Rootfs(volume="local:8")


@pytest.mark.parametrize(
    ("record", "text", "canonical"),
    [
        (Nic, "virtio,bridge=vmbr0", "virtio,bridge=vmbr0"),
        (Nic, "bridge=vmbr0,e1000=BC:24:11:12:34:56", "e1000=BC:24:11:12:34:56,bridge=vmbr0"),
        (Nic, "model=virtio,macaddr=BC:24:11:12:34:56", "virtio=BC:24:11:12:34:56"),
        (ScsiDrive, "volume=local:100/a.raw,size=1024M", "local:100/a.raw,size=1G"),
        (ScsiDrive, "local:100/a.raw,iops_rd_length=5", "local:100/a.raw,iops_rd_max_length=5"),
        (ScsiDrive, "file=/dev/disk/by-id/a=b", "file=/dev/disk/by-id/a=b"),
        (Agent, "enabled=1,guest-fsfreeze=0", "1,freeze-fs=0"),
        (Boot, "cdn", "cdn"),
        (Boot, "order=scsi0;ide2", "order=scsi0;ide2"),
        (LxcNic, "name=eth0,ip=dhcp", "ip=dhcp,name=eth0"),
        (MountPoint, "/srv,mp=/data,ro=yes", "/srv,mp=/data,ro=1"),
    ],
)
def test_short_and_old_forms_are_written_in_the_usual_one(record: type[Nic], text: str, canonical: str) -> None:
    assert record.parse(text).format() == canonical


@pytest.mark.parametrize(
    ("record", "text", "key"),
    [
        (Nic, "bridge=vmbr0", "model"),
        (Rootfs, "size=8G", "volume"),
        (MountPoint, "/srv", "mp"),
        (LxcNic, "bridge=vmbr0", "name"),
        (ScsiDrive, "size=8G", "file"),
    ],
)
def test_a_missing_part_is_named(record: type[Nic], text: str, key: str) -> None:
    with pytest.raises(NestedErrors) as caught:
        record.parse(text)
    assert caught.value.errors == {key: "property is missing and it is not optional"}


def test_an_option_that_needs_another_says_so() -> None:
    with pytest.raises(NestedErrors, match="'gw' requires this property: 'ip'"):
        QemuOptions.check({"ipconfig0": "gw=10.0.0.1"})
    with pytest.raises(NestedErrors, match="'protected' requires this property: 'storage'"):
        VzdumpOptions.check({"protected": "1"})


def test_a_family_is_replaced_as_a_whole_and_nothing_else_changes() -> None:
    vm = QemuOptions.check({"numa": "1", "numa0": "cpus=0", "numa1": "cpus=1", "scsi0": "local:1"})
    changed = vm.replaced(numa_nodes={1: vm.numa_nodes[0]}, cores=2, scsi=None)
    assert changed.texts() == {"numa": "1", "numa1": "cpus=0", "cores": "2"}
    assert "cores" not in vm.given


def test_what_is_shared_by_disks_of_all_buses_is_declared_once() -> None:
    buses = [QemuOptions.FIELDS[f"{bus}[n]"].kind.record for bus in ("ide", "sata", "scsi", "virtio")]
    assert all(record is not None and issubclass(record, Drive) for record in buses)
    assert [bool(record and issubclass(record, Threaded)) for record in buses] == [False, False, True, True]


def test_storage_properties_are_typed() -> None:
    storage = StorageOptions.read(
        {
            "path": "/srv/vz",
            "content": "iso,backup",
            "prune-backups": "keep-last=3",
            "bwlimit": "move=10.5",
            "nodes": "a b",
        }
    )
    assert (storage.content, storage.nodes) == (["iso", "backup"], ["a", "b"])
    assert storage.prune_backups == PruneBackups(keep_last=3)
    assert storage.bwlimit is not None
    assert storage.bwlimit.move == 10.5


def test_every_help_text_is_one_line_that_starts_like_a_sentence() -> None:
    rows = [row for table in (QemuOptions, LxcOptions, VzdumpOptions, StorageOptions) for row in table.FIELDS.values()]
    rows += [part for row in rows if row.kind.record for part in row.kind.record.FIELDS.values()]
    bad = [row.name for row in rows if "\n" in row.help or row.help[0].islower() or not row.help.endswith(".")]
    assert [name for name in bad if name != "target"] == []  # "iSCSI target."


def test_tables_import_nothing_heavy() -> None:
    script = "import sys, pvetools.options.qemu, pvetools.options.lxc, pvetools.options.storage; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    heavy = {
        "fractions",
        "decimal",
        "json",
        "socket",
        "ipaddress",
        "dataclasses",
        "inspect",
        "subprocess",
        "typer",
        "rich",
    }
    assert heavy & set(done.stdout.split()) == set()
