"""Configurations and disk descriptors of VMware's machines."""

from __future__ import annotations

import pytest

from pvetools.storage import vmx
from pvetools.storage.imported import Disk, Guest
from pvetools.system.errors import PveError, Refused


def guest(**settings: str) -> Guest:
    """A machine with these settings; ``__`` stands for a colon, ``_`` for a dot."""
    named = {key.replace("__", ":").replace("_", "."): text for key, text in settings.items()}
    text = "".join(f'{key} = "{value}"\n' for key, value in named.items())
    return vmx.guest(vmx.read(text), lambda file: Disk(file, 1))


def test_lines_are_read_whatever_stands_around_them() -> None:
    text = '#!/usr/bin/vmware\n.encoding = "UTF-8"\n  DisplayName="a |22b|22 = c"  \nbroken\nempty = ""\n'
    assert vmx.read(text) == {".encoding": "UTF-8", "displayname": 'a "b" = c', "empty": ""}


@pytest.mark.parametrize(
    ("system", "ostype"),
    [
        ("windows11-64", "win11"), ("windows2019srvNext-64", "win11"), ("windows2019srv-64", "win10"),
        ("windows9-64", "win10"), ("windows8srv-64", "win8"), ("windows7srv-64", "win7"), ("winLonghorn-64", "w2k8"),
        ("winVista", "wvista"), ("winNetEnterprise", "w2k3"), ("winXPPro", "wxp"), ("win2000Serv", "w2k"),
        ("solaris11-64", "solaris"), ("other24xLinux", "l24"), ("other5xlinux-64", "l26"), ("ubuntu-64", "l26"),
        ("rhel8-64", "l26"), ("sles15-64", "l26"), ("freebsd13-64", "other"), ("", "other"),
    ],
)  # fmt: skip
def test_systems_are_known_by_their_names(system: str, ostype: str) -> None:
    assert guest(guestOS=system).options["ostype"] == ostype


@pytest.mark.parametrize(
    ("settings", "sockets", "cores"),
    [
        ({}, "1", "1"),
        ({"numvcpus": "8"}, "8", "1"),
        ({"numvcpus": "8", "cpuid_coresPerSocket": "4"}, "2", "4"),
        ({"numvcpus": "6", "cpuid_coresPerSocket": "4"}, "1", "6"),
        ({"numvcpus": "many", "cpuid_coresPerSocket": "0"}, "1", "1"),
    ],
)
def test_processors(settings: dict[str, str], sockets: str, cores: str) -> None:
    options = guest(**settings).options
    assert (options["sockets"], options["cores"]) == (sockets, cores)


def test_disks_keep_their_places_as_far_as_there_are_such_places() -> None:
    places = ["scsi0:0", "scsi0:5", "scsi1:0", "scsi3:0", "sata0:1", "sata1:0", "ide0:1", "ide1:0", "nvme0:0"]
    text = "".join(f'{place}.present = "TRUE"\n{place}.fileName = "{place}.vmdk"\n' for place in places)
    found = vmx.guest(vmx.read(text), lambda file: Disk(file, 1))
    assert {key: disk.volume.removesuffix(".vmdk") for key, disk in found.disks.items()} == {
        "scsi0": "scsi0:0", "scsi5": "scsi0:5", "scsi16": "scsi1:0", "scsi1": "scsi3:0", "sata1": "sata0:1",
        "sata0": "sata1:0", "ide1": "ide0:1", "ide2": "ide1:0", "scsi2": "nvme0:0",
    }  # fmt: skip
    assert [warning.type for warning in found.warnings] == ["nvme-unsupported"]


def test_what_is_absent_or_no_disk_is_left_out() -> None:
    found = guest(
        scsi0__0_present="FALSE", scsi0__0_fileName="a.vmdk", ide0__0_present="TRUE", ide0__0_fileName="auto detect",
        ide0__0_deviceType="cdrom-raw", sata0__0_present="TRUE", sata0__0_fileName="x.iso",
        sata0__0_deviceType="cdrom-image", ethernet0_present="FALSE", serial0_present="FALSE",
    )  # fmt: skip
    assert (found.disks, found.nets, "boot" in found.options) == ({}, {}, False)
    assert [tuple(warning) for warning in found.warnings] == [("cdrom-image-ignored", "sata0:0", "x.iso")]


def test_uefi_with_an_old_controller_is_told() -> None:
    found = guest(
        firmware="efi", scsi0_virtualDev="lsilogic", scsi0__0_present="TRUE", scsi0__0_fileName="a.vmdk"
    )  # fmt: skip
    assert (found.options["bios"], found.options["scsihw"], found.firmware_disk) == ("ovmf", "lsi", True)
    assert [warning.type for warning in found.warnings] == ["efi-state-lost", "ovmf-with-lsi-unsupported"]


def test_an_extent_is_found() -> None:
    text = '# Disk DescriptorFile\nversion=1\n# Extent description\nRW 2048 VMFS "a-flat.vmdk"\n'
    assert vmx.extent(text, "a.vmdk") == ("a-flat.vmdk", 1 << 20)
    with pytest.raises(PveError, match=r"'a\.vmdk' is no disk of VMware's"):
        vmx.extent("anything else", "a.vmdk")
    with pytest.raises(Refused, match="remove the snapshots of the machine first"):
        vmx.extent(text + 'parentFileNameHint="b.vmdk"\n', "a.vmdk")


def test_nonsense_about_processors_and_identity_does_no_harm() -> None:
    made = vmx.guest({"numvcpus": "0", "cpuid.corespersocket": "0", "uuid.bios": "56 4d"}, lambda file: Disk(file, 1))
    assert (made.options["sockets"], made.options["cores"]) == ("1", "1")
    assert "smbios1" not in made.options


def test_more_disks_than_places_are_refused() -> None:
    made = Guest()
    for number in range(31):
        made.attach("scsi", number, Disk(f"{number}.vmdk", 1))
    with pytest.raises(PveError, match="more disks than there are places"):
        made.attach("scsi", 0, Disk("more.vmdk", 1))
