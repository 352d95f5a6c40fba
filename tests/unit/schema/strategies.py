"""Hypothesis strategies made from declarations: texts that a kind accepts, records of any declared class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from pvetools.schema import formats
from pvetools.schema.core import Field, Kind, PropertyString

_HEX = "0123456789abcdef"
_word = st.from_regex(r"[a-z][a-z0-9_-]{1,10}[a-z0-9]", fullmatch=True)
_number = st.integers(0, 255)
_ipv4 = st.builds("{}.{}.{}.{}".format, _number, _number, _number, _number)
_ipv6 = st.ip_addresses(v=6).map(str)
_volume = st.builds("{}:{}".format, _word, st.from_regex(r"[a-zA-Z0-9/_.-]{1,20}", fullmatch=True))
_path = st.lists(_word, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
_odd_path = _path | st.just("/dev/disk/by-id/a=b")
_mac = st.builds(
    lambda first, rest: ":".join([first, *rest]),
    st.sampled_from(["bc", "02", "FE", "aa", "10"]),
    st.lists(st.text(_HEX, min_size=2, max_size=2), min_size=5, max_size=5),
)
_CONTENT = st.sampled_from(["images", "rootdir", "vztmpl", "iso", "backup", "snippets", "import"])
_FORMATS: Mapping[str, st.SearchStrategy[str]] = {
    "ip": _ipv4 | _ipv6,
    "ipv4": _ipv4,
    "ipv6": _ipv6,
    "address": _ipv4 | _ipv6 | st.just("host.example.org"),
    "mac-addr": _mac,
    "dns-name": st.lists(st.from_regex(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", fullmatch=True), min_size=1).map(
        lambda parts: ".".join(parts)[:200].rstrip(".-")
    ),
    "pve-ipv4-config": st.builds("{}/{}".format, _ipv4, st.integers(8, 32)) | st.sampled_from(["dhcp", "manual"]),
    "pve-ipv6-config": st.builds("{}/{}".format, _ipv6, st.integers(8, 128)) | st.just("auto"),
    "lxc-ip-with-ll-iface": _ipv4 | st.just("fe80::1%eth0"),
    "pve-bridge-id": _word,
    "pve-configid": _word,
    "pve-node": _word.map(lambda name: name.replace("_", "-")),
    "pve-storage-id": _word,
    "pve-tag": _word,
    "pve-vmid": st.integers(100, 999_999_999).map(str),
    "pve-volume-id": _volume,
    "pve-volume-id-or-qm-path": _volume | _odd_path | st.sampled_from(["none", "cdrom"]),
    "pve-volume-id-or-absolute-path": _volume | _odd_path,
    "pve-lxc-mp-string": _odd_path | _word.map("local:{}".format),
    "pve-lxc-dev-string": _word.map("/dev/{}".format),
    "pve-storage-path": _path,
    "disk-size": st.builds("{}{}".format, st.integers(0, 10**6), st.sampled_from(["", "K", "M", "G", "T"])),
    "urlencoded": st.from_regex(r"[a-zA-Z0-9%_.!~*'()-]{0,50}", fullmatch=True).filter(bool),
    "email-or-username": st.sampled_from(["root@pam", "ops@example.org"]),
    "pve-cpuset": st.lists(st.integers(0, 99), min_size=1, max_size=4).map(lambda cpus: ",".join(map(str, cpus))),
    "pve-phys-bits": st.integers(8, 64).map(str) | st.just("host"),
    "pve-qm-bootdev": st.sampled_from(["scsi0", "scsi30", "ide3", "sata5", "virtio15", "net31", "usb0", "hostpci15"]),
    "pve-qm-bootdisk": st.sampled_from(["scsi0", "ide3", "sata5", "virtio15"]),
    "pve-hotplug-features": st.sampled_from(["0", "1", "disk", "network,disk,usb,cpu,memory,cloudinit"]),
    "pve-ct-timezone": st.sampled_from(["host", "UTC", "Europe/Vienna", "Etc/GMT+1"]),
    "pve-storage-content": _CONTENT,
    "pve-dir-override-list": st.dictionaries(_CONTENT, _word, min_size=1, max_size=3).map(
        lambda folders: ",".join(f"{content}={folder}" for content, folder in folders.items())
    ),
    "pve-storage-portal-dns": st.sampled_from(["10.0.0.1", "10.0.0.1:3260", "[fd00::1]:3260", "fd00::1", "san:3260"]),
    "pve-storage-server": _ipv4 | _word.map(lambda name: name.replace("_", "-")),
    "pve-storage-options": st.just("vers=4.2,hard"),
    "pve-storage-vgname": _word,
    "pve-storage-zfs-blocksize": st.sampled_from(["512", "4k", "16K", "1M"]),
}


def texts(kind: Kind) -> st.SearchStrategy[str]:
    """Texts that a kind must accept, from its JSON schema."""
    if kind.record is not None:
        return records(kind.record).map(lambda record: str(record.format()))
    schema = kind.json
    if kind is formats.transfer_rate:  # a format without a public name
        return st.builds("{}{}".format, st.integers(-(10**17), 10**17), st.sampled_from(["", *"kKmMgGtT"]))
    if "enum" in schema:
        return st.sampled_from([str(value) for value in schema["enum"]])
    if "format" in schema:
        return _of_format(schema["format"])
    if schema["type"] == "boolean":
        return st.sampled_from(["0", "1", "on", "off", "yes", "no", "true", "false"])
    if schema["type"] == "integer":
        return st.integers(schema.get("minimum", -(10**9)), schema.get("maximum", 10**9)).map(str)
    if schema["type"] == "number":
        low, high = schema.get("minimum", 0), schema.get("maximum", 10**6)
        return st.integers(low * 100, high * 100).map(lambda value: f"{value / 100:.2f}")
    return _by_pattern(schema)


def _of_format(form: str) -> st.SearchStrategy[str]:
    if form in _FORMATS:
        return _FORMATS[form]
    one = _FORMATS[form.removesuffix("-list")]
    return st.builds(lambda parts, by: by.join(parts), st.lists(one, min_size=1, max_size=3), st.sampled_from(",; "))


def _by_pattern(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" not in schema:
        return st.text("abcXYZ019 .:/_-=+", min_size=max(1, schema.get("minLength", 0)), max_size=30).map(
            lambda text: text.strip() or "x"
        )
    pattern = schema["pattern"].replace("(?>", "(?:")  # the generator knows no atomic groups
    longest = schema.get("maxLength", 200)
    return st.from_regex(f"(?a:{pattern})", fullmatch=True).filter(
        lambda text: 0 < len(text) <= longest and not set(text) & set(",\n\r\v\f\t") and text == text.strip()
    )


def values(row: Field) -> st.SearchStrategy[Any]:
    """Values of one row."""
    found = texts(row.kind).map(row.kind.parse)
    return st.lists(found, min_size=1, max_size=3) if row.kind.array else found


def records(record: type[PropertyString]) -> st.SearchStrategy[PropertyString]:
    """Records of a class: required parts always, up to six of the others, and what these require."""
    rows = list(record.FIELDS.values())

    @st.composite
    def build(draw: st.DrawFn) -> PropertyString:
        chosen = draw(st.lists(st.sampled_from(rows), max_size=6, unique_by=lambda row: row.name))
        wanted = {row.name for row in chosen} | {row.requires for row in chosen if row.requires}
        return record(**{row.attr: draw(values(row)) for row in rows if row.required or row.name in wanted})

    return build()
