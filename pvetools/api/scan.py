"""What a node could use as a storage: exports, shares, targets, subsystems, volume groups and pools."""

from __future__ import annotations

from typing import Any

from pvetools.api.common import NodeParams
from pvetools.api.tree import method
from pvetools.schema import formats
from pvetools.schema.core import field
from pvetools.schema.kinds import integer, string

_ALLOCATE = ("/storage", "Datastore.Allocate")
_PATH = "/nodes/{node}/scan"
_METHODS = ("cifs", "iscsi", "lvm", "lvmthin", "nfs", "nvme", "pbs", "zfs")


def _rows(*names: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "properties": {name: {"type": "string"} for name in names}}}


class ServerParams(NodeParams):
    """Methods that ask a server."""

    server: str = field(formats.server, "Name or address of the server.", required=True)


@method("GET", _PATH, NodeParams, permission=("user",),
        returns={**_rows("method"), "links": [{"rel": "child", "href": "{method}"}]})  # fmt: skip
def index(p: NodeParams) -> list[dict[str, Any]]:
    """List what can be scanned."""
    return [{"method": name} for name in _METHODS]


@method("GET", f"{_PATH}/nfs", ServerParams, permission=_ALLOCATE, returns=_rows("path", "options"))
def nfs(p: ServerParams) -> list[dict[str, str]]:
    """List the exports of an NFS server."""
    from pvetools.storage import scan

    return scan.nfs(p.server)


class CifsParams(ServerParams):
    """Parameters of ``GET /nodes/{node}/scan/cifs``."""

    username: str | None = field(string(), "User name at the server; default: guest.")
    password: str | None = field(string(), "Password of the user.")
    domain: str | None = field(string(), "Domain of the user.")


@method("GET", f"{_PATH}/cifs", CifsParams, permission=_ALLOCATE, returns=_rows("share", "description"))
def cifs(p: CifsParams) -> list[dict[str, str]]:
    """List the shares of an SMB server."""
    from pvetools.storage import scan

    return scan.cifs(p.server, p.username or "", p.password or "", p.domain or "")


class PortalParams(NodeParams):
    """Methods that ask a portal."""

    portal: str = field(formats.portal, "Address of the portal, with an optional port.", required=True)


@method("GET", f"{_PATH}/iscsi", PortalParams, permission=_ALLOCATE, returns=_rows("target", "portal"))
def iscsi(p: PortalParams) -> list[dict[str, str]]:
    """List the targets of an iSCSI server."""
    from pvetools.storage import scan

    return scan.iscsi_targets(p.portal)


@method("GET", f"{_PATH}/nvme", PortalParams, permission=_ALLOCATE, returns=_rows("target", "portal"))
def nvme(p: PortalParams) -> list[dict[str, str]]:
    """List the subsystems of an NVMe/TCP server."""
    from pvetools.storage import scan

    return scan.nvme_subsystems(p.portal)


@method("GET", f"{_PATH}/lvm", NodeParams, permission=_ALLOCATE, returns=_rows("vg"))
def lvm(p: NodeParams) -> list[dict[str, str]]:
    """List the volume groups of the node."""
    from pvetools.storage import scan

    return scan.volume_groups()


class GroupParams(NodeParams):
    """Parameters of ``GET /nodes/{node}/scan/lvmthin``."""

    vg: str = field(string(r"[a-zA-Z0-9\.\+\_][a-zA-Z0-9\.\+\_\-]+", max_length=100), "Volume group.", required=True)


@method("GET", f"{_PATH}/lvmthin", GroupParams, permission=_ALLOCATE, returns=_rows("lv"))
def lvmthin(p: GroupParams) -> list[dict[str, str]]:
    """List the thin pools of a volume group."""
    from pvetools.storage import scan

    return scan.thin_pools(p.vg)


@method("GET", f"{_PATH}/zfs", NodeParams, permission=_ALLOCATE, returns=_rows("pool"))
def zfs(p: NodeParams) -> list[dict[str, str]]:
    """List the ZFS pools of the node and their file systems."""
    from pvetools.storage import scan

    return scan.zfs_pools()


class BackupServerParams(ServerParams):
    """Parameters of ``GET /nodes/{node}/scan/pbs``."""

    username: str = field(string(), "User name at the server.", required=True)
    password: str = field(string(), "Password of the user.", required=True)
    fingerprint: str | None = field(
        string(r"([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}"), "SHA-256 fingerprint of the server's certificate."
    )
    port: int = field(integer(1, 65535), "Port of the server.", default=8007)


@method("GET", f"{_PATH}/pbs", BackupServerParams, permission=_ALLOCATE, returns=_rows("store", "comment"))
def pbs(p: BackupServerParams) -> list[dict[str, str]]:
    """List the datastores of a Proxmox Backup Server; refused, this version has no client for it."""
    from pvetools.system.errors import Refused

    raise Refused("storage type 'pbs' is not served by this version, so its servers can't be scanned")
