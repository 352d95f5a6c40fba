"""The command ``pvesm``: storages and volumes."""

from __future__ import annotations

from typing import Any, NoReturn

from pvetools.cli import app
from pvetools.options.backup import PruneBackups
from pvetools.render.command import LOCAL_NODE, Command, Local, Tool
from pvetools.schema import formats
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, choice


class PathParams(Record):
    """Parameters of ``pvesm path``."""

    volume: str = field(formats.volume_id, "Volume id.", required=True)


def _path(p: PathParams) -> str:
    """Print where a volume lies."""
    from pvetools.storage import volumes

    return volumes.address(p.volume)


PATH = Local(PathParams, _path)


class PruneParams(PruneBackups):
    """Parameters of ``pvesm prune-backups``; the retention rules stand beside each other here."""

    storage: str = field(formats.storage_id, "Storage to look at.", required=True)
    dry_run: bool = field(boolean, "Only show what would be kept and removed.", name="dry-run", default=False)
    type: str | None = field(choice("qemu", "lxc"), "Look only at backups of this kind of guest.")
    vmid: int | None = field(formats.vmid, "Look only at backups of this guest.")


def _prune(p: PruneParams) -> list[dict[str, Any]] | None:
    """Remove the backups of a storage that are not to be kept: by these rules, or as the storage is configured."""
    from pvetools.api import backup, tree
    from pvetools.system import paths

    texts = p.texts()
    raw = {"node": paths.node(), **{key: text for key, text in texts.items() if key in backup.PruneParams.FIELDS}}
    if rules := [f"{key}={text}" for key, text in texts.items() if key in PruneBackups.FIELDS]:
        raw["prune-backups"] = ",".join(rules)
    if p.dry_run:
        found: list[dict[str, Any]] = tree.call(backup.prune_plan, raw)
        return found
    tree.call(backup.prune, raw)
    return None


PRUNE = Local(PruneParams, _prune)


class ApiInfoParams(Record):
    """``pvesm apiinfo`` takes none."""


def _apiinfo(_p: ApiInfoParams) -> dict[str, int]:
    """Show the version of the interface that backends of other packages are written for."""
    from pvetools.storage import registry

    return {"apiver": registry.API_VERSION, "apiage": registry.API_AGE}


APIINFO = Local(ApiInfoParams, _apiinfo)
_HERE = {"node": LOCAL_NODE}
_SECRETS = ("encryption-key", "keyring", "master-pubkey")

TOOL = Tool(
    "pvesm",
    "Manage storages and their volumes.",
    {
        "add": Command("api.storage:create", ("type", "storage"), text="none", file_params=_SECRETS,
                       prompted=("password",)),
        "set": Command("api.storage:update", ("storage",), text="none", file_params=_SECRETS, prompted=("password",)),
        "remove": Command("api.storage:delete", ("storage",), text="none"),
        "status": Command("api.storage:status_list", fixed=_HERE, text="render.storage:status_table"),
        "list": Command("api.storage:content", ("storage",), _HERE, text="render.storage:content_table"),
        "alloc": Command("api.storage:alloc", ("storage", "vmid", "filename", "size"), _HERE,
                         text="render.storage:created"),
        "free": Command("api.storage:free", ("volume",), _HERE, text="none"),
        "apiinfo": Command("cli.pvesm:APIINFO", text="render.storage:versions"),
        "path": Command("cli.pvesm:PATH", ("volume",)),
        "export": Command("cli.streams:EXPORT", ("volume", "format", "filename"), text="none"),
        "import": Command("cli.streams:IMPORT", ("volume", "format", "filename"), text="render.storage:imported"),
        "prune-backups": Command("cli.pvesm:PRUNE", ("storage",), text="render.storage:prune_table"),
        "extractconfig": Command("api.backup:extractconfig", ("volume",), _HERE),
        "scan nfs": Command("api.scan:nfs", ("server",), _HERE, text="render.storage:scanned"),
        "scan cifs": Command("api.scan:cifs", ("server",), _HERE, text="render.storage:scanned",
                             prompted=("password",)),
        "scan iscsi": Command("api.scan:iscsi", ("portal",), _HERE, text="render.storage:scanned"),
        "scan lvm": Command("api.scan:lvm", fixed=_HERE, text="render.storage:scanned"),
        "scan lvmthin": Command("api.scan:lvmthin", ("vg",), _HERE, text="render.storage:scanned"),
        "scan nvme": Command("api.scan:nvme", ("portal",), _HERE, text="render.storage:scanned"),
        "scan zfs": Command("api.scan:zfs", fixed=_HERE, text="render.storage:scanned"),
        "scan pbs": Command("api.scan:pbs", ("server", "username"), _HERE, prompted=("password",)),
    },
    {f"{kind}scan": f"scan {kind}" for kind in ("cifs", "iscsi", "lvm", "lvmthin", "nfs", "zfs")},
)  # fmt: skip


def main() -> NoReturn:
    """Run the tool."""
    app.main(TOOL)


if __name__ == "__main__":
    main()
