"""What each named format takes and what it refuses."""

from __future__ import annotations

import pytest

from pvetools.schema import formats
from pvetools.schema.core import Kind

GOOD: list[tuple[Kind, str, object]] = [
    (formats.vmid, "100", 100),
    (formats.vmid, "999999999", 999_999_999),
    (formats.vmid_list, "100,101 102;103", [100, 101, 102, 103]),
    (formats.disk_size, "32G", 32 << 30),
    (formats.disk_size, "1.5K", 1536),
    (formats.disk_size, "512", 512),
    (formats.hotplug_features, "1", ["network", "disk", "usb"]),
    (formats.hotplug_features, "0", []),
    (formats.hotplug_features, "cpu;memory", ["cpu", "memory"]),
    (formats.tag_list, "web;db,old", ["web", "db", "old"]),
    (formats.content_directories, "iso=isos,backup=old/dumps", {"iso": "isos", "backup": "old/dumps"}),
    (formats.startup_order, "3", formats.Startup(order=3)),
    (formats.startup_order, "order=3,up=10,down=60", formats.Startup(order=3, up=10, down=60)),
    (formats.startup_order, "up=10", formats.Startup(up=10)),
]

ACCEPTED: list[tuple[Kind, list[str]]] = [
    (formats.ip, ["10.0.0.1", "::", "::1", "fe80::1", "1:2:3:4:5:6:7:8", "::ffff:10.0.0.1", "1:2:3:4:5:6:10.0.0.1"]),
    (formats.cidr, ["10.0.0.0/8", "10.0.0.1/32", "fd00::/8", "fd00::1/128"]),
    (formats.ipv4_config, ["dhcp", "manual", "10.0.0.2/24"]),
    (formats.ipv6_config, ["auto", "dhcp", "manual", "fd00::2/64"]),
    (formats.name_server, ["10.0.0.1", "fd00::1", "fe80::1%eth0"]),
    (formats.address, ["10.0.0.1", "fd00::1", "host", "a-b.example.org"]),
    (formats.address, [f"{'a' * 63}.{'b' * 63}", "a" * 63]),
    (formats.dns_name, ["a", "web-1", "web.example.org", "1and1.com"]),
    (formats.mac_address, ["BC:24:11:12:34:56", "02:00:00:00:00:00", "aa:bb:cc:dd:ee:ff"]),
    (formats.bridge, ["vmbr0", "br-lan", "vmbr0.5", "fwbr_1"]),
    (formats.node, ["pve", "pve-1", "n2"]),
    (formats.storage_id, ["local", "local-zfs", "nas.1"]),
    (formats.config_id, ["a0", "A-b", "snap_1"]),
    (formats.snapshot_name, ["before-upgrade", "a" * 40]),
    (formats.volume_id, ["local:iso/debian.iso", "local:100/vm-100-disk-0.qcow2", "local-lvm:vm-1-disk-0", "local:32"]),
    (formats.drive_volume, ["none", "cdrom", "/dev/sdb", "local:32", "local:0.5"]),
    (formats.source_volume, ["/tmp/disk.img", "local:import/a.ova/disk.vmdk"]),
    (formats.mount_source, ["local:8", "/srv/data", "/srv/..data", "local-zfs:subvol-100-disk-0"]),
    (formats.device_path, ["/dev/ttyUSB0", "/dev/bus/usb/001/002"]),
    (formats.storage_path, ["/var/lib/vz", "/mnt/a@b"]),
    (formats.cpu_set, ["0", "0,5,8-11", "3-3"]),
    (formats.phys_bits, ["8", "40", "64", "host"]),
    (formats.boot_device, ["scsi0", "scsi30", "ide3", "net31", "usb13", "hostpci15"]),
    (formats.boot_disk, ["virtio15", "sata5"]),
    (formats.tag, ["web", "a.b+c-d", "_x", "Web"]),
    (formats.email, ["root@example.org", "a.b+c@host"]),
    (formats.email_or_username, ["root@pam", "root@example.org"]),
    (formats.timezone, ["UTC", "host", "Europe/Vienna", "America/Argentina/Buenos_Aires"]),
    (formats.portal, ["10.0.0.1", "10.0.0.1:3260", "[fd00::1]:3260", "[fd00::1]", "fd00::1", "san.example.org:3260"]),
    (formats.volume_group, ["pve", "vg-1", "a.b"]),
    (formats.block_size, ["512", "4k", "16K", "1M"]),
    (formats.digest, ["0" * 40]),
    (formats.uuid, ["6a7d3f0e-1111-2222-3333-0123456789ab"]),
    (formats.pool_id, ["test", "a/b/c"]),
]

