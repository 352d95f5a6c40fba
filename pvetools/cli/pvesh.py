"""``pvesh``: the method tree in the shell. Standard output carries the result and nothing else."""

from __future__ import annotations

from typing import Any, NoReturn

from pvetools.api import tree
from pvetools.cli import app
from pvetools.render import command as commands
from pvetools.render.command import Command, Local, Tool, UsageError
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, choice, string
from pvetools.system import log, stdio
from pvetools.system.errors import NotImplementedMethod


class PathParams(Record):
    """A path, with the method's own parameters behind it."""

    api_path: str = field(
        string(complete="api_path"), "Path in the tree, such as /nodes.", name="api_path", required=True
    )
    noproxy: bool = field(boolean, "Never pass the call on to another node.", default=False)


class UsageParams(Record):
    api_path: str = PathParams.FIELDS["api_path"]  # type: ignore[assignment]
    command: str | None = field(choice(*tree.VERBS), "Only the method behind this command.")
    returns: bool = field(boolean, "Show the JSON schema of the result too.", default=False)
    verbose: bool = field(boolean, "Show all parameters.", default=False)


def _get(params: PathParams) -> None:
    """Read from a path (GET)."""


def _set(params: PathParams) -> None:
    """Change what is at a path (PUT)."""


def _create(params: PathParams) -> None:
    """Make something below a path, or run an action (POST)."""


def _delete(params: PathParams) -> None:
    """Remove what is at a path (DELETE)."""


# Help texts only: `run` replaces these by the method at the path.
GET, SET, CREATE, DELETE = (Local(PathParams, handler) for handler in (_get, _set, _create, _delete))


def _names(path: str) -> list[str]:
    """Names of what is below a path: fixed words, and what the path lists."""
    names: list[str] = []
    for word in tree.children(path):
        if word.startswith("{"):
            row, variables = tree.find("GET", path)
            key = _link(row, word[1:-1].removesuffix(":*"))
            names += [str(item[key]) for item in tree.call(row, variables) if key in item]
        else:
            names.append(word)
    return sorted(names)


def _link(row: tree.Method, variable: str) -> str:
    """Which field of a listed item is its name in the path."""
    links = row.returns.get("links")
    if links:
        return str(links[0]["href"]).strip("{}")
    return {"snapname": "name", "volume": "volid"}.get(variable, variable)


def capabilities(path: str) -> str:
    """``Drwcd``: has something below, can be read, set, created in, deleted."""
    verbs = tree.verbs_at(path)
    letters = zip("rwcd", ("GET", "PUT", "POST", "DELETE"), strict=True)
    return ("D" if tree.children(path) else "-") + "".join(char if verb in verbs else "-" for char, verb in letters)


def _ls(params: PathParams) -> list[dict[str, str]]:
    """List what lies below a path, with what can be done there."""
    path = tree.normalise(params.api_path)
    tree.load_for(path)
    if not tree.children(path):
        row, variables = tree.find("GET", path)  # a leaf: nothing below, if it exists at all
        tree.check(row, variables)
        return []
    return [{"name": name, "capabilities": capabilities(f"{path}/{name}")} for name in _names(path)]


def list_text(data: list[dict[str, str]], params: Any, options: Any) -> str:
    """One line an entry."""
    return "\n".join(f"{row['capabilities']}        {row['name']}" for row in data)


def _usage(params: UsageParams) -> None:
    """Show how the methods at a path are called."""
    from pvetools.render import usage

    path = tree.normalise(params.api_path)
    tree.load_for(path)
    wanted = (
        [params.command]
        if params.command
        else [word for word, verb in tree.VERBS.items() if verb in tree.verbs_at(path)]
    )
    if not wanted:
        raise NotImplementedMethod(f"no method at '{path}'")
    shown = []
    for word in wanted:
        row, variables = tree.find(tree.VERBS[word], path)
        name = f"{word} {path}"
        tool = Tool("pvesh", "", {name: Command(row, fixed=variables)})
        shown.append(usage.command_help(tool, name) if params.verbose else f"USAGE: {usage.synopsis(tool, name)}")
        if params.returns:
            import json

            shown.append("Returns: " + json.dumps(row.returns, indent=3, sort_keys=True))
    stdio.write("\n\n".join(shown) + "\n")


LS, USAGE = Local(PathParams, _ls), Local(UsageParams, _usage)

TOOL = Tool(
    "pvesh",
    "Call the methods of the management interface.",
    {
        "get": Command("cli.pvesh:GET", ("api_path",)),
        "set": Command("cli.pvesh:SET", ("api_path",)),
        "create": Command("cli.pvesh:CREATE", ("api_path",)),
        "delete": Command("cli.pvesh:DELETE", ("api_path",)),
        "ls": Command("cli.pvesh:LS", ("api_path",), text="cli.pvesh:list_text"),
        "usage": Command("cli.pvesh:USAGE", ("api_path",), text="none"),
    },
)


def run(tool: Tool, words: list[str]) -> None:
    """Run one command line.

    Raises:
        PveError: whatever went wrong.
    """
    if app.helped(tool, words):
        return
    name, rest = commands.pick(tool, words)
    app.need_root()
    if name not in tree.VERBS:
        app.execute(app.parse(tool.commands[name], rest))
        return
    if not rest or rest[0].startswith("-"):
        raise UsageError("not enough arguments: no path given")
    call(tree.VERBS[name], rest[0], rest[1:])


def call(verb: str, path: str, args: list[str]) -> None:
    """Call the method at a path with options from a command line, and print its result.

    Raises:
        PveError: whatever went wrong.
    """
    from pvetools.render import output as render

    tree.load_for(path)
    row, variables = tree.find(verb, path)
    said = row._replace(params=type("Parameters", (row.params, _Proxy), {}))
    parsed = app.parse(Command(said, fixed=variables), args)
    raw = app.completed(parsed)
    output = app.split_output(parsed.command, row, raw)
    app.checked(_Proxy, {key: raw.pop(key) for key in _Proxy.FIELDS if key in raw})
    # where programs read, messages are in the task's log only: standard error is for warnings and errors
    with app.shown_progress() if output.output_format == "text" else log.console(log.only_warnings):
        data, params = app.call(row, raw)
    render.show(data, params, output, returns=row.returns)


class _Proxy(Record):
    noproxy: bool = PathParams.FIELDS["noproxy"]  # type: ignore[assignment]


def main() -> NoReturn:
    app.main(TOOL, run=run, numbered=True)


if __name__ == "__main__":
    main()
