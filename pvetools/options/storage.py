"""Options of storage definitions: the properties of ``/etc/pve/storage.cfg`` and which type has which of them."""

from __future__ import annotations

from typing import NamedTuple

from pvetools.options import thirdparty
from pvetools.options.backup import PruneBackups
from pvetools.schema import formats
from pvetools.schema.core import Field, Kind, PropertyString, Record, field, nested
from pvetools.schema.kinds import boolean, choice, integer, listing, number, string


class BandwidthLimits(PropertyString):
    """Value of ``bwlimit``: limits in KiB per second by operation; 0 is unlimited."""

    default: float | None = field(number(0), "Limit for all operations without one of their own.")
    clone: float | None = field(number(0), "Limit for cloning disks.")
    migration: float | None = field(number(0), "Limit for migrating guests.")
    move: float | None = field(number(0), "Limit for moving disks.")
    restore: float | None = field(number(0), "Limit for restoring guests.")


BUILT_IN = (
    "btrfs", "cephfs", "cifs", "dir", "esxi", "iscsi", "iscsidirect", "lvm", "lvmthin", "nfs", "nvmeof", "pbs", "rbd",
    "zfs", "zfspool",
)  # fmt: skip


def _parse_type(text: str) -> str:
    if text not in BUILT_IN and not thirdparty.kind(text):
        raise ValueError(f"value '{text}' does not have a value in the enumeration '{', '.join(BUILT_IN)}'")
    return text


storage_type = Kind(_parse_type, json={"type": "string", "enum": list(BUILT_IN)})