REFUSED: list[tuple[Kind, list[str]]] = [
    (formats.vmid, ["99", "1000000000", "abc", "", "-100", "0100.5"]),
    (formats.vmid_list, ["100,99", "100,abc"]),
    (formats.ip, ["10.0.0.256", "10.0.0", "10.0.0.01", ":::", "1::2::3", "1:2:3:4:5:6:7:8:9"]),
    (formats.ip, ["1:2:3:4:5:6:7", "fe80::1%eth0", "::10.0.0.256", "12345::", ""]),
    (formats.ipv4, ["::1"]),
    (formats.ipv6, ["10.0.0.1"]),
    (formats.cidr, ["10.0.0.1", "10.0.0.0/33", "10.0.0.0/7", "fd00::/129"]),
    (formats.cidr, ["10.0.0.0/-1", "10.0.0.0/ 8", "10.0.0.0/024"]),
    (formats.ipv4_config, ["auto", "10.0.0.2", "fd00::2/64"]),
    (formats.ipv6_config, ["10.0.0.2/24", "none"]),
    (formats.name_server, ["fd00::1%eth0", "fe80::1%", "fe80::1%interface-too-long", "ns1"]),
    (formats.address, ["", "a b", "-a", "a_b", "a..b"]),
    (formats.dns_name, ["", "-web", "web-", "a_b", "a b", "web.", "web\n"]),
    (formats.host_name, ["a" * 256, ".".join(["a"] * 129)]),
    (formats.address, ["a" * 64, f"web.{'a' * 64}.org"]),
    (formats.node, ["a" * 64]),
    (formats.portal, ["a" * 64, f"{'a' * 64}:3260"]),
    (formats.mac_address, ["01:00:00:00:00:00", "BB:24:11:12:34:56", "BC:24:11:12:34"]),
    (formats.mac_address, ["BC-24-11-12-34-56", "xx:24:11:12:34:56"]),
    (formats.bridge, ["", "vm br0", "vmbr0/1"]),
    (formats.node, ["", "a.b", "-a", "a_b"]),
    (formats.storage_id, ["", "a", "1a", "local-", "a b", "../x", "a:b"]),
    (formats.config_id, ["a", "_a", "0a", "a b", "a/b"]),
    (formats.snapshot_name, ["a" * 41, "a"]),
    (formats.volume_id, ["", "local", "local:", ":x", "none", "/dev/sdb", "a:x", "local:a\nb"]),
    (formats.drive_volume, ["", "disk.img", "nothing"]),
    (formats.source_volume, ["none", "relative/path"]),
    (formats.mount_source, ["/srv/../etc", "../x", "/srv/.", "..", "/a\nb"]),
    (formats.device_path, ["/etc/passwd", "/dev/../etc/passwd", "ttyUSB0"]),
    (formats.storage_path, ["", "/", "var", "/a b"]),
    (formats.disk_size, ["", "G", "32X", "-1", "32 G", "1.G"]),
    (formats.cpu_set, ["", "a", "0,", "5-3", "0--1"]),
    (formats.phys_bits, ["7", "65", "many"]),
    (formats.boot_device, ["scsi31", "ide4", "efidisk0", "scsi", "scsi00", "floppy0"]),
    (formats.boot_disk, ["net0"]),
    (formats.hotplug_features, ["2", "disk,floppy"]),
    (formats.tag, ["", "-a", "a b", "a/b"]),
    (formats.email, ["root", "root@", "a b@c"]),
    (formats.timezone, ["", "../etc/passwd", "/UTC", "Europe//Vienna"]),
    (formats.content_type, ["vm", ""]),
    (formats.content_directories, ["iso", "iso=", "iso=../x", "none=x", "vm=x"]),
    (formats.portal, ["", "10.0.0.1:0", "10.0.0.1:65536", "[10.0.0.1]:3260", "a b:1"]),
    (formats.volume_group, ["a", "-vg", "a b"]),
    (formats.block_size, ["0", "500", "3k", "32M", "k"]),
    (formats.transfer_rate, ["", "fast", "10 M", "1.5M", "--5", "٣"]),
    (formats.startup_order, ["x", "order=x", "3,up=-1", "up=1,up=2"]),
    (formats.digest, ["a" * 65]),
    (formats.uuid, ["6a7d3f0e"]),
    (formats.url_encoded(), ["a b", "a&b"]),
    (formats.url_encoded(3), ["abcd"]),
]  # fmt: skip


def _named(kind: Kind) -> str:
    return str(kind.json.get("format") or kind.json.get("pattern") or kind.json["type"])


def _each(table: list[tuple[Kind, list[str]]]) -> list[object]:
    return [pytest.param(kind, text, id=f"{_named(kind)}-{text!r}") for kind, texts in table for text in texts]


@pytest.mark.parametrize(("kind", "text", "value"), GOOD)
def test_the_value_is_a_plain_python_one_and_is_written_back(kind: Kind, text: str, value: object) -> None:
    assert kind.parse(text) == value
    assert kind.parse(kind.format(value)) == value


@pytest.mark.parametrize(("kind", "text"), _each(ACCEPTED))
def test_good_text_is_accepted_unchanged(kind: Kind, text: str) -> None:
    assert kind.format(kind.parse(text)) == text


@pytest.mark.parametrize(("kind", "text"), _each(REFUSED))
def test_bad_text_is_refused_with_a_reason(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError, match=r"\w \w"):
        kind.parse(text)


def test_the_reason_names_the_value_and_what_is_expected() -> None:
    with pytest.raises(ValueError, match=r"'01:00:00:00:00:00' does not look like a valid unicast MAC address"):
        formats.mac_address.parse("01:00:00:00:00:00")


def test_sizes_are_written_with_the_largest_unit_that_fits() -> None:
    assert [formats.disk_size.format(size) for size in (0, 1000, 1536, 4 << 20, 32 << 30, 2 << 40)] == [
        "0", "1000", "1536", "4M", "32G", "2T",
    ]  # fmt: skip
