"""Storages and their content."""

from __future__ import annotations

from typing import Any

from pvetools.api.common import DigestParam, NodeParams
from pvetools.api.tree import NULL, method
from pvetools.options.storage import StorageOptions, storage_type
from pvetools.schema import formats
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, choice, integer, listing, string

_ALLOCATE = ("/storage", "Datastore.Allocate")
_AUDIT = ("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace")
_BYTES = {"type": "integer", "optional": 1, "renderer": "bytes"}
_FLAG = {"type": "boolean", "optional": 1}
_STATUS = {
    "type": {"type": "string"},
    "content": {"type": "string", "format": "pve-storage-content-list"},
    **dict.fromkeys(("active", "enabled", "shared"), _FLAG),
    **dict.fromkeys(("total", "used", "avail"), _BYTES),
}
_LISTED = {
    "storage": {"type": "string", "format": "pve-storage-id"},
    **_STATUS,
    "used_fraction": {"type": "number", "optional": 1, "renderer": "fraction_as_percentage"},
    "formats": {"type": "object", "optional": 1, "properties": {
        "supported": {"type": "array", "items": {"type": "string"}}, "default": {"type": "string"}}},
    "select_existing": _FLAG,
}  # fmt: skip
_DEFINED = {"type": "object", "properties": {"storage": {"type": "string"}, "type": {"type": "string"}}}
_VOLUME = {
    "volid": {"type": "string"},
    "format": {"type": "string"},
    "size": {"type": "integer", "renderer": "bytes"},
    "used": _BYTES,
    "vmid": {"type": "integer", "optional": 1},
    "ctime": {"type": "integer", "optional": 1, "renderer": "timestamp"},
    "parent": {"type": "string", "optional": 1},
    "notes": {"type": "string", "optional": 1},
    "protected": _FLAG,
}
_DETAILS = {
    "path": {"type": "string"},
    **{key: _VOLUME[key] for key in ("size", "format", "notes", "protected")},
    "used": {"type": "integer", "renderer": "bytes"},
}

# Definitions.


class ListParams(Record):
    """Parameters of ``GET /storage``."""

    type: str | None = field(storage_type, "Show only storages of this type.")


class StorageName(Record):
    """Methods below ``/storage/{storage}``."""

    storage: str = field(formats.storage_id, "Name of the storage.", required=True)


def _defined(name: str) -> dict[str, Any]:
    from pvetools.storage import definition

    return definition.get(name).as_data()


@method("GET", "/storage", ListParams, permission=("user",), returns={"type": "array",
        "items": {"type": "object", "properties": {"storage": {"type": "string"}}},
        "links": [{"rel": "child", "href": "{storage}"}]})  # fmt: skip
def index(p: ListParams) -> list[dict[str, Any]]:
    """List the storages that are defined."""
    from pvetools.storage import definition, volumes

    digest = definition.load().digest
    found = volumes.storages().values()
    return [{**row.as_data(), "digest": digest} for row in found if p.type in (None, row.type)]


@method(
    "GET",
    "/storage/{storage}",
    StorageName,
    permission=("/storage/{storage}", "Datastore.Allocate"),
    returns={"type": "object"},
)
def read(p: StorageName) -> dict[str, Any]:
    """Show the definition of a storage."""
    from pvetools.storage import definition

    digest = definition.load().digest  # first: with data that is newer than that, a change is refused, not lost
    return {**_defined(p.storage), "digest": digest}


@method("POST", "/storage", StorageOptions, permission=_ALLOCATE, returns=_DEFINED)
def create(p: StorageOptions) -> dict[str, str]:
    """Define a storage."""
    from pvetools.storage import defining

    raw = {key: text for key, text in p.texts().items() if key not in ("storage", "type")}
    defining.add(p.storage, p.type, raw)
    return {"storage": p.storage, "type": p.type}


class UpdateParams(StorageOptions, DigestParam):
    """Parameters of ``PUT /storage/{storage}``."""

    WITHOUT = frozenset({"type"})
    delete: list[str] | None = field(listing(formats.config_id), "Options to delete, separated by commas.")


@method("PUT", "/storage/{storage}", UpdateParams, permission=_ALLOCATE, returns=_DEFINED)
def update(p: UpdateParams) -> dict[str, str]:
    """Change the definition of a storage."""
    from pvetools.storage import defining

    raw = {key: text for key, text in p.texts().items() if key not in ("storage", "delete", "digest")}
    changed = defining.update(p.storage, raw, p.delete or (), p.digest)
    return {"storage": changed.id, "type": changed.type}


