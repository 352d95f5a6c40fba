"""Every option either changes the domain, or is data that other code uses, or makes the start refuse by its name."""

from __future__ import annotations

import pytest

from pvetools.guest.qemu import watch
from pvetools.options.drive import EfiDisk, IdeDrive, SataDrive, ScsiDrive, TpmState, VirtioDrive
from pvetools.options.nic import Nic
from pvetools.options.qemu import (
    Agent,
    Boot,
    Cpu,
    Machine,
    Memory,
    NumaNode,
    QemuOptions,
    Random,
    Smbios,
    Vga,
    Watchdog,
)  # fmt: skip
from pvetools.schema.core import PropertyString
from pvetools.system.errors import Refused
from tests.unit.qemu.places import define

BASE = {
    "cores": "2",
    "sockets": "2",
    "memory": "1024",
    "scsihw": "virtio-scsi-single",
    "serial1": "socket",
    "ide0": "local:100/vm-100-disk-0.raw",
    "sata0": "local:100/vm-100-disk-1.raw",
    "scsi0": "local:100/vm-100-disk-2.raw",
    "virtio0": "local:100/vm-100-disk-3.raw",
    "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0",
}
# a value for each option that is not what holds without it
VALUES = {
    "acpi": "0", "affinity": "1", "agent": "1", "allow-ksm": "0", "amd-sev": "std", "arch": "aarch64",
    "args": "-device pvpanic", "audio0": "device=AC97", "autostart": "1", "balloon": "0", "bios": "ovmf",
    "boot": "order=scsi0", "bootdisk": "scsi0", "cdrom": "none", "cicustom": "user=local:snippets/a",
    "cipassword": "secret", "citype": "nocloud", "ciupgrade": "0", "ciuser": "me", "cores": "1", "cpu": "max",
    "cpulimit": "1", "cpuunits": "200", "description": "words", "efidisk0": "local:100/vm-100-disk-9.raw",
    "freeze": "1", "hookscript": "local:snippets/hook", "hostpci[n]": "01:00.0", "hotplug": "0", "hugepages": "2",
    "ide[n]": "none,media=cdrom", "intel-tdx": "type=tdx,attestation=1", "ipconfig[n]": "ip=dhcp",
    "ivshmem": "size=1", "keephugepages": "1", "keyboard": "de", "kvm": "0", "localtime": "1", "lock": "backup",
    "machine": "q35", "memory": "2048", "meta": "ctime=1", "migrate_downtime": "1", "migrate_speed": "1",
    "name": "n", "nameserver": "1.1.1.1", "net[n]": "e1000=BC:24:11:00:00:02,bridge=vmbr0", "numa": "1",
    "numa[n]": "cpus=0-3,memory=1024", "onboot": "1", "ostype": "win10", "parallel[n]": "/dev/parport0",
    "parent": "snap", "protection": "1", "reboot": "0", "rng0": "/dev/urandom", "running-nets-host-mtu": "net0=1500",
    "runningcpu": "kvm64", "runningmachine": "pc", "sata[n]": "none,media=cdrom", "scsi[n]": "none,media=cdrom",
    "scsihw": "lsi", "searchdomain": "x.org", "serial[n]": "socket", "shares": "500", "smbios1": "serial=YQ==",
    "smp": "4", "snaptime": "1", "sockets": "1", "spice_enhancements": "foldersharing=1", "sshkeys": "ssh-rsa",
    "startdate": "2020-01-01", "startup": "order=1", "tablet": "0", "tags": "a", "tdf": "1", "template": "1",
    "tpmstate0": "local:100/vm-100-disk-9.raw", "unused[n]": "local:100/vm-100-disk-9.raw", "usb[n]": "spice",
    "vcpus": "1", "vga": "cirrus", "virtio[n]": "local:100/vm-100-disk-9.raw", "virtiofs[n]": "dir",
    "vmgenid": "c773c261-d800-4348-9f5d-167fadd53cf8", "vmstate": "local:100/x", "vmstatestorage": "local",
    "watchdog": "ib700",
}  # fmt: skip
NEEDS = {"numa[n]": {"numa": "1"}, "bootdisk": {}, "smp": {}}
WITHOUT = {"smp": ("sockets",), "cdrom": ()}


def text(values: dict[str, str]) -> str:
    return "".join(f"{key}: {value}\n" for key, value in values.items())


def outcome(values: dict[str, str]) -> object:
    """What becomes of a configuration: its domain, or why it is refused."""
    try:
        made = define(text(values))
    except Refused as error:
        return str(error)
    return made


def check(option: str, before: dict[str, str], after: dict[str, str], names: tuple[str, ...]) -> None:
    old, new = outcome(before), outcome(after)
    assert not isinstance(old, str), f"{old} without {option}"
    if isinstance(new, str):
        assert any(name in new for name in names), f"refused without naming {option}: {new}"
    else:
        assert new != old, f"{option} is ignored"


def free_key(label: str) -> str:
    return label.replace("[n]", "2")


@pytest.mark.parametrize("label", QemuOptions.FIELDS)
def test_an_option_of_the_machine(label: str) -> None:
    row = QemuOptions.FIELDS[label]
    if row.name in watch.ELSEWHERE:
        return
    key = "numa0" if label == "numa[n]" else free_key(label)
    before = {k: v for k, v in (BASE | NEEDS.get(label, {})).items() if k not in WITHOUT.get(label, ())}
    words = {"template": ("template",), "arch": ("arch",)}.get(label, (key,))
    check(label, before, {**before, key: VALUES[label]}, words)


def test_there_is_a_value_for_every_option() -> None:
    assert set(VALUES) == set(QemuOptions.FIELDS)


