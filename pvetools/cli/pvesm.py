"""The command ``pvesm``: storages and volumes."""

from __future__ import annotations

from typing import NoReturn

from pvetools.cli import app
from pvetools.render.command import LOCAL_NODE, Command, Local, Tool
from pvetools.schema import formats
from pvetools.schema.core import Record, field


class PathParams(Record):
    """Parameters of ``pvesm path``."""

    volume: str = field(formats.volume_id, "Volume id.", required=True)


def _path(p: PathParams) -> str:
    """Print where a volume lies."""
    from pvetools.storage import volumes

    return str(volumes.path(p.volume))


PATH = Local(PathParams, _path)
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
        "path": Command("cli.pvesm:PATH", ("volume",)),
        "extractconfig": Command("api.backup:extractconfig", ("volume",), _HERE),
    },
)  # fmt: skip


def main() -> NoReturn:
    """Run the tool."""
    app.main(TOOL)


if __name__ == "__main__":
    main()