@method("DELETE", "/storage/{storage}", StorageName, permission=_ALLOCATE, returns=NULL)
def delete(p: StorageName) -> None:
    """Delete the definition of a storage; its data stays."""
    from pvetools.storage import defining

    defining.remove(p.storage)


# State on this node.


class StatusParams(NodeParams):
    """Parameters of ``GET /nodes/{node}/storage``."""

    storage: str | None = field(formats.storage_id, "Show only this storage.")
    content: list[str] | None = field(
        listing(formats.content_type), "Show only enabled storages that may hold one of these content types."
    )
    enabled: bool = field(boolean, "Show only enabled storages.", default=False)
    target: str | None = field(
        formats.node, "Show only enabled storages that this other node shares with this one.", note="this node"
    )
    format_: bool = field(boolean, "Show also which image formats are possible.", default=False)


class NodeStorageParams(NodeParams, StorageName):
    """Methods below ``/nodes/{node}/storage/{storage}``."""


def _row(row: Any) -> dict[str, Any]:
    found, space = row.definition, row.space
    return {
        "type": found.type,
        "content": found.content_text,
        "active": int(row.active),
        "enabled": int(row.enabled),
        "shared": int(found.shared),
        **{key: getattr(space, key) if space else 0 for key in ("total", "used", "avail")},
    }


def _share(row: Any) -> dict[str, Any]:
    return {"used_fraction": row.space.used / row.space.total} if row.space and row.space.total else {}


def _formats(row: Any) -> dict[str, Any]:
    kind = row.definition.kind
    return {
        "formats": {"supported": sorted(kind.formats), "default": row.definition.default_format},
        "select_existing": int(kind.select_existing),
    }


@method("GET", "/nodes/{node}/storage", StatusParams, permission=("user",),
        returns={"type": "array", "items": {"type": "object", "properties": _LISTED},
                 "links": [{"rel": "child", "href": "{storage}"}]})  # fmt: skip
def status_list(p: StatusParams) -> list[dict[str, Any]]:
    """Show the storages of the node and how full they are."""
    from pvetools.storage import volumes
    from pvetools.system import log, paths

    rows = []
    other = "" if p.target in (None, "localhost", paths.node()) else p.target
    for row in volumes.status(p.storage or "", p.content or (), enabled=p.enabled):
        if other and not (row.enabled and row.definition.shared and row.definition.on_node(other)):
            continue
        if row.enabled and not row.active:
            log.warn(row.reason)
        rows.append({"storage": row.definition.id, **_row(row), **_share(row), **(_formats(row) if p.format_ else {})})
    return rows


@method("GET", "/nodes/{node}/storage/{storage}/status", NodeStorageParams, permission=_AUDIT,
        returns={"type": "object", "properties": _STATUS})  # fmt: skip
def status(p: NodeStorageParams) -> dict[str, Any]:
    """Show how full a storage is."""
    from pvetools.storage import volumes

    return _row(volumes.status(p.storage)[0])


# History.


class HistoryParams(NodeStorageParams):
    """Parameters of ``GET /nodes/{node}/storage/{storage}/rrddata``."""

    timeframe: str = field(choice("hour", "day", "week", "month", "year"), "Time that is looked at.", required=True)
    cf: str | None = field(choice("AVERAGE", "MAX"), "How samples are consolidated.")


class GraphParams(HistoryParams):
    """Parameters of ``GET /nodes/{node}/storage/{storage}/rrd``."""

    ds: list[str] = field(listing(formats.config_id), "Figures to draw, separated by commas.", required=True)


@method("GET", "/nodes/{node}/storage/{storage}/rrddata", HistoryParams, permission=_AUDIT,
        returns={"type": "array", "items": {"type": "object", "properties": {}}})  # fmt: skip
def history(p: HistoryParams) -> list[dict[str, Any]]:
    """Show how full a storage was: one sample, of now, as long as nothing on the host records older ones."""
    import time

    from pvetools.storage import volumes

    space = volumes.status(p.storage)[0].space
    return [{"time": int(time.time()), "total": space.total, "used": space.used}] if space else []