DRIVE_VALUES = {
    "aio": "threads", "backup": "0", "bps": "1", "bps_max_length": "2", "bps_rd": "1", "bps_rd_max_length": "2",
    "bps_wr": "1", "bps_wr_max_length": "2", "cache": "writeback", "detect_zeroes": "0", "discard": "on",
    "format": "qcow2", "import-from": "/x", "iops": "1", "iops_max": "2", "iops_max_length": "2", "iops_rd": "1",
    "iops_rd_max": "2", "iops_rd_max_length": "2", "iops_wr": "1", "iops_wr_max": "2", "iops_wr_max_length": "2",
    "iothread": "1", "mbps": "1", "mbps_max": "2", "mbps_rd": "1", "mbps_rd_max": "2", "mbps_wr": "1",
    "mbps_wr_max": "2", "media": "cdrom", "model": "m", "product": "p", "queues": "4", "replicate": "0",
    "rerror": "report", "ro": "1", "scsiblock": "1", "serial": "s", "shared": "1", "size": "1G", "snapshot": "1",
    "ssd": "1", "vendor": "v", "werror": "report", "wwn": "0x5000C50015EA71AA",
}  # fmt: skip


def parts() -> list[tuple[str, str, str, str]]:
    """Every key of every property string that some code honours: option, key, a value, the family for exceptions."""
    drives: dict[str, type[PropertyString]] = {
        "ide0": IdeDrive, "sata0": SataDrive, "scsi0": ScsiDrive, "virtio0": VirtioDrive
    }  # fmt: skip
    found = [
        (key, part, DRIVE_VALUES[part], "drive")
        for key, record in drives.items()
        for part in record.FIELDS
        if part != "file"
    ]
    others: dict[str, tuple[type[PropertyString], dict[str, str]]] = {
        "net0": (Nic, {
            "bridge": "vmbr1", "firewall": "1", "host-tunnel": "1", "link_down": "1", "macaddr": "", "model": "",
            "mtu": "1400", "queues": "2", "rate": "1", "tag": "5", "trunks": "1;2",
        }),
        "cpu": (Cpu, {
            "cputype": "", "flags": "+aes", "guest-phys-bits": "40", "hidden": "1", "hv-vendor-id": "x", "level": "1",
            "phys-bits": "40", "reported-model": "EPYC",
        }),
        "vga": (Vga, {"type": "", "memory": "32", "clipboard": "vnc"}),
        "agent": (Agent, {"enabled": "", "fstrim_cloned_disks": "1", "freeze-fs": "0", "type": "isa"}),
        "machine": (Machine, {"type": "", "viommu": "intel", "aw-bits": "48", "enable-s3": "1", "enable-s4": "1"}),
        "rng0": (Random, {"source": "", "max_bytes": "1", "period": "5"}),
        "watchdog": (Watchdog, {"model": "", "action": "pause"}),
        "smbios1": (Smbios, {
            "base64": "1", "family": "YQ==", "manufacturer": "YQ==", "product": "YQ==", "serial": "", "sku": "YQ==",
            "uuid": "c773c261-d800-4348-9f5d-167fadd53cf8", "version": "YQ==",
        }),
        "numa0": (NumaNode, {"cpus": "", "memory": "", "hostnodes": "0", "policy": "preferred"}),
        "boot": (Boot, {"legacy": "", "order": ""}),
        "memory": (Memory, {"current": ""}),
    }  # fmt: skip
    for key, (record, values) in others.items():
        assert set(values) == set(record.FIELDS), key
        found += [(key, part, value, key.rstrip("0123456789")) for part, value in values.items() if value]
    return found


PART_BASE = {**BASE, **{key: VALUES[key] for key in ("agent", "machine", "rng0", "watchdog", "smbios1")}}
PART_BASE |= {"cpu": "kvm64", "vga": "std", "numa": "1", "numa0": "cpus=0-3,memory=1024,hostnodes=0"}
PART_BASE |= {"machine": "pc", "ostype": "win10", "memory": "1024", "boot": "order=scsi0"}


@pytest.mark.parametrize(
    ("key", "part", "value", "family"), parts(), ids=lambda value: value if len(value) < 20 else ""
)
def test_a_part_of_an_option(key: str, part: str, value: str, family: str) -> None:
    if f"{family}.{part}" in watch.ELSEWHERE:
        return
    before = {**PART_BASE, key: ",".join(word for word in PART_BASE[key].split(",") if not word.startswith(f"{part}="))}
    check(f"{key}.{part}", before, {**before, key: f"{before[key]},{part}={value}"}, (part, f"{key}: {part}"))


def test_a_value_that_holds_anyway_does_no_harm() -> None:
    card = "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,rate=0\n"
    define(f"memory: 512\nfreeze: 0\nhugepages: 2\nkeephugepages: 0\nbios: seabios\nvga: none\ntablet: 1\n{card}")


def test_all_that_cannot_be_served_is_named_at_once() -> None:
    with pytest.raises(Refused) as refused:
        define("memory: 512\nusb0: spice\nhostpci0: 01:00.0\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5\n")
    assert all(word in str(refused.value) for word in ("usb0: spice", "hostpci0: 01:00.0", "net0.tag"))
    with pytest.raises(Refused) as refused:
        define("memory: 512\nbios: ovmf\nvga: qxl\n")
    assert "bios: ovmf" in str(refused.value)
    assert "vga: qxl" in str(refused.value)


def test_options_of_efi_and_tpm_are_refused_by_name() -> None:
    assert EfiDisk.FIELDS
    assert TpmState.FIELDS
    with pytest.raises(Refused, match="tpmstate0"):
        define("memory: 512\ntpmstate0: local:100/vm-100-disk-0.raw\n")
