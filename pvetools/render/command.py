"""Tools as data: which commands a tool has, and which method of the tree stands behind each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pvetools.schema.core import Field, Record
from pvetools.system.errors import PveError

LOCAL_NODE = "@local-node"


class Local(NamedTuple):
    """A command that exists in the shell only: its parameters, its function and the JSON schema of its result."""

    params: type[Record]
    handler: Callable[[Any], Any]
    returns: Mapping[str, Any] = {}

    @property
    def help(self) -> str:
        return " ".join((self.handler.__doc__ or "").strip().split("\n\n")[0].split())


class Command(NamedTuple):
    """One command of a tool.

    Args:
        target: ``module:name`` below ``pvetools`` of a method row or a ``Local``, or the thing itself.
        positional: parameters that are given by position; a name with ``...`` takes all remaining words.
        fixed: parameters that the command itself sets.
        text: ``module:name`` of the function that renders the result as text; "" renders it generically,
            ``none`` prints nothing.
        file_params: parameters whose value is the name of a file with the real value.
        prompted: parameters that are asked for on the terminal when given without a value.
        prepare: ``module:name`` of a function that changes the raw parameters before they are checked.
        anyone: runs without being root.
    """

    target: Any
    positional: tuple[str, ...] = ()
    fixed: Mapping[str, str] = {}
    text: str = ""
    file_params: tuple[str, ...] = ()
    prompted: tuple[str, ...] = ()
    prepare: str = ""
    anyone: bool = False


class Tool(NamedTuple):
    """One program. A tool with the single command ``""`` has no subcommands."""

    name: str
    help: str
    commands: Mapping[str, Command]
    aliases: Mapping[str, str] = {}


class UsageError(PveError):
    """The command line cannot be understood."""

    status = 400


def resolve(reference: Any) -> Any:
    """The object that ``module:name`` below ``pvetools`` names; an object stands for itself."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(f"pvetools.{module}"), name)


def prints_data(command: Command) -> bool:
    """Whether a command has data to print, and so takes the output options."""
    return command.text != "none"


def pick(tool: Tool, words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that the first words name (unique prefixes do), and the remaining words.

    Raises:
        UsageError: none, unknown or ambiguous.
    """
    if "" in tool.commands:
        return "", list(words)
    names = {**{name: name for name in tool.commands}, **tool.aliases}
    prefix: list[str] = []
    rest = list(words)
    while rest and not rest[0].startswith("-"):
        prefix.append(_complete_word(tool, names, prefix, rest.pop(0)))
        whole = " ".join(prefix)
        if whole in names:
            return names[whole], rest
    raise UsageError("no command specified" if not prefix else f"no command specified after '{' '.join(prefix)}'")


def _complete_word(tool: Tool, names: Mapping[str, str], prefix: list[str], word: str) -> str:
    depth = len(prefix)
    candidates = {name.split(" ")[depth]: name for name in names if name.split(" ")[:depth] == prefix and
                  len(name.split(" ")) > depth}  # fmt: skip
    if word in candidates:
        return word
    fitting = [candidate for candidate in candidates if candidate.startswith(word)]
    targets = {names.get(" ".join([*prefix, candidate]), candidate) for candidate in fitting}
    if len(targets) == 1:
        return fitting[0]
    said = " ".join([*prefix, word])
    if fitting:
        raise UsageError(f"command '{tool.name} {said}' is ambiguous: {', '.join(sorted(fitting))}")
    raise UsageError(f"unknown command '{tool.name} {said}'")


def parameters(command: Command, target: Any) -> type[Record]:
    """All that may be said to a command: its method's parameters, and the output options if it prints data."""
    if not prints_data(command):
        return target.params  # type: ignore[no-any-return]
    from pvetools.render.output import OutputOptions

    return type("Parameters", (target.params, OutputOptions), {})


def find_option(params: type[Record], name: str) -> Field | None:
    """The row of an option or of its alias."""
    found = params.find(params.ALIASES.get(name, name))
    return found[0] if found else None
