"""Servers of a SAN in the storage VM: the kernel's own iSCSI and NVMe/TCP targets, set up in configfs.

Both serve a disk of the VM and an image file, at two portals: 127.0.0.1 and 127.0.0.2.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.real.storage_vm.beds import STORAGE, disk, sh
from tests.real.storage_vm.foreign import Server

MIB = 1 << 20
TARGET = "iqn.2024-01.org.example:disks"
NQN = "nqn.2024-01.org.example:disks"
HOSTS = ("127.0.0.1", "127.0.0.2")
DISK_SIZE, IMAGE_SIZE = 6 << 30, 96 * MIB
IMAGE = Path("/srv/san.img")
_LIO = Path("/sys/kernel/config/target")
_NVMET = Path("/sys/kernel/config/nvmet")


@dataclass(frozen=True)
class Portals:
    """A server whose portals can be taken away and given back; `connected` says to which of them this host is."""

    server: Server
    close: Callable[[str], None]
    open: Callable[[str], None]
    connected: Callable[[], list[str]]


def attribute(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def eventually(what: str, check: Callable[[], object], within: float = 40) -> None:
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.1)


@contextlib.contextmanager
def _image() -> Iterator[str]:
    """A loop device over an image file; the target inside cannot tell it from a disk."""
    with IMAGE.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    device = sh(f"losetup -f --show {IMAGE}").strip()
    try:
        yield device
    finally:
        sh(f"losetup -d {device}")


def grow(size: int) -> None:
    """The server makes the image larger, and tells those who are connected if it can."""
    with IMAGE.open("r+b") as file:
        file.truncate(size)
    sh(f"losetup -c $(losetup -nO NAME -j {IMAGE})")
    for file in _NVMET.glob(f"subsystems/{NQN}/namespaces/7/revalidate_size"):
        file.write_text("1")


def _write(path: Path, text: object) -> None:
    path.write_text(str(text))


# iSCSI.


def _lio_backstores(*devices: str) -> list[Path]:
    made = []
    for number, device in enumerate(devices):
        place = _LIO / f"core/iblock_{number}/pvetools"
        place.mkdir(parents=True)
        _write(place / "control", f"udev_path={device}")
        _write(place / "wwn/vpd_unit_serial", f"5f0d1c0a-{number:04x}-4e1f-8a5a-4c1f7f2f6b0{number}")
        _write(place / "enable", 1)
        made.append(place)
    return made


def _np(host: str) -> Path:
    return _LIO / f"iscsi/{TARGET}/tpgt_1/np/{host}:3260"


def _close_lio(host: str) -> None:
    """Nobody listens there any more, and who was connected is so no longer."""
    _np(host).rmdir()
    sh(f"ss -K dst {host} dport = 3260; ss -K src {host} sport = 3260")


@contextlib.contextmanager
def lio() -> Iterator[Portals]:
    """The kernel's iSCSI target; everybody may log in."""
    sh("modprobe -a target_core_mod target_core_iblock target_core_file iscsi_target_mod; systemctl start iscsid")
    with _image() as image:
        yield from _lio(_lio_backstores(disk(4), image))


def _lio(backstores: list[Path]) -> Iterator[Portals]:
    group = _LIO / f"iscsi/{TARGET}/tpgt_1"
    group.mkdir(parents=True)
    for host in HOSTS:
        _np(host).mkdir()
    for number, place in enumerate(backstores):
        lun = group / f"lun/lun_{number}"
        lun.mkdir()
        (lun / "pvetools").symlink_to(place)
    for name, value in {
        "authentication": 0,
        "demo_mode_write_protect": 0,
        "generate_node_acls": 1,
        "cache_dynamic_acls": 1,
    }.items():
        _write(group / "attrib" / name, value)
    _write(group / "enable", 1)
    server = Server(
        f"iscsi: {STORAGE}\n\tportal {HOSTS[0]}\n\ttarget {TARGET}\n",
        {DISK_SIZE: Path("/dev/disk/by-id/virtio-data4"), IMAGE_SIZE: IMAGE},
        "0.0.7.scsi-36001405000000000",
    )
    try:
        yield Portals(server, _close_lio, lambda host: _np(host).mkdir(), iscsi_sessions)
    finally:
        for command in ("multipath -F", "iscsiadm -m node -u", "iscsiadm -m node -o delete"):
            sh(command, check=False)
        _write(group / "enable", 0)
        for number in range(len(backstores)):
            (group / f"lun/lun_{number}/pvetools").unlink()
            (group / f"lun/lun_{number}").rmdir()
        for place in group.glob("np/*"):
            place.rmdir()
        group.rmdir()
        group.parent.rmdir()
        for place in backstores:
            place.rmdir()
            place.parent.rmdir()


