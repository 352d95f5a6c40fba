"""The disks of the node, and what storages need on them: volume groups, thin pools, ZFS pools, directories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvetools.api.common import NodeParams
from pvetools.api.tree import method
from pvetools.schema import formats
from pvetools.schema.core import PropertyString, field, nested
from pvetools.schema.kinds import boolean, choice, integer, listing, string

if TYPE_CHECKING:
    from pvetools.storage.disks.list import Block
    from pvetools.storage.disks.smart import Report

_ROOT = "/nodes/{node}/disks"
_AUDIT, _MODIFY = ("/", "Sys.Audit"), ("/", "Sys.Modify")
_TEXT, _FLAG = {"type": "string"}, {"type": "boolean"}
_MAYBE_TEXT = {"type": "string", "optional": 1}
_BYTES = {"type": "integer", "renderer": "bytes"}
_disk = string(r"/dev/[a-zA-Z0-9/]+", complete="file")
_uuid = string(r"[a-fA-F0-9-]+", max_length=36)


def _rows(properties: dict[str, Any], link: str = "") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": {"type": "object", "properties": properties}}
    return {**schema, "links": [{"rel": "child", "href": f"{{{link}}}"}]} if link else schema


# Disks.


class ListParams(NodeParams):
    """Parameters of ``GET /nodes/{node}/disks/list``."""

    include_partitions: bool = field(
        boolean, "List the partitions of the disks too.", name="include-partitions", default=False
    )
    skipsmart: bool = field(boolean, "Don't ask the disks for their health, which takes a while.", default=False)
    type: str | None = field(choice("unused", "journal_disks"), "List only disks that are free for this.")


_DISK = {
    "devpath": _TEXT, "size": _BYTES, "type": _TEXT, "gpt": _FLAG, "mounted": _FLAG, "osdid": {"type": "integer"},
    "osdid-list": {"type": "array", "items": {"type": "integer"}},
    **dict.fromkeys(("used", "health", "model", "serial", "vendor", "wwn", "parent"), _MAYBE_TEXT),
}  # fmt: skip


@method("GET", f"{_ROOT}/list", ListParams, permission=_AUDIT, returns=_rows(_DISK))
def disk_list(p: ListParams) -> list[dict[str, Any]]:
    """List the disks of the node, what they are used for, and their health."""
    from pvetools.storage.disks import facts
    from pvetools.storage.disks import list as disks

    known = facts.collect()
    reports = {} if p.skipsmart else _reports(known.blocks)
    found = disks.rows(known, lambda block, _: reports.get(block.name), partitions=p.include_partitions)
    wanted = disks.FILTERS[p.type or ""]
    return [found[name] for name in sorted(found) if wanted(found[name])]


def _reports(blocks: tuple[Block, ...]) -> dict[str, Report]:
    """What the disks say about their health; they are asked at once. Those that say nothing are left out."""
    from concurrent.futures import ThreadPoolExecutor

    from pvetools.storage.disks import list as disks
    from pvetools.storage.disks import smart
    from pvetools.system.errors import PveError

    def ask(block: Block) -> tuple[str, Report] | None:
        from pathlib import Path

        type_, _ = disks.kind(block)
        try:
            return block.name, smart.read(Path(block.path), health_only=type_ not in disks.SOLID)
        except PveError:
            return None

    with ThreadPoolExecutor(8) as pool:
        return dict(filter(None, pool.map(ask, blocks)))


class DiskParams(NodeParams):
    """Methods for one disk."""

    disk: str = field(_disk, "Device node of the disk, such as /dev/sdb.", required=True)


class SmartParams(DiskParams):
    """Parameters of ``GET /nodes/{node}/disks/smart``."""

    healthonly: bool = field(boolean, "Show only whether the disk thinks that it is healthy.", default=False)


_SMART = {
    "health": _TEXT, "type": _MAYBE_TEXT, "text": _MAYBE_TEXT, "attributes": {"type": "array", "optional": 1},
}  # fmt: skip


@method("GET", f"{_ROOT}/smart", SmartParams, permission=_AUDIT, returns={"type": "object", "properties": _SMART})
def smart_values(p: SmartParams) -> dict[str, Any]:
    """Show what a disk says about its health."""
    from pvetools.storage.disks import checks, smart

    found = checks.find(p.disk)
    data = smart.read(found.path, health_only=p.healthonly).as_data()
    return {"health": data["health"]} if p.healthonly else data


class InitParams(DiskParams):
    """Parameters of ``POST /nodes/{node}/disks/initgpt``."""

    uuid: str = field(_uuid, "UUID for the partition table.", default="", note="a random one")


@method("POST", f"{_ROOT}/initgpt", InitParams, permission=_MODIFY, task="diskinit", task_id="disk")
def init_gpt(p: InitParams) -> None:
    """Give an empty disk a partition table (GPT)."""
    from pvetools.storage.disks import table

    table.init(p.disk, p.uuid)


@method("PUT", f"{_ROOT}/wipedisk", DiskParams, task="wipedisk", task_id="disk")
def wipe_disk(p: DiskParams) -> None:
    """Wipe a disk or partition that nobody uses: what is on it is lost."""
    from pvetools.storage.disks import wipe

    wipe.wipe(p.disk)


# What storages need.


class NewParams(NodeParams):
    """Things that are made of disks."""

    name: str = field(formats.storage_id, "Name, also of the storage.", required=True)
    add_storage: bool = field(boolean, "Define a storage of this name that lies on it.", default=False)


class DeviceParams(NewParams):
    """Things that are made of one disk."""

    device: str = field(formats.device_path, "Disk or partition to use; it has to be empty.", required=True)


class RemoveParams(NodeParams):
    """Removal of things that are made of disks."""

    name: str = field(formats.storage_id, "Name.", required=True)
    cleanup_config: bool = field(
        boolean, "Remove the storages of this node that lie on it, too.", name="cleanup-config", default=False
    )
    cleanup_disks: bool = field(
        boolean, "Wipe its disks, too, so that they can be used for other things.", name="cleanup-disks", default=False
    )


_PHYSICAL = {"name": _TEXT, "size": _BYTES, "free": _BYTES, "leaf": _FLAG}
_GROUP = {**_PHYSICAL, "children": {**_rows(_PHYSICAL), "optional": 1}}


@method("GET", f"{_ROOT}/lvm", NodeParams, permission=_AUDIT,
        returns={"type": "object", "properties": {"leaf": _FLAG, "children": _rows(_GROUP)}})  # fmt: skip
def group_list(p: NodeParams) -> dict[str, Any]:
    """Show the LVM volume groups with the devices that they lie on."""
    from pvetools.storage.disks import groups

    return groups.tree()


@method("POST", f"{_ROOT}/lvm", DeviceParams, permission=_MODIFY, task="lvmcreate", task_id="name")
def group_create(p: DeviceParams) -> None:
    """Make an LVM volume group on an empty disk."""
    from pvetools.storage.disks import groups

    groups.create(p.name, p.device, add_storage=p.add_storage)


@method("DELETE", f"{_ROOT}/lvm/{{name}}", RemoveParams, permission=_MODIFY, task="lvmremove", task_id="name")
def group_delete(p: RemoveParams) -> None:
    """Remove an LVM volume group with all its volumes."""
    from pvetools.storage.disks import groups

    groups.destroy(p.name, config=p.cleanup_config, disks=p.cleanup_disks)


_THIN = {
    "lv": _TEXT, "vg": _TEXT, "lv_size": _BYTES, "used": _BYTES, "metadata_size": _BYTES, "metadata_used": _BYTES,
}  # fmt: skip


@method("GET", f"{_ROOT}/lvmthin", NodeParams, permission=_AUDIT, returns=_rows(_THIN))
def thin_list(p: NodeParams) -> list[dict[str, Any]]:
    """List the LVM thin pools."""
    from pvetools.storage.disks import groups

    return groups.thin_pools()


@method("POST", f"{_ROOT}/lvmthin", DeviceParams, permission=_MODIFY, task="lvmthincreate", task_id="name")
def thin_create(p: DeviceParams) -> None:
    """Make an LVM thin pool, with a volume group for it, on an empty disk."""
    from pvetools.storage.disks import groups

    groups.create_thin(p.name, p.device, add_storage=p.add_storage)


class ThinRemoveParams(RemoveParams):
    """Parameters of ``DELETE /nodes/{node}/disks/lvmthin/{name}``."""

    volume_group: str = field(formats.storage_id, "Volume group that it lies in.", name="volume-group", required=True)


@method("DELETE", f"{_ROOT}/lvmthin/{{name}}", ThinRemoveParams, permission=_MODIFY, task="lvmthinremove",
        task_id="name")  # fmt: skip
def thin_delete(p: ThinRemoveParams) -> None:
    """Remove an LVM thin pool with all its volumes."""
    from pvetools.storage.disks import groups

    groups.destroy_thin(p.volume_group, p.name, config=p.cleanup_config, disks=p.cleanup_disks)


_POOL = {
    "name": _TEXT, "size": _BYTES, "alloc": _BYTES, "free": _BYTES, "frag": {"type": "integer"},
    "dedup": {"type": "number"}, "health": _TEXT,
}  # fmt: skip
_STATE = {
    **dict.fromkeys(("name", "state", "errors"), _TEXT), **dict.fromkeys(("status", "action", "scan"), _MAYBE_TEXT),
}  # fmt: skip
_VDEV = {
    "name": _TEXT, "state": _MAYBE_TEXT, "msg": _TEXT,
    **{key: {"type": "number", "optional": 1} for key in ("read", "write", "cksum")},
}  # fmt: skip


class DraidConfig(PropertyString):
    """How distributed RAID is laid out."""

    data: int = field(integer(1), "Data disks in a redundancy group.", required=True)
    spares: int = field(integer(0), "Distributed spare disks.", required=True)


class PoolParams(NewParams):
    """Parameters of ``POST /nodes/{node}/disks/zfs``."""

    devices: list[str] = field(
        listing(formats.device_path), "Disks or partitions to use; they have to be empty.", required=True
    )
    raidlevel: str = field(
        choice("single", "mirror", "raid10", "raidz", "raidz2", "raidz3", "draid", "draid2", "draid3"),
        "How data are spread over the disks.", required=True,
    )  # fmt: skip
    ashift: int = field(integer(9, 16), "Size of the pool's sectors, as a power of two.", default=12)
    compression: str = field(
        choice("on", "off", "gzip", "lz4", "lzjb", "zle", "zstd"), "How data are compressed.", default="on"
    )
    draid_config: DraidConfig | None = field(
        nested(DraidConfig), "Layout of distributed RAID.", name="draid-config", note="as ZFS chooses"
    )


@method("GET", f"{_ROOT}/zfs", NodeParams, permission=_AUDIT, returns=_rows(_POOL, "name"))
def pool_list(p: NodeParams) -> list[dict[str, Any]]:
    """List the ZFS pools."""
    from pvetools.storage.disks import pools

    return pools.every()


class PoolName(NodeParams):
    """Parameters of ``GET /nodes/{node}/disks/zfs/{name}``."""

    name: str = field(formats.storage_id, "Name of the pool.", required=True)


@method("GET", f"{_ROOT}/zfs/{{name}}", PoolName, permission=_AUDIT,
        returns={"type": "object", "properties": {**_STATE, "children": _rows(_VDEV)}})  # fmt: skip
def pool_detail(p: PoolName) -> dict[str, Any]:
    """Show the state of a ZFS pool and of its disks."""
    from pvetools.storage.disks import pools

    return pools.detail(p.name)


@method("POST", f"{_ROOT}/zfs", PoolParams, permission=_MODIFY, task="zfscreate", task_id="name")
def pool_create(p: PoolParams) -> None:
    """Make a ZFS pool of empty disks."""
    from pvetools.storage.disks import pools

    draid = pools.Draid(p.draid_config.data, p.draid_config.spares) if p.draid_config else None
    pools.create(
        p.name, p.devices, p.raidlevel, ashift=p.ashift, compression=p.compression, draid=draid,
        add_storage=p.add_storage,
    )  # fmt: skip


@method("DELETE", f"{_ROOT}/zfs/{{name}}", RemoveParams, permission=_MODIFY, task="zfsremove", task_id="name")
def pool_delete(p: RemoveParams) -> None:
    """Destroy a ZFS pool with everything in it."""
    from pvetools.storage.disks import pools

    pools.destroy(p.name, config=p.cleanup_config, disks=p.cleanup_disks)


class DirectoryParams(DeviceParams):
    """Parameters of ``POST /nodes/{node}/disks/directory``."""

    filesystem: str = field(choice("ext4", "xfs"), "Type of the file system.", default="ext4")


_DIRECTORY = {key: _TEXT for key in ("unitfile", "path", "device", "type", "options")}


@method("GET", f"{_ROOT}/directory", NodeParams, permission=_AUDIT, returns=_rows(_DIRECTORY))
def directory_list(p: NodeParams) -> list[dict[str, Any]]:
    """List the file systems that are mounted below /mnt/pve by systemd."""
    from pvetools.storage.disks import directory

    return list(directory.every())


@method("POST", f"{_ROOT}/directory", DirectoryParams, permission=_MODIFY, task="dircreate", task_id="name")
def directory_create(p: DirectoryParams) -> None:
    """Make a file system on an empty disk and mount it at /mnt/pve/NAME, now and at boot."""
    from pvetools.storage.disks import directory

    directory.create(p.name, p.device, p.filesystem, add_storage=p.add_storage)


@method("DELETE", f"{_ROOT}/directory/{{name}}", RemoveParams, permission=_MODIFY, task="dirremove", task_id="name")
def directory_delete(p: RemoveParams) -> None:
    """Unmount the file system at /mnt/pve/NAME and mount it no more at boot; its files stay on the disk."""
    from pvetools.storage.disks import directory

    directory.remove(p.name, config=p.cleanup_config, disks=p.cleanup_disks)
