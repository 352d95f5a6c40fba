"""A host that is always the same, for tests of definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pvetools.config import guest
from pvetools.guest.qemu import domain
from pvetools.guest.qemu.place import Place, Source
from pvetools.options.qemu import QemuOptions
from pvetools.storage.driver import Network

UUID = "0f6c2e6a-5f0a-5a0a-8f0a-000000000100"


_MONITORS = (("192.0.2.1", 3300), ("2001:db8::1", 3300))
_PORTAL = (("192.0.2.9", 3260),)
# storages whose volumes are no plain files
STORES: dict[str, Callable[[str], Source]] = {
    "lvm": lambda name: Source(f"/dev/vg/{name}", "raw", True, io_uring="never"),
    "krbd": lambda name: Source(f"/dev/rbd/pool/{name}", "raw", True, io_uring="direct"),
    "btrfs": lambda name: Source(f"/mnt/btrfs/images/{name}", "raw", cache="writeback"),
    "cifs": lambda name: Source(f"/mnt/pve/cifs/images/{name}", "raw", io_uring="never"),
    "rbd": lambda name: _network(Network(
        "rbd", f"pool/{name}", _MONITORS, "admin", Path("/etc/pve/priv/ceph/rbd.keyring"))),
    "local-ceph": lambda name: _network(Network("rbd", f"pool/{name}", config=Path("/etc/pve/ceph.conf"))),
    "iscsi": lambda name: _network(Network(
        "iscsi", f"iqn.2026-01.com.example:disks/{name}", _PORTAL, "me", Path("/etc/pve/priv/storage/iscsi.pw"),
        initiator="iqn.1993-08.org.debian:01:aabbccddeeff")),
}  # fmt: skip


def _network(network: Network) -> Source:
    return Source(f"{network.protocol}:{network.name}", "raw", network=network)


class Volumes(dict[str, Source]):
    """Any volume of `local` and of the storages above, and any path; devices are block devices."""

    def __missing__(self, volid: str) -> Source:
        path = Path(volid)
        if volid.partition(":")[0] in STORES:
            return STORES[volid.partition(":")[0]](volid.partition(":")[2])
        if not volid.startswith("/"):
            name = volid.partition(":")[2]
            path = Path("/var/lib/vz", "template" if name.startswith("iso/") else "images", name)
        block = path.is_relative_to("/dev")
        return Source(str(path), "qcow2" if path.suffix == ".qcow2" else "raw", block)


def place(**changes: object) -> Place:
    """VM 100 below the root `/`."""
    usual = Place(
        100, "pvetools-100", UUID, "/run/pvetools/qemu", "/", Volumes(), {"vmbr0": 1500}, "tap100", True, False
    )
    return usual._replace(**changes)


def section(text: str) -> Mapping[str, str]:
    """The current part of a configuration file."""
    return guest.parse("qemu", 100, text, Path("100.conf")).current


def define(text: str, **changes: object) -> domain.Domain:
    """The domain of a configuration file."""
    return domain.define(QemuOptions.read(section(text)), place(**changes))
