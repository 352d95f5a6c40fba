"""Writes completion and manual pages into the source tree: `python -m pvetools.cli.generate [FOLDER]`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from pvetools.api import tree
from pvetools.render import completion, manpages
from pvetools.render.command import Tool

TOOLS = ("qm", "pct", "pvesm", "pvesh", "vzdump", "qmrestore", "pvenode")


def tools() -> list[Tool]:
    """The tables of all tools."""
    return [importlib.import_module(f"pvetools.cli.{name}").TOOL for name in TOOLS]


def files() -> dict[str, str]:
    """Every generated file: name below the source tree and content."""
    tree.load_all()
    all_tools = tools()
    pages = {f"man/{name}": text for name, text in manpages.pages(all_tools).items()}
    return {"completions/pvetools.bash": completion.script(all_tools, tree.rows()), **pages}


def write(folder: Path) -> None:
    """Write what has changed below a folder, and print its name."""
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(name)


def main() -> None:
    """Write into the source tree, or into the folder that is named on the command line."""
    target = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[2])
    if target.startswith("-"):
        sys.exit("usage: python -m pvetools.cli.generate [FOLDER]")
    write(Path(target))


if __name__ == "__main__":
    main()