@method("GET", "/nodes/{node}/storage/{storage}/rrd", GraphParams, permission=_AUDIT,
        returns={"type": "object", "properties": {"filename": {"type": "string"}}})  # fmt: skip
def graph(p: GraphParams) -> dict[str, str]:
    """Draw how full a storage was; refused, since there are no graphs yet."""
    from pvetools.system.errors import Refused

    _defined(p.storage)
    raise Refused(f"storage '{p.storage}': graphs are not drawn, its figures are at 'rrddata'")


# Single files of archives.


class FilesParams(NodeStorageParams):
    """Parameters of ``GET /nodes/{node}/storage/{storage}/file-restore/list``."""

    volume: str = field(string(), "Archive, or its name on the storage.", required=True)
    filepath: str = field(string(), "Path in the archive, or ``/``, encoded as base64.", required=True)


class FileParams(FilesParams):
    """Parameters of ``GET /nodes/{node}/storage/{storage}/file-restore/download``."""

    tar: bool = field(boolean, "Download directories as a tar archive instead of a zip file.", default=False)


def _only_of_backup_servers(storage: str) -> Exception:
    from pvetools.system.errors import Refused

    kind = _defined(storage)["type"]
    if kind == "pbs":
        return Refused(f"storage '{storage}': storages of type 'pbs' are not served yet")
    return Refused(f"storage '{storage}' is of type '{kind}', single files are restored from type 'pbs' only")


@method("GET", "/nodes/{node}/storage/{storage}/file-restore/list", FilesParams, permission=("user",),
        returns={"type": "array", "items": {"type": "object"}})  # fmt: skip
def list_files(p: FilesParams) -> list[dict[str, Any]]:
    """List the files of an archive; refused, as only archives on a Proxmox Backup Server allow it."""
    raise _only_of_backup_servers(p.storage)


@method("GET", "/nodes/{node}/storage/{storage}/file-restore/download", FileParams, permission=("user",))
def download_file(p: FileParams) -> None:
    """Get files of an archive; refused, as only archives on a Proxmox Backup Server allow it."""
    raise _only_of_backup_servers(p.storage)


# Volumes.


class ContentParams(NodeStorageParams):
    """Parameters of ``GET /nodes/{node}/storage/{storage}/content``."""

    content: str | None = field(formats.content_type, "Show only volumes of this content type.")
    vmid: int | None = field(
        formats.vmid, "Show only images and backups of this guest, and no ISO images or templates."
    )


@method("GET", "/nodes/{node}/storage/{storage}/content", ContentParams, permission=_AUDIT,
        returns={"type": "array", "items": {"type": "object", "properties": _VOLUME},
                 "links": [{"rel": "child", "href": "{volid}"}]})  # fmt: skip
def content(p: ContentParams) -> list[dict[str, Any]]:
    """List the volumes of a storage."""
    from pvetools.storage import volumes

    found = volumes.list_volumes(p.storage, [p.content] if p.content else (), p.vmid)
    return [volume.as_data() for volume in found]


class AllocParams(NodeStorageParams):
    """Parameters of ``POST /nodes/{node}/storage/{storage}/content``."""

    vmid: int = field(formats.vmid, "Guest that will own the volume.", required=True)
    filename: str = field(string(), "Name of the file; empty chooses the next free one.", required=True)
    size: str = field(string(r"\d{1,18}[MG]?"), "Size in KiB, or with the suffix M or G.", required=True)
    format_: str | None = field(
        choice("raw", "qcow2", "subvol", "vmdk"),
        "Image format.",
        requires="size",
        note="that of the file name or of the storage",
    )


@method("POST", "/nodes/{node}/storage/{storage}/content", AllocParams,
        permission=("/storage/{storage}", "Datastore.AllocateSpace"), returns={"type": "string"})  # fmt: skip
def alloc(p: AllocParams) -> str:
    """Make a new disk image."""
    from pvetools.storage import volumes
    from pvetools.system.units import KIB, parse_size

    size = int(p.size) * KIB if p.size.isdecimal() else parse_size(p.size)
    held = volumes.get(p.storage).content
    kind = "rootdir" if "rootdir" in held and "images" not in held else "images"
    return volumes.alloc(p.storage, p.vmid, size, format=p.format_ or "", name=p.filename, content=kind)


