"""Values of options as they stand in a file: sizes, volumes, what lists show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.guest.qemu import buses, texts
from pvetools.options.drive import ScsiDrive
from pvetools.system.units import GIB, MIB, format_size, parse_size


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-0.raw,size=2G"),
        ("local:100/vm-100-disk-0.raw,size=1G", "local:100/vm-100-disk-0.raw,size=2G"),
        ("local:100/vm-100-disk-0.raw,size=1G,ssd=1", "local:100/vm-100-disk-0.raw,size=2G,ssd=1"),
        ("size=1G,file=local:100/vm-100-disk-0.raw", "size=2G,file=local:100/vm-100-disk-0.raw"),
        ("local:100/vm-100-disk-0.raw,serial=size=9", "local:100/vm-100-disk-0.raw,serial=size=9,size=2G"),
    ],
)
def test_a_new_size_takes_the_place_of_the_old_one(before: str, after: str) -> None:
    assert texts.with_size(before, 2 * GIB) == after


@given(st.integers(1, 1 << 50), st.integers(1, 1 << 50))
def test_a_size_that_was_written_is_read_back(first: int, second: int) -> None:
    text = texts.with_size(texts.with_size("local:100/vm-100-disk-0.raw,ssd=1", first), second)
    drive = ScsiDrive.parse(text)
    assert drive.size == second
    assert parse_size(format_size(second)) == second


def test_volumes_of_a_guest_are_those_that_it_owns_or_uses() -> None:
    section = {
        "scsi0": "local:100/vm-100-disk-0.raw,size=1G",
        "scsi1": "file=local:100/vm-100-disk-1.raw",
        "scsi2": "ssd=1,volume=local:100/vm-100-disk-2.raw",
        "scsi3": "/dev/sdb",
        "ide0": "none,media=cdrom",
        "ide1": "local:iso/a.iso,media=cdrom",
        "ide2": "local:100/vm-100-cloudinit.qcow2,media=cdrom",
        "sata0": "cdrom,media=cdrom",
        "unused0": "local:100/vm-100-disk-3.raw",
        "efidisk0": "local:100/vm-100-disk-4.raw,efitype=4m",
        "tpmstate0": "local:100/vm-100-disk-5.raw",
        "vmstate": "local:100/vm-100-state-x.raw",
        "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0",
        "hookscript": "local:snippets/x",
    }
    names = {key: volid.partition("/")[2] for key, volid in texts.volumes(section).items()}
    assert names == {
        "scsi0": "vm-100-disk-0.raw", "scsi1": "vm-100-disk-1.raw", "scsi2": "vm-100-disk-2.raw",
        "ide2": "vm-100-cloudinit.qcow2", "unused0": "vm-100-disk-3.raw", "efidisk0": "vm-100-disk-4.raw",
        "tpmstate0": "vm-100-disk-5.raw", "vmstate": "vm-100-state-x.raw",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "size"),
    [
        ({"boot": "order=ide2;scsi1", "ide2": "none,media=cdrom", "scsi1": "local:1/x,size=3G"}, 3 * GIB),
        ({"boot": "order=net0;scsi1;scsi2", "scsi1": "local:1/x,size=3G", "scsi2": "local:1/y,size=4G"}, 3 * GIB),
        ({"bootdisk": "virtio0", "virtio0": "local:1/x,size=512M"}, 512 * MIB),
        ({"boot": "order=scsi9"}, 0),
        ({"bootdisk": "scsi0", "scsi0": "local:1/x"}, 0),
        ({"bootdisk": "scsi0", "scsi0": "local:1/x,size=1..G"}, 0),
        ({}, 0),
    ],
)
def test_the_list_shows_the_size_of_the_disk_to_boot_from(section: dict[str, str], size: int) -> None:
    assert texts.boot_disk_size(section) == size


@pytest.mark.parametrize(
    ("section", "memory", "processors"),
    [
        ({}, 512 * MIB, 1),
        ({"memory": "2048", "cores": "4", "sockets": "2"}, 2048 * MIB, 8),
        ({"memory": "current=64", "cores": "4", "vcpus": "3"}, 64 * MIB, 3),
        ({"memory": "nonsense", "smp": "2"}, 512 * MIB, 2),
    ],
)
def test_the_list_shows_memory_and_processors(section: dict[str, str], memory: int, processors: int) -> None:
    assert texts.memory(section) == memory
    assert texts.processors(section) == processors


def test_no_two_disks_have_the_same_target() -> None:
    counts = {"ide": 4, "sata": 6, "scsi": 31, "virtio": 16}
    keys = [f"{family}{index}" for family, count in counts.items() for index in range(count)]
    assert len({buses.target(key) for key in keys}) == len(keys)
    assert [buses.target(key) for key in ("ide0", "sata0", "scsi0", "scsi20", "scsi30", "virtio0")] == [
        "hda", "sda", "sdg", "sdaa", "sdak", "vda",
    ]  # fmt: skip


@pytest.mark.parametrize("scsihw", ["lsi", "megasas", "pvscsi", "virtio-scsi-pci", "virtio-scsi-single"])
@pytest.mark.parametrize("q35", [False, True])
def test_no_two_disks_share_a_place(scsihw: str, q35: bool) -> None:
    counts = {"ide": 4, "sata": 6, "scsi": 31}
    places = [
        buses.unit(family, index, scsihw, q35=q35) for family, count in counts.items() for index in range(count)
    ]  # fmt: skip
    assert len(set(places)) == len(places)


def test_what_is_no_disk_has_no_target() -> None:
    with pytest.raises(ValueError, match="net0"):
        buses.target("net0")