class StorageOptions(Record):
    """All properties that a storage may have; ``TYPES`` says which type has which."""

    @classmethod
    def find(cls, key: str) -> tuple[Field, int | None] | None:
        found = super().find(key)
        if found is None and (row := thirdparty.own_field(key)):
            return row, None
        return found

    # Of every storage.
    storage: str = field(formats.storage_id, "Name of the storage.", required=True)
    type: str = field(storage_type, "Type of the storage.", required=True)
    content: list[str] | None = field(
        listing(formats.content_type), "What it may hold, separated by commas.", note="depends on the type"
    )
    nodes: list[str] | None = field(listing(formats.node), "Nodes on which it exists.", note="all")
    disable: bool | None = field(boolean, "Do not use it.")
    shared: bool | None = field(boolean, "Declare that it is the same on all nodes.")
    bwlimit: BandwidthLimits | None = field(
        nested(BandwidthLimits), "Limits for reading and writing in KiB per second, by operation."
    )
    format_: str | None = field(
        choice("raw", "qcow2", "subvol", "vmdk"), "Image format when none is asked for.", note="depends on the type"
    )
    prune_backups: PruneBackups | None = field(
        nested(PruneBackups, form="prune-backups"), "Which backups are kept.", name="prune-backups"
    )
    max_protected_backups: int | None = field(
        integer(-1),
        "Protected backups each guest may have; -1 is unlimited.",
        name="max-protected-backups",
        note="unlimited for users with Datastore.Allocate, 5 for others",
    )

    # Of directories.
    path: str | None = field(
        formats.storage_path, "Directory of the storage.", note="/mnt/pve/STORAGE for storages of servers"
    )
    mkdir: bool = field(boolean, "Create the directories; use the next two options instead.", default=True)
    create_base_path: bool = field(
        boolean, "Create the directory when it is missing.", name="create-base-path", default=True
    )
    create_subdirs: bool = field(
        boolean, "Create the directories of the content types.", name="create-subdirs", default=True
    )
    content_dirs: dict[str, str] | None = field(
        formats.content_directories, "Other directories for content types: TYPE=DIRECTORY.", name="content-dirs"
    )
    is_mountpoint: str = field(
        string(), "Path that must be a mount point before the storage is used; yes stands for its own.", default="no"
    )
    preallocation: str = field(
        choice("off", "metadata", "falloc", "full"), "Space that new image files take at once.", default="metadata"
    )
    snapshot_as_volume_chain: bool = field(
        boolean, "Make snapshots as chains of volumes.", name="snapshot-as-volume-chain", default=False
    )
    nocow: bool = field(boolean, "Switch off copy on write for image files; checksums are lost.", default=False)

    # Of servers.
    server: str | None = field(formats.server, "Name or address of the server.")
    port: int | None = field(integer(1, 65535), "Port of the server.", note="depends on the type")
    export: str | None = field(formats.storage_path, "NFS export.")
    share: str | None = field(string(), "CIFS share.")
    subdir: str | None = field(formats.storage_path, "Directory on the server that is mounted.")
    domain: str | None = field(string(max_length=256), "CIFS domain.")
    smbversion: str = field(
        choice("default", "2.0", "2.1", "3", "3.0", "3.11"), "SMB protocol version.", default="default"
    )
    options: str | None = field(formats.mount_options, "Mount options, separated by commas.")
    username: str | None = field(string(), "User name at the server.")
    password: str | None = field(string(max_length=256), "Password; kept in a file of its own.")
    skip_cert_verification: bool = field(
        boolean, "Trust the server whatever its certificate.", name="skip-cert-verification", default=False
    )
    fingerprint: str | None = field(
        string(r"([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}"), "SHA-256 fingerprint of the server's certificate."
    )

    # Of backup servers.
    datastore: str | None = field(string(), "Datastore on the backup server.")
    namespace: str | None = field(string(), "Namespace in the datastore or pool.")
    encryption_key: str | None = field(
        string(), "Key that backups are encrypted with; autogen makes one.", name="encryption-key"
    )
    master_pubkey: str | None = field(
        string(), "Public RSA key with which the encryption key is saved, Base64-encoded.", name="master-pubkey"
    )

    # Of volume groups.
    vgname: str | None = field(formats.volume_group, "Volume group.")
    thinpool: str | None = field(formats.volume_group, "Thin pool in the volume group.")
    base: str | None = field(formats.volume_id, "Volume that the volume group lies on.")
    tagged_only: bool | None = field(boolean, "Use only volumes with the tag pve-vm-ID.")
    saferemove: bool | None = field(boolean, "Overwrite volumes with zeros when they are removed.")
    saferemove_throughput: str | None = field(
        formats.transfer_rate, "Limit for overwriting in bytes per second, such as 10485760 or 10M."
    )
    saferemove_stepsize: int = field(
        formats.integer_choice(1, 2, 4, 8, 16, 32),
        "MiB that are overwritten at a time.",
        name="saferemove-stepsize",
        default=32,
    )

    # Of ZFS and iSCSI.
    pool: str | None = field(string(), "Pool.")
    blocksize: str | None = field(formats.block_size, "Block size of new volumes, such as 16k.")
    sparse: bool | None = field(boolean, "Allocate volumes thinly.")
    mountpoint: str | None = field(formats.storage_path, "Where the pool is mounted.")
    portal: str | None = field(formats.portal, "Address of the iSCSI or NVMe/TCP portal, with an optional port.")
    target: str | None = field(string(), "iSCSI target, or NQN of the NVMe subsystem.")
    iscsiprovider: str | None = field(string(), "Kind of iSCSI target: comstar, istgt, iet or LIO.")
    comstar_hg: str | None = field(string(), "COMSTAR host group of the views.")
    comstar_tg: str | None = field(string(), "COMSTAR target group of the views.")
    lio_tpg: str | None = field(string(), "Target portal group of LIO.")
    nowritecache: bool | None = field(boolean, "Switch off the write cache of the target.")
    zfs_base_path: str | None = field(
        formats.storage_path, "Directory of the server that holds its block devices.", name="zfs-base-path"
    )

    # Of Ceph.
    monhost: list[str] | None = field(listing(formats.portal, " "), "Addresses of the monitors.")
    authsupported: str | None = field(string(), "Kept for old configurations; has no effect.")
    keyring: str | None = field(string(), "Keyring for the cluster; kept in a file of its own.")
    krbd: bool = field(boolean, "Use the kernel's driver also for virtual machines.", default=False)
    data_pool: str | None = field(string(), "Pool for the data of erasure-coded images.", name="data-pool")
    fs_name: str | None = field(formats.config_id, "Name of the file system.", name="fs-name")
    fuse: bool | None = field(boolean, "Mount with FUSE in place of the kernel's driver.")


class StorageType(NamedTuple):
    """What one type of storage can take."""

    options: frozenset[str]
    required: frozenset[str]
    fixed: frozenset[str]
    content: frozenset[str]
    default_content: frozenset[str]
    formats: frozenset[str]
    default_format: str
    sensitive: frozenset[str]
    select_existing: bool
    chained_format: str = "raw"
    shared: bool = False


def _type(
    *,
    content: str,
    default: str,
    required: str = "",
    optional: str = "",
    fixed: str = "",
    formats: str = "raw",
    chained: str = "raw",
    sensitive: str = "",
    select_existing: bool = False,
    shared: bool = False,
) -> StorageType:
    """One row of ``TYPES``; names are separated by blanks.

    Args:
        content: content types it may hold; default: those it holds when ``content`` is not set.
        required: options without which it cannot be defined.
        optional: further options, besides content, disable and nodes.
        fixed: options that cannot be changed later.
        formats: image formats; raw is the default everywhere.
        chained: the default of storages with ``snapshot-as-volume-chain``.
        sensitive: options that are kept in files of their own instead of ``storage.cfg``.
        select_existing: volumes are chosen from what is there, none can be allocated.
        shared: it lies on a server, so that it is the same on all nodes.
    """
    return StorageType(
        options=frozenset(f"content disable nodes {required} {optional}".split()),
        required=frozenset(required.split()),
        fixed=frozenset(fixed.split()),
        content=frozenset(content.split()),
        default_content=frozenset(default.split()),
        formats=frozenset(formats.split()),
        default_format="raw",
        sensitive=frozenset(sensitive.split()),
        select_existing=select_existing,
        chained_format=chained,
        shared=shared,
    )