class VolumeParams(NodeParams):
    """Methods below ``/nodes/{node}/storage/{storage}/content/{volume}``."""

    storage: str | None = field(formats.storage_id, "Storage, where the volume is given without it.")
    volume: str = field(string(complete="volume"), "Volume: its id, or its name on the storage.", required=True)


def _volid(p: VolumeParams) -> str:
    """The volume id; one that names another storage than the path does is refused."""
    from pvetools.storage import names
    from pvetools.system.errors import ParamErrors

    if ":" not in p.volume:
        if not p.storage:
            raise ParamErrors({"storage": "is needed when the volume is given without its storage"})
        return f"{p.storage}:{p.volume}"
    storage, _ = names.split(p.volume)
    if p.storage not in (None, storage):
        raise ParamErrors({"storage": f"'{p.storage}' does not match that of volume '{p.volume}'"})
    return p.volume


_VOLUME_PATH = "/nodes/{node}/storage/{storage}/content/{volume:*}"


@method("GET", _VOLUME_PATH, VolumeParams, permission=("user",), returns={"type": "object", "properties": _DETAILS})
def volume_info(p: VolumeParams) -> dict[str, Any]:
    """Show one volume."""
    from pvetools.storage import volumes

    volid = _volid(p)
    found = volumes.info(volid)
    data: dict[str, Any] = {
        "path": volumes.address(volid), "size": found.size, "used": found.used, "format": found.format,
    }  # fmt: skip
    if found.content == "backup":
        data |= {"notes": volumes.notes(volid), "protected": int(found.protected)}
    return data


class AttributeParams(VolumeParams):
    """Parameters of ``PUT /nodes/{node}/storage/{storage}/content/{volume}``."""

    notes: str | None = field(string(), "New notes; empty removes them.")
    protected: bool | None = field(boolean, "Protect the backup against removal.")


@method("PUT", _VOLUME_PATH, AttributeParams, permission=("user",), returns=NULL)
def update_attributes(p: AttributeParams) -> None:
    """Change notes and protection of a backup."""
    from pvetools.storage import volumes

    volid = _volid(p)
    if p.protected is not None:
        volumes.protect(volid, p.protected)
    if p.notes is not None:
        volumes.set_notes(volid, p.notes)


class FreeParams(VolumeParams):
    """Parameters of ``DELETE /nodes/{node}/storage/{storage}/content/{volume}``."""

    delay: int | None = field(
        integer(1, 30), "Seconds to wait for the end, whose UPID is not told then; it is always waited for."
    )


def _of_guest(p: VolumeParams) -> str:
    """What a task of a volume is about: GUEST@STORAGE, or the storage alone."""
    from pvetools.storage import names, volumes

    volid = _volid(p)
    owner = volumes.owner(volid)
    return f"{owner}@{names.split(volid)[0]}" if owner else names.split(volid)[0]


@method("DELETE", _VOLUME_PATH, FreeParams, permission=("user",), task="imgdel", task_id=_of_guest)
def free(p: FreeParams) -> None:
    """Remove a volume that no guest names as a disk."""
    from pvetools.guest.common import references
    from pvetools.storage import volumes
    from pvetools.system import log
    from pvetools.system.errors import Refused

    volid = _volid(p)
    user = references.disk_of(volid)
    if user:
        raise Refused(f"volume '{volid}' is a disk of {user}; detach it there first")
    volumes.free(volid)
    log.emit(f"Removed volume '{volid}'")


class CopyParams(VolumeParams):
    """Parameters of ``POST /nodes/{node}/storage/{storage}/content/{volume}``."""

    target: str = field(
        string(complete="volume"), "Volume to be made: its id, or its name on the same storage.", required=True
    )
    target_node: str | None = field(formats.node, "Node that gets the copy; only this one.")


@method("POST", _VOLUME_PATH, CopyParams, task="imgcopy", task_id="storage")
def copy(p: CopyParams) -> None:
    """Copy a volume, also to another storage or into another image format."""
    from pvetools.storage import names, transfer
    from pvetools.system import log, paths
    from pvetools.system.errors import Refused

    if p.target_node not in (None, "localhost", paths.node()):
        raise Refused(f"node '{p.target_node}' is not this one: volumes are copied within a node only")
    volid = _volid(p)
    target = p.target if ":" in p.target else f"{names.split(volid)[0]}:{p.target}"
    made = transfer.copy(volid, target)
    log.emit(f"Copied volume '{volid}' to '{made}'")