def iscsi_sessions() -> list[str]:
    """Addresses of the portals to which this host has working sessions."""
    found = []
    for folder in Path("/sys/class/iscsi_session").glob("session*"):
        number = folder.name.removeprefix("session")
        if attribute(folder / "targetname") == TARGET and attribute(folder / "state") == "LOGGED_IN":
            found.append(attribute(Path(f"/sys/class/iscsi_connection/connection{number}:0/persistent_address")))
    return sorted(found)


@contextlib.contextmanager
def multipathd() -> Iterator[None]:
    """The daemon that joins the paths to a LUN."""
    Path("/etc/multipath.conf").write_text(
        'defaults {\n find_multipaths no\n polling_interval 1\n}\nblacklist {\n devnode "^(vd|loop|nvme|zd|rbd)"\n}\n'
    )
    sh("systemctl start multipathd")
    try:
        yield
    finally:
        sh("multipath -F || true; systemctl stop multipathd; rm /etc/multipath.conf")


@contextlib.contextmanager
def lvm_knows_no_server() -> Iterator[None]:
    """LVM looks at what the network brings alone: here the server's own disks are there as well, with the same data."""
    place = Path("/etc/lvm/lvmlocal.conf")
    before = attribute(place)
    place.write_text('devices {\n global_filter = [ "a|^/dev/mapper/|", "a|^/dev/nvme|", "r|.*|" ]\n}\n')
    try:
        yield
    finally:
        place.write_text(f"{before}\n")


# NVMe.


def _nvmet_port(host: str) -> Path:
    return _NVMET / f"ports/{HOSTS.index(host) + 1}"


def _open_nvmet_port(host: str) -> None:
    place = _nvmet_port(host)
    place.mkdir()
    _write_address(place, host)
    (place / "subsystems" / NQN).symlink_to(_NVMET / "subsystems" / NQN)
    for other in {*HOSTS} - {host}:  # a portal tells of itself only, and where else to ask
        referral = place / "referrals" / other
        referral.mkdir()
        _write_address(referral, other)
        _write(referral / "enable", 1)


def _write_address(place: Path, host: str) -> None:
    for name, value in {"traddr": host, "trtype": "tcp", "trsvcid": 4420, "adrfam": "ipv4"}.items():
        _write(place / f"addr_{name}", value)


def _close_nvmet_port(host: str) -> None:
    place = _nvmet_port(host)
    for referral in place.glob("referrals/*"):
        referral.rmdir()
    (place / "subsystems" / NQN).unlink()
    place.rmdir()


@contextlib.contextmanager
def nvmet() -> Iterator[Portals]:
    """The kernel's NVMe target over TCP; namespaces 1 (a disk) and 7 (an image)."""
    sh("modprobe -a nvmet nvmet-tcp")
    with _image() as image:
        yield from _nvmet({1: disk(5), 7: image})


def _nvmet(devices: dict[int, str]) -> Iterator[Portals]:
    subsystem = _NVMET / "subsystems" / NQN
    subsystem.mkdir()
    _write(subsystem / "attr_allow_any_host", 1)
    for number, device in devices.items():
        space = subsystem / f"namespaces/{number}"
        space.mkdir()
        _write(space / "device_path", device)
        _write(space / "device_uuid", f"5f0d1c0a-9d3c-4e1f-8a5a-4c1f7f2f6b0{number}")
        _write(space / "enable", 1)
    for host in HOSTS:
        _open_nvmet_port(host)
    server = Server(
        f"nvmeof: {STORAGE}\n\tportal {HOSTS[0]}\n\ttarget {NQN}\n",
        {DISK_SIZE: Path("/dev/disk/by-id/virtio-data5"), IMAGE_SIZE: IMAGE},
        "ns7.nvme-uuid.00000000-9d3c-4e1f-8a5a-4c1f7f2f6b07",
    )
    try:
        yield Portals(server, _close_nvmet_port, _open_nvmet_port, nvme_paths)
    finally:
        sh("nvme disconnect-all", check=False)
        for host in HOSTS:
            if _nvmet_port(host).exists():
                _close_nvmet_port(host)
        for space in subsystem.glob("namespaces/*"):
            _write(space / "enable", 0)
            space.rmdir()
        subsystem.rmdir()


def nvme_paths() -> list[str]:
    """Addresses of the portals to which this host has working controllers."""
    found = []
    for folder in Path("/sys/class/nvme").glob("nvme*"):
        if attribute(folder / "subsysnqn") == NQN and attribute(folder / "state") == "live":
            words = dict(word.split("=", 1) for word in attribute(folder / "address").split(","))
            found.append(words["traddr"])
    return sorted(found)
