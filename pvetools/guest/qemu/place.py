"""What a domain needs to know about its host: names, sockets, volumes. Nothing here talks to libvirt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pvetools.system import paths

if TYPE_CHECKING:
    from pvetools.storage.driver import Network

PREFIX = "pvetools-"


class Source(NamedTuple):
    """Where the data of a drive is, and what its storage advises QEMU to do.

    Args:
        path: file or device; of a server's volume a name for messages.
        format: raw, qcow2, ...
        block: whether it is a block device.
        network: the server behind it, for QEMU to talk to.
        cache: cache mode when the drive asks for none.
        io_uring: when QEMU may use it: ``always``, ``direct`` (without the host's page cache) or ``never``.
    """

    path: str
    format: str
    block: bool = False
    network: Network | None = None
    cache: str = "none"
    io_uring: str = "always"


class Place(NamedTuple):
    """Facts about the host and names for one guest, handed to the pure functions that write its domain.

    Args:
        vmid: the guest.
        name: name of its libvirt domain.
        uuid: UUID of the domain; not the one that the guest sees.
        sockets: folder of its sockets.
        root: the root that it belongs to.
        sources: volume ids and paths of its drives, resolved.
        bridges: MTU of each bridge it uses.
        tap_prefix: start of the names of its taps.
        kvm: whether this host has ``/dev/kvm``.
        cgroup2: whether control groups are of version 2.
        threads: whether disks may have threads of their own with this host's QEMU.
    """

    vmid: int
    name: str
    uuid: str
    sockets: str
    root: str
    sources: Mapping[str, Source]
    bridges: Mapping[str, int]
    tap_prefix: str
    kvm: bool
    cgroup2: bool
    threads: bool = True


def name_prefix() -> str:
    """Start of the names of this root's domains; the guest's id follows."""
    tag = paths.root_tag()
    return f"{PREFIX}{tag}-" if tag else PREFIX


def domain_name(vmid: int) -> str:
    """Name of a guest's libvirt domain."""
    return f"{name_prefix()}{vmid}"


def domain_uuid(vmid: int) -> str:
    """UUID of a guest's libvirt domain: the same at each start, other for the same id below another root.

    It is not the UUID that ``smbios1`` shows to the guest, which need not be unique on the host.
    """
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"pvetools:{domain_name(vmid)}"))


def socket_dir() -> Path:
    """Folder of the guests' sockets."""
    return paths.run_dir() / "qemu"


def serial_socket(vmid: int, index: int) -> Path:
    """Unix socket of a serial port."""
    return Path(serial_path(str(socket_dir()), vmid, index))


def serial_path(sockets: str, vmid: int, index: int) -> str:
    """Path of the unix socket of a serial port in a folder of sockets."""
    return f"{sockets}/{vmid}.serial{index}"


def remove_sockets(vmid: int) -> None:
    """Remove sockets that a stopped guest left."""
    for path in socket_dir().glob(f"{vmid}.*"):
        path.unlink(missing_ok=True)
