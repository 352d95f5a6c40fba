"""Backups of guests: the job, its defaults, what archives hold, retention."""

from __future__ import annotations

from typing import Any

from pvetools.api.common import NodeParams
from pvetools.api.tree import method
from pvetools.options.backup import PruneBackups, VzdumpOptions
from pvetools.schema import formats
from pvetools.schema.core import field, nested
from pvetools.schema.kinds import choice, string


class VzdumpParams(NodeParams, VzdumpOptions):
    """Parameters of ``POST /nodes/{node}/vzdump``."""


@method("POST", "/nodes/{node}/vzdump", VzdumpParams, permission=("user",), returns={"type": "string"})
def vzdump(p: VzdumpParams) -> str:
    """Back up guests: one archive each, on a storage or in a directory."""
    from pvetools.backup import job

    return job.vzdump(p.replaced(node=None))


class DefaultsParams(NodeParams):
    """Parameters of ``GET /nodes/{node}/vzdump/defaults``."""

    storage: str | None = field(formats.storage_id, "Storage whose retention is to be considered.")


@method("GET", "/nodes/{node}/vzdump/defaults", DefaultsParams, permission=("user",), returns={"type": "object"})
def defaults(p: DefaultsParams) -> dict[str, Any]:
    """Show the options that a backup uses when nothing else is said."""
    from pvetools.backup import options
    from pvetools.storage import definition

    conf = options.load_conf()
    keep = definition.get(p.storage).options.prune_backups if p.storage else None
    return options.defaults(conf, keep)


class ExtractParams(NodeParams):
    """Parameters of ``GET /nodes/{node}/vzdump/extractconfig``."""

    volume: str = field(string(complete="volume"), "Volume id of the archive.", required=True)


@method("GET", "/nodes/{node}/vzdump/extractconfig", ExtractParams, permission=("user",), returns={"type": "string"})
def extractconfig(p: ExtractParams) -> str:
    """Show the guest configuration that a backup holds."""
    from pvetools.backup import extract

    return extract.extract_config(extract.locate(p.volume))


class PruneParams(NodeParams):
    """Parameters of ``/nodes/{node}/storage/{storage}/prunebackups``."""

    storage: str = field(formats.storage_id, "Storage to look at.", required=True)
    prune_backups: PruneBackups | None = field(
        nested(PruneBackups, form="prune-backups"),
        "Which backups are kept.",
        name="prune-backups",
        note="as the storage is configured",
    )
    type: str | None = field(choice("qemu", "lxc"), "Look only at backups of this kind of guest.")
    vmid: int | None = field(formats.vmid, "Look only at backups of this guest.")


@method(
    "GET",
    "/nodes/{node}/storage/{storage}/prunebackups",
    PruneParams,
    permission=("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace"),
    returns={
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "volid": {"type": "string"},
                "ctime": {"type": "integer"},
                "type": {"type": "string"},
                "mark": {"type": "string", "enum": ["keep", "remove", "protected", "renamed"]},
                "vmid": {"type": "integer", "optional": 1},
            },
        },
    },
)
def prune_plan(p: PruneParams) -> list[dict[str, Any]]:
    """Show which backups of a storage would be kept and which removed."""
    from pvetools.backup import storage_prune

    return storage_prune.plan(p.storage, p.prune_backups, p.type, p.vmid)


@method(
    "DELETE", "/nodes/{node}/storage/{storage}/prunebackups", PruneParams, permission=("user",), task="prunebackups",
    task_id="storage",
)  # fmt: skip
def prune(p: PruneParams) -> None:
    """Remove the backups of a storage that are not to be kept."""
    from pvetools.backup import storage_prune

    storage_prune.prune(p.storage, p.prune_backups, p.type, p.vmid)
