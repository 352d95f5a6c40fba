"""Named formats of values. The names in the JSON schemas are the public ones; values are plain Python types."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pvetools.schema.core import Kind, PropertyString, field, nested
from pvetools.schema.kinds import by_pattern, checked, integer, listing, split_list, string
from pvetools.system.units import format_size, parse_size

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_DNS_NAME = rf"(?:{_LABEL}\.)*{_LABEL}"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_STORAGE = r"[a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]"
_MAIL_USER = r"[\w+~-]+(?:\.[\w+~-]+)*"
_EMAIL = rf"{_MAIL_USER}@[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)*"
_UUID = r"[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}"


def is_ipv4(text: str) -> bool:
    """Four decimal numbers without leading zeros."""
    return bool(re.fullmatch(_IPV4, text))


def is_ipv6(text: str) -> bool:
    """Groups of hexadecimal digits, at most one ``::``, the last 32 bits maybe written as IPv4; no zone."""
    if "." in text:
        before, _, last = text.rpartition(":")
        if not is_ipv4(last):
            return False
        text = f"{before}:0:0"
    parts = text.split("::")
    groups = [group for part in parts if part for group in part.split(":")]
    if len(parts) > 2 or not all(re.fullmatch("[0-9a-fA-F]{1,4}", group) for group in groups):
        return False
    return len(groups) < 8 if len(parts) == 2 else len(groups) == 8


def is_ip(text: str) -> bool:
    """An address of either family."""
    return is_ipv4(text) or is_ipv6(text)


def _network(text: str) -> int:
    """4 or 6 for an address with a prefix length of at least 8 bits, else 0."""
    address, _, bits = text.partition("/")
    if re.fullmatch("[1-9][0-9]{0,2}", bits) and int(bits) >= 8:
        if is_ipv4(address) and int(bits) <= 32:
            return 4
        if is_ipv6(address) and int(bits) <= 128:
            return 6
    return 0


def _expect(good: object, text: str, what: str) -> None:
    if not good:
        raise ValueError(f"value '{text}' does not look like {what}")


def _ip_version(text: str, version: int) -> None:
    _expect(is_ipv4(text) if version == 4 else is_ipv6(text), text, f"a valid IPv{version} address")


def _cidr(text: str, *versions: int) -> None:
    family = f"IPv{versions[0]}" if len(versions) == 1 else "IP"
    _expect(_network(text) in versions, text, f"a valid {family} address with prefix length, such as 10.0.0.1/24")


def _address(text: str) -> None:
    _expect(is_ip(text) or re.fullmatch(_DNS_NAME, text), text, "a valid IP address or DNS name")


ip = checked("ip", lambda text: _expect(is_ip(text), text, "a valid IP address"))
ipv4 = checked("ipv4", lambda text: _ip_version(text, 4))
ipv6 = checked("ipv6", lambda text: _ip_version(text, 6))
cidr = checked("CIDR", lambda text: _cidr(text, 4, 6))
cidrv4 = checked("CIDRv4", lambda text: _cidr(text, 4))
cidrv6 = checked("CIDRv6", lambda text: _cidr(text, 6))
address = checked("address", _address)
dns_name = by_pattern("dns-name", _DNS_NAME, "a valid DNS name")
host_name = by_pattern("dns-name", _DNS_NAME, "a valid DNS name", max_length=255)


def _ipv4_config(text: str) -> None:
    if text not in ("dhcp", "manual"):
        _cidr(text, 4)


def _ipv6_config(text: str) -> None:
    if text not in ("auto", "dhcp", "manual"):
        _cidr(text, 6)


ipv4_config = checked("pve-ipv4-config", _ipv4_config)
ipv6_config = checked("pve-ipv6-config", _ipv6_config)


def _ip_with_link_local_interface(text: str) -> None:
    host, percent, interface = text.partition("%")
    if not percent:
        _expect(is_ip(text), text, "a valid IP address")
    else:
        good = host.lower().startswith("fe80:") and is_ipv6(host) and re.fullmatch(r"[^\s/]{1,15}", interface)
        _expect(good, text, "a link-local IPv6 address with its interface, such as fe80::1%eth0")


name_server = checked("lxc-ip-with-ll-iface", _ip_with_link_local_interface)

mac_address = by_pattern(
    "mac-addr",
    r"(?i:[a-f0-9][02468ace](?::[a-f0-9]{2}){5})",
    "a valid unicast MAC address, such as BC:24:11:12:34:56 (the second digit is even)",
)
bridge = by_pattern("pve-bridge-id", r"[-_.\w]+", "a valid bridge name", complete="bridge")
interface = by_pattern(
    "pve-iface", r"[a-zA-Z][a-zA-Z0-9_]{1,20}(?:[:.]\d+)?", "a valid network interface name", complete="bridge"
)

# Names and numbers of things.
vmid = integer(100, 999_999_999, complete="vmid")
vmid = vmid._replace(json={**vmid.json, "format": "pve-vmid"})
vmid_list = listing(vmid)._replace(json={"type": "string", "format": "pve-vmid-list"})
node = by_pattern("pve-node", _LABEL, "a valid node name", complete="node")
config_id = by_pattern(
    "pve-configid", r"[a-zA-Z][a-zA-Z0-9_-]+", "a valid ID: a letter, then letters, digits, '-' or '_'"
)
snapshot_name = by_pattern(
    "pve-configid",
    r"[a-zA-Z][a-zA-Z0-9_-]+",
    "a valid snapshot name: a letter, then letters, digits, '-' or '_'",
    complete="snapshot",
    max_length=40,
)
storage_id = by_pattern("pve-storage-id", _STORAGE, "a valid storage ID", complete="storage")
pool_id = by_pattern("pve-poolid", r"[\w.-]+(?:/[\w.-]+){0,2}", "a valid pool name", complete="pool")
tag = by_pattern("pve-tag", r"[a-zA-Z0-9_][a-zA-Z0-9_.+-]*", "a valid tag: letters, digits and _ - + .")
tag_list = listing(tag, ";")
email = by_pattern("email", _EMAIL, "a valid email address")
email_or_username = by_pattern(
    "email-or-username", rf"{_EMAIL}|{_MAIL_USER}|[^\s:/@]+@[a-zA-Z][\w.-]+", "a valid email address or user name"
)
uuid = string(_UUID)
digest = string(max_length=64)


def url_encoded(max_length: int = 0) -> Kind:
    """URL-encoded text; the value stays encoded."""
    return by_pattern("urlencoded", r"[\w%.!~*'()-]*", "URL-encoded text", max_length=max_length)


# Volumes, paths and sizes.
def _volume_id(text: str) -> None:
    storage, colon, name = text.partition(":")
    good = colon and name and re.fullmatch(_STORAGE, storage) and not re.search(r"[\n\0]", name)
    _expect(good, text, "a valid volume ID, such as local:100/vm-100-disk-0.qcow2")


def _volume_or_path(text: str) -> None:
    if not re.fullmatch("/[^\n\0]*", text):
        _volume_id(text)


def _volume_or_drive_path(text: str) -> None:
    if text not in ("none", "cdrom"):
        _volume_or_path(text)


def _no_dots(text: str) -> None:
    if {".", ".."} & set(text.split("/")) or re.search(r"[\n\0]", text):
        raise ValueError(f"'{text}' contains '.' or '..' as a part of the path")


def _device_path(text: str) -> None:
    _no_dots(text)
    if not text.startswith("/dev/"):
        raise ValueError(f"'{text}' does not begin with /dev/")


volume_id = checked("pve-volume-id", _volume_id, complete="volume")
drive_volume = checked("pve-volume-id-or-qm-path", _volume_or_drive_path, complete="volume")
source_volume = checked("pve-volume-id-or-absolute-path", _volume_or_path, complete="volume")
mount_source = checked("pve-lxc-mp-string", _no_dots, complete="volume")
mount_target = checked("pve-lxc-mp-string", _no_dots)
device_path = checked("pve-lxc-dev-string", _device_path, complete="file")
storage_path = by_pattern("pve-storage-path", r"/[-/\w.@]+", "an absolute path", complete="directory")


def _parse_disk_size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"invalid format - {error}") from None


disk_size = Kind(_parse_disk_size, format_size, {"type": "string", "format": "disk-size"})


# CPUs, devices and behaviour of guests.
def _cpu_set(text: str) -> None:
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part, re.ASCII)
        if not match or (match[2] and int(match[1]) > int(match[2])):
            raise ValueError(f"value '{text}' does not look like a list of CPUs, such as 0,5,8-11")


cpu_set = checked("pve-cpuset", _cpu_set)


def _phys_bits(text: str) -> None:
    good = text == "host" or (re.fullmatch("[1-9][0-9]?", text) and 8 <= int(text) <= 64)
    _expect(good, text, "a number from 8 to 64 or 'host'")


phys_bits = checked("pve-phys-bits", _phys_bits)

_DISKS: Mapping[str, int] = {"ide": 4, "sata": 6, "scsi": 31, "virtio": 16}
_BOOTABLE: Mapping[str, int] = {**_DISKS, "net": 32, "usb": 14, "hostpci": 16}


def _device(text: str, buses: Mapping[str, int]) -> None:
    match = re.fullmatch(r"([a-z]+)(0|[1-9][0-9]?)", text)
    good = match and int(match[2]) < buses.get(match[1], 0)
    _expect(good, text, f"a device of one of {', '.join(buses)}, such as scsi0")


boot_device = checked("pve-qm-bootdev", lambda text: _device(text, _BOOTABLE))
_boot_disk = checked("pve-qm-bootdisk", lambda text: _device(text, _DISKS))
boot_disk = _boot_disk._replace(json={**_boot_disk.json, "pattern": r"(ide|sata|scsi|virtio)\d+"})

HOTPLUG = ("network", "disk", "cpu", "memory", "usb", "cloudinit")


def _parse_hotplug(text: str) -> list[str]:
    if text in ("0", "1"):
        return ["network", "disk", "usb"] if text == "1" else []
    for feature in split_list(text):
        if feature not in HOTPLUG:
            raise ValueError(f"invalid format - unknown hotplug feature '{feature}', expected {', '.join(HOTPLUG)}")
    return split_list(text)


hotplug_features = Kind(
    _parse_hotplug, lambda value: ",".join(value) or "0", {"type": "string", "format": "pve-hotplug-features"}
)


class Startup(PropertyString):
    """Place in the order in which guests start when the host boots, and the waits around it."""

    order: int | None = field(integer(0), "Place in the order: low numbers start first and stop last.", bare=True)
    up: int | None = field(integer(0), "Seconds to wait after the start before the next guest is started.")
    down: int | None = field(integer(0), "Seconds to wait for the shutdown before the next guest is stopped.")


startup_order = nested(Startup, form="pve-startup-order")

timezone = by_pattern(
    "pve-ct-timezone", r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*", "a time zone, such as Europe/Vienna, UTC or 'host'"
)

# Storage definitions.
CONTENT = ("images", "rootdir", "vztmpl", "iso", "backup", "snippets", "import", "none")


def _content(text: str) -> None:
    if text not in CONTENT:
        raise ValueError(f"invalid content type '{text}', expected one of {', '.join(CONTENT)}")


content_type = checked("pve-storage-content", _content)


def _parse_directories(text: str) -> dict[str, str]:
    directories: dict[str, str] = {}
    for part in split_list(text):
        content, _, path = part.partition("=")
        _content(content)
        if content == "none" or not path or ".." in path.split("/"):
            raise ValueError(f"invalid format - value '{part}' does not look like CONTENT=RELATIVE/PATH")
        if content in directories:
            raise ValueError(f"invalid format - '{content}' stands there twice")
        directories[content] = path
    return directories


def _format_directories(value: Mapping[str, str]) -> str:
    return ",".join(f"{content}={path}" for content, path in value.items())


content_directories = Kind(
    _parse_directories, _format_directories, {"type": "string", "format": "pve-dir-override-list"}
)


def _portal(text: str) -> None:
    host, port = text, ""
    if match := re.fullmatch(r"\[(.+)\](?::(\d{1,5}))?|([^:]+):(\d{1,5})", text, re.ASCII):
        host, port = match[1] or match[3], match[2] or match[4] or ""
        _expect(not match[1] or is_ipv6(host), text, "a valid address with an optional port")
    _address(host)
    _expect(not port or 0 < int(port) < 65536, text, "a valid address with an optional port")


portal = checked("pve-storage-portal-dns", _portal)
server = checked("pve-storage-server", _address)
mount_options = by_pattern("pve-storage-options", r"\S+", "mount options without blanks")
volume_group = by_pattern("pve-storage-vgname", r"[a-zA-Z0-9][\w.-]*[a-zA-Z0-9]", "a valid volume group or pool name")


def _block_size(text: str) -> None:
    match = re.fullmatch(r"([1-9][0-9]{0,7})([kKmM]?)", text)
    size = int(match[1]) << {"": 0, "k": 10, "m": 20}[match[2].lower()] if match else 0
    _expect(512 <= size <= 16 << 20 and not size & (size - 1), text, "a power of two from 512 to 16M, such as 16k")


block_size = checked("pve-storage-zfs-blocksize", _block_size)


def _transfer_rate(text: str) -> None:
    _expect(
        bool(re.fullmatch(r"-?\d{1,18}[kKmMgGtT]?", text, re.ASCII)), text, "bytes per second, such as 10485760 or 10M"
    )


transfer_rate = checked("", _transfer_rate)


def integer_choice(*values: int) -> Kind:
    """One of a few whole numbers."""
    words = [str(value) for value in values]

    def parse(text: str) -> int:
        if text not in words:
            raise ValueError(f"value '{text}' does not have a value in the enumeration '{', '.join(words)}'")
        return int(text)

    return Kind(parse, str, {"type": "integer", "enum": words})
