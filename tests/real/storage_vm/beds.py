"""A real storage of each type, made in the storage VM: on a disk of its own, or on a server that runs there."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pvetools.storage import mounts, secrets, servers
from pvetools.system import paths
from pvetools.system.errors import PveError

STORAGE = "store"


def sh(command: str, *, check: bool = True, timeout: float = 120) -> str:
    """Run a shell command as root of the VM."""
    done = subprocess.run(["/bin/sh", "-ec", command], capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or done.returncode == 0, f"{command}\nstatus {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def disk(number: int) -> str:
    """One of the VM's empty disks, without what an earlier test left on it."""
    device = f"/dev/disk/by-id/virtio-data{number}"
    sh(f"wipefs -qaf {device}; blkdiscard -f {device}; udevadm settle")
    return device


@dataclass(frozen=True)
class Bed:
    """A storage, ready to be defined.

    `section` is its part of storage.cfg. `foreign` makes a volume with a name that is not ours in the same
    place and gives (the name, a check that its content is untouched).  `thin`: space is taken when it is written.
    `independent_clones`: linked clones do not need their base once they are made.
    """

    section: str
    foreign: Callable[[], tuple[str, Callable[[], bool]]]
    thin: bool = False
    independent_clones: bool = False
    content: str = "images,rootdir"


def _marked_device(path: str, name: str) -> tuple[str, Callable[[], bool]]:
    mark = b"foreign data " * 100

    def untouched() -> bool:
        with Path(path).open("rb") as file:
            return file.read(len(mark)) == mark

    with Path(path).open("r+b") as file:
        file.write(mark)
    return name, untouched


@contextlib.contextmanager
def _volume_group(name: str, number: int, options: str = "") -> Iterator[Bed]:
    """A volume group of 6 GiB on a disk."""
    device = disk(number)
    sh(f"vgcreate -q {name} {device}")

    def foreign() -> tuple[str, Callable[[], bool]]:
        sh(f"lvs {name}/backup || lvcreate -qy -L 8M -n backup {name}")
        return _marked_device(f"/dev/{name}/backup", "backup")

    try:
        yield Bed(f"lvm: {STORAGE}\n\tvgname {name}\n{options}", foreign)
    finally:
        sh(f"vgremove -qfy {name}")


@contextlib.contextmanager
def lvmthin() -> Iterator[Bed]:
    """A thin pool of 3 GiB on disk 1."""
    device = disk(1)
    sh(f"vgcreate -q vgthin {device}; lvcreate -qy -L 3G --poolmetadatasize 32M -T vgthin/pool")

    def foreign() -> tuple[str, Callable[[], bool]]:
        sh("lvs vgthin/backup || lvcreate -qy -V 8M -n backup -T vgthin/pool")
        return _marked_device("/dev/vgthin/backup", "backup")

    try:
        yield Bed(f"lvmthin: {STORAGE}\n\tvgname vgthin\n\tthinpool pool\n", foreign, thin=True)
    finally:
        sh("vgremove -qfy vgthin")


@contextlib.contextmanager
def zfspool() -> Iterator[Bed]:
    """A pool on disk 2, with room for more than this storage."""
    device = disk(2)
    sh(f"zpool create -f -o cachefile=none -O compression=lz4 tank {device}; zfs create tank/vms")

    def foreign() -> tuple[str, Callable[[], bool]]:
        sh("zfs list tank/vms/backup || zfs create -V 8M tank/vms/backup; udevadm settle")
        return _marked_device("/dev/zvol/tank/vms/backup", "backup")

    try:
        yield Bed(f"zfspool: {STORAGE}\n\tpool tank/vms\n\tsparse 1\n", foreign, thin=True)
    finally:
        sh("zpool destroy -f tank")


ZFS_TARGET = "iqn.2003-01.org.example:zfs"