_FILES = "backup images import iso rootdir snippets vztmpl"
_FILE_OPTIONS = "create-base-path create-subdirs format max-protected-backups mkdir prune-backups"

TYPES = {
    "btrfs": _type(
        content=f"{_FILES} none",
        default="images rootdir",
        required="path",
        optional=f"{_FILE_OPTIONS} is_mountpoint nocow preallocation shared",
        fixed="path",
        formats="raw subvol",
    ),
    "cephfs": _type(
        content="backup import iso snippets vztmpl",
        default="backup",
        optional=f"{_FILE_OPTIONS} bwlimit content-dirs fs-name path fuse keyring monhost options subdir username",
        fixed="path",
        sensitive="keyring",
        shared=True,
    ),
    "cifs": _type(
        content=_FILES,
        default="images",
        required="server share",
        optional=f"{_FILE_OPTIONS} bwlimit content-dirs domain options password path preallocation smbversion"
        " snapshot-as-volume-chain subdir username",
        fixed="path server share snapshot-as-volume-chain",
        formats="qcow2 raw vmdk",
        sensitive="password",
        shared=True,
    ),
    "dir": _type(
        content=f"{_FILES} none",
        default="images rootdir",
        required="path",
        optional=f"{_FILE_OPTIONS} bwlimit content-dirs is_mountpoint preallocation shared snapshot-as-volume-chain",
        fixed="path snapshot-as-volume-chain",
        formats="qcow2 raw subvol vmdk",
    ),
    "esxi": _type(
        content="import",
        default="import",
        required="server username",
        optional="password port shared skip-cert-verification",
        formats="qcow2 raw vmdk",
        sensitive="password",
    ),
    "iscsi": _type(
        content="images none",
        default="images",
        required="portal target",
        optional="bwlimit",
        fixed="portal target",
        select_existing=True,
        shared=True,
    ),
    "iscsidirect": _type(
        content="images none",
        default="images",
        required="portal target",
        optional="bwlimit password username",
        fixed="portal target",
        sensitive="password",
        select_existing=True,
        shared=True,
    ),
    "lvm": _type(
        content="images rootdir",
        default="images",
        required="vgname",
        optional="base bwlimit saferemove saferemove-stepsize saferemove_throughput shared snapshot-as-volume-chain"
        " tagged_only",
        fixed="base vgname",
        formats="qcow2 raw",
        chained="qcow2",
    ),
    "lvmthin": _type(
        content="images rootdir",
        default="images rootdir",
        required="thinpool vgname",
        optional="bwlimit",
        fixed="thinpool vgname",
    ),
    "nfs": _type(
        content=_FILES,
        default="images",
        required="export server",
        optional=f"{_FILE_OPTIONS} bwlimit content-dirs options path preallocation snapshot-as-volume-chain",
        fixed="export path server snapshot-as-volume-chain",
        formats="qcow2 raw vmdk",
        shared=True,
    ),
    "nvmeof": _type(
        content="images none",
        default="images",
        required="portal target",
        optional="bwlimit",
        fixed="portal target",
        select_existing=True,
        shared=True,
    ),
    "pbs": _type(
        content="backup none",
        default="backup",
        required="datastore server",
        optional="encryption-key fingerprint master-pubkey max-protected-backups namespace password port prune-backups"
        " username",
        fixed="datastore server",
        sensitive="encryption-key master-pubkey password",
        shared=True,
    ),
    "rbd": _type(
        content="images rootdir",
        default="images",
        optional="bwlimit data-pool keyring krbd monhost namespace pool username",
        sensitive="keyring",
        shared=True,
    ),
    "zfs": _type(
        content="images",
        default="images",
        required="blocksize iscsiprovider pool portal target",
        optional="bwlimit comstar_hg comstar_tg lio_tpg nowritecache sparse zfs-base-path",
        fixed="blocksize iscsiprovider pool portal target",
        shared=True,
    ),
    "zfspool": _type(
        content="images rootdir",
        default="images rootdir",
        required="pool",
        optional="blocksize bwlimit mountpoint sparse",
        fixed="pool",
        formats="raw subvol",
    ),
}


def kind_of(type_: str) -> StorageType | None:
    """What storages of a type can take; None for an unknown type."""
    return TYPES.get(type_) or thirdparty.kind(type_)
