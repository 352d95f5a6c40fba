"""The command ``vzdump``."""

from __future__ import annotations

from typing import NoReturn

from pvetools.cli import app
from pvetools.options.backup import VzdumpOptions
from pvetools.render.command import Command, Local, Tool


def _back_up(p: VzdumpOptions) -> None:
    """Back up guests: one archive each, on a storage or in a directory."""
    from pvetools.backup import job
    from pvetools.system import paths

    paths.ensure_tree()
    job.vzdump(p)


BACK_UP = Local(VzdumpOptions, _back_up)

TOOL = Tool(
    "vzdump",
    "Back up virtual machines and containers.",
    {"": Command("cli.vzdump:BACK_UP", ("vmid...",), text="none")},
)


def main() -> NoReturn:
    """Run the tool."""
    app.main(TOOL)


if __name__ == "__main__":
    main()