@contextlib.contextmanager
def zfs() -> Iterator[Bed]:
    """The same pool on a server, which is this VM: its root is reached by ssh, its volumes by iSCSI."""
    with zfspool() as local, ssh_to_this_host("127.0.0.1"):
        sh(f"targetcli /iscsi create {ZFS_TARGET}")
        attributes = f"/sys/kernel/config/target/iscsi/{ZFS_TARGET}/tpgt_1/attrib"  # anybody may log in and write
        sh(f"cd {attributes}; echo 1 > generate_node_acls; echo 0 > demo_mode_write_protect; echo 0 > authentication")
        section = (
            f"zfs: {STORAGE}\n\tpool tank/vms\n\tportal 127.0.0.1\n\ttarget {ZFS_TARGET}\n\tiscsiprovider LIO\n"
            "\tlio_tpg tpg1\n\tblocksize 16k\n\tsparse 1\n"
        )
        try:
            yield Bed(section, local.foreign, thin=True, content="images")
        finally:
            sh("targetcli clearconfig confirm=true")


@contextlib.contextmanager
def ssh_to_this_host(name: str) -> Iterator[None]:
    """Root of this host lets in root with the key that the storages use for a server of this name."""
    key = paths.etc_pve() / f"priv/zfs/{name}_id_rsa"
    key.parent.mkdir(parents=True, exist_ok=True)
    key.unlink(missing_ok=True)
    sh(f"ssh-keygen -q -t ed25519 -N '' -f {key}; mkdir -p /run/sshd; ssh-keygen -A; systemctl start ssh")
    folder = Path("/root/.ssh")
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "authorized_keys").write_text(Path(f"{key}.pub").read_text())
    host_key = Path("/etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (folder / "known_hosts").write_text(f"{name} {host_key}")
    try:
        yield
    finally:
        sh("systemctl stop ssh")


@contextlib.contextmanager
def directory() -> Iterator[Bed]:
    """A file system on disk 3."""
    with _file_system("/mnt/dir") as place:
        yield Bed(f"dir: {STORAGE}\n\tpath {place}\n\tis_mountpoint 1\n", foreign_file(place), thin=True)


@contextlib.contextmanager
def btrfs() -> Iterator[Bed]:
    """A btrfs with quotas on disk 4."""
    with _file_system("/mnt/btrfs", "mkfs.btrfs -q -f", 4) as place:
        sh(f"btrfs quota enable {place}")
        section = f"btrfs: {STORAGE}\n\tpath {place}\n\tis_mountpoint yes\n"
        yield Bed(section, foreign_file(place), thin=True, independent_clones=True)


@contextlib.contextmanager
def _file_system(place: str, make: str = "mkfs.xfs -q -f", number: int = 3) -> Iterator[str]:
    device = disk(number)
    sh(f"{make} {device}; mkdir -p {place}; mount {device} {place}")
    try:
        yield place
    finally:
        sh(f"umount {place}")


def foreign_file(place: str) -> Callable[[], tuple[str, Callable[[], bool]]]:
    def foreign() -> tuple[str, Callable[[], bool]]:
        path = Path(place, "images/100/notes.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("foreign")
        return "100/notes.txt", lambda: path.read_text() == "foreign"

    return foreign


# Servers of files. The kernel's NFS server and Samba run already; each bed exports a file system on a disk.

EXPORT, SHARE = "/srv/nfs", "/srv/smb"
SMB_USER, SMB_PASSWORD = "pve", "s3cret, pass=word"
SMB_CONF = f"""\
[global]
server role = standalone server
map to guest = bad user
load printers = no
disable spoolss = yes
[data]
path = {SHARE}
writable = yes
guest ok = no
[open]
path = {SHARE}/open
writable = yes
guest ok = yes
"""


@contextlib.contextmanager
def nfs_server() -> Iterator[str]:
    """An export for this host's own address; gives its folder."""
    with _file_system(EXPORT) as place:
        sh(f"systemctl start nfs-server; exportfs -i -o rw,no_root_squash,no_subtree_check 127.0.0.1:{place}")
        try:
            yield place
        finally:
            unmount_from("127.0.0.1:")
            sh(f"exportfs -u 127.0.0.1:{place}; exportfs -f", check=False)


@contextlib.contextmanager
def smb_server() -> Iterator[str]:
    """A share for a user with a password, and one for everybody; gives the folder of the first."""
    with _file_system(SHARE, number=4) as place:
        Path("/etc/samba/smb.conf").write_text(SMB_CONF)
        sh(
            f"id {SMB_USER} || useradd -M {SMB_USER}\n"
            f"mkdir {place}/open; chmod 777 {place}/open; chown {SMB_USER} {place}"
        )
        sh(f"printf '%s\n%s\n' '{SMB_PASSWORD}' '{SMB_PASSWORD}' | smbpasswd -s -a {SMB_USER}")
        sh("systemctl restart smbd")
        answers(servers.smb)
        try:
            yield place
        finally:
            unmount_from("//127.0.0.1/")
            sh("systemctl stop smbd")


def answers(check: Callable[[str], None], within: float = 30) -> None:
    """Wait until a server of this host answers."""
    deadline = time.monotonic() + within
    while True:
        try:
            return check("127.0.0.1")
        except PveError:
            assert time.monotonic() < deadline, f"no answer within {within} s"
            time.sleep(0.1)


def unmount_from(source: str) -> None:
    """Let go of all mounts whose source begins so."""
    for mount in mounts.every():
        if mount.source.startswith(source):
            sh(f"umount -fl '{mount.point}'", check=False)


@contextlib.contextmanager
def _nfs(version: str) -> Iterator[Bed]:
    with nfs_server() as place:
        section = f"nfs: {STORAGE}\n\tserver 127.0.0.1\n\texport {place}\n\toptions vers={version}\n"
        yield Bed(section, foreign_file(place), thin=True)


@contextlib.contextmanager
def cifs() -> Iterator[Bed]:
    """A Samba share."""
    with smb_server() as place:
        secrets.write(STORAGE, "cifs", {"password": SMB_PASSWORD})
        section = f"cifs: {STORAGE}\n\tserver 127.0.0.1\n\tshare data\n\tusername {SMB_USER}\n\tsmbversion 3\n"
        foreign = foreign_file(place)

        def of_user() -> tuple[str, Callable[[], bool]]:
            made = foreign()
            sh(f"chown -R {SMB_USER} {place}/images")
            return made

        yield Bed(section, of_user, thin=True)


def krbd() -> contextlib.AbstractContextManager[Bed]:
    """Images of Ceph that the kernel maps."""
    from tests.real.storage_vm import cephs

    return cephs.krbd()


# A bed comes into the next two tables together with its backend's row in the registry.
BEDS: dict[str, Callable[[], contextlib.AbstractContextManager[Bed]]] = {
    "btrfs": btrfs,
    "cifs": cifs,
    "dir": directory,
    "lvm": lambda: _volume_group("vgdata", 0),
    "lvmchain": lambda: _volume_group("vgchain", 6, "\tsnapshot-as-volume-chain 1\n"),
    "lvmthin": lvmthin,
    "nfs3": lambda: _nfs("3"),
    "nfs4": lambda: _nfs("4.2"),
    "rbd": krbd,
    "zfs": zfs,
    "zfspool": zfspool,
}
# What the contract is tried with: a bed and an image format. Directories, btrfs and Ceph have their turn on the host,
# which is faster; what more than one case would prove of the same code is in one of them only.
CASES = [
    ("cifs", "qcow2"), ("lvm", "raw"), ("lvmchain", "qcow2"), ("lvmthin", "raw"), ("nfs3", "qcow2"), ("nfs4", "raw"),
    ("nfs4", "subvol"), ("zfs", "raw"), ("zfspool", "raw"), ("zfspool", "subvol"),
]  # fmt: skip
