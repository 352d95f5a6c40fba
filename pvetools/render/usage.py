"""Help texts of the tools, generated from the declarations."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pvetools.render.command import Command, Tool, UsageError, parameters, pick, resolve
from pvetools.schema.core import Field, Record


def value_form(row: Field) -> str:
    """What may stand behind an option: ``<integer> (1 - N)``, ``<a | b>``, ``[file=]<volume> [,size=<size>]``."""
    if row.kind.record is not None:
        return property_form(row.kind.record)
    schema = row.kind.json
    if "enum" in schema:
        return f"<{' | '.join(schema['enum'])}>"
    if schema.get("type") in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is None and high is None:
            return f"<{schema['type']}>"
        return f"<{schema['type']}> ({'-N' if low is None else low} - {'N' if high is None else high})"
    return f"<{schema.get('format') or schema.get('type', 'string')}>"


def property_form(record: type[Record]) -> str:
    """Syntax of a property string: the bare key first, then required ones, then the optional ones in brackets."""
    rows = sorted(record.FIELDS.values(), key=lambda row: (not row.bare, not row.required, row.name))
    parts: list[str] = []
    for row in rows:
        text = f"[{row.name}=]{value_form(row)}" if row.bare else f"{row.name}={value_form(row)}"
        lead = "," if parts else ""
        parts.append(f"{lead}{text}" if row.required else f" [{lead}{text}]" if parts else f"[{text}]")
    return "".join(parts)


def default_of(row: Field) -> str:
    """The default in force, as a user would write it; empty when there is none."""
    if row.note:
        return row.note
    return "" if row.default in (None, "", []) else str(row.kind.format(row.default))


def option_rows(command: Command) -> tuple[type[Record], list[Field], list[Field]]:
    """Parameters of a command, its positional rows and its options (sorted)."""
    params = parameters(command, resolve(command.target))
    names = [name.removesuffix("...") for name in command.positional]
    options = [row for name, row in params.FIELDS.items() if name not in names and name not in command.fixed]
    return params, [params.FIELDS[name] for name in names], sorted(options, key=lambda row: row.name)


def synopsis(tool: Tool, name: str) -> str:
    """``qm set <vmid> [OPTIONS]``."""
    command = tool.commands[name]
    _, positional, options = option_rows(command)
    words = [tool.name, *name.split()]
    for word, row in zip(command.positional, positional, strict=True):
        shown = f"<{row.name}>" + ("..." if word.endswith("...") else "")
        words.append(shown if row.required else f"[{shown}]")
    needed = [f"--{row.name} {value_form(row)}" for row in options if row.required]
    return " ".join([*words, *needed, "[OPTIONS]"] if len(options) > len(needed) else [*words, *needed])


def summary(command: Command) -> str:
    """First sentence of what a command does."""
    return str(resolve(command.target).help)


def command_help(tool: Tool, name: str) -> str:
    """Full help of one command."""
    command = tool.commands[name]
    _, positional, options = option_rows(command)
    out = [f"Usage: {synopsis(tool, name)}", "", *_wrapped(summary(command), "")]
    if positional:
        out += ["", "Arguments:"]
        for row in positional:
            out += [f"  <{row.name}>: {value_form(row)}", *_wrapped(row.help, "      ")]
    if options:
        out += ["", "Options:"]
        for row in options:
            out += [f"  --{row.label} {value_form(row)}", *_wrapped(option_text(row), "      ")]
    return "\n".join(out)


def option_text(row: Field) -> str:
    """Help of an option with its default and what it requires."""
    default, text = default_of(row), row.help
    if default:
        text += f" Default: {default}."
    if row.requires:
        text += f" Requires --{row.requires}."
    return text


def _wrapped(text: str, indent: str) -> Sequence[str]:
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent)


def tool_help(tool: Tool, *, verbose: bool = False) -> str:
    """All commands of a tool with their synopsis; verbose: with their options too."""
    out = [f"{tool.name}: {tool.help}", "", f"Usage: {tool.name} <COMMAND> [ARGS] [OPTIONS]", ""]
    for name in sorted(tool.commands):
        if verbose:
            out += [command_help(tool, name), ""]
        else:
            out += [f"  {synopsis(tool, name)}", *_wrapped(summary(tool.commands[name]), "      ")]
    return "\n".join([*out, "", f"'{tool.name} help <COMMAND>' shows all options of a command."])


def help_text(tool: Tool, words: Sequence[str], *, verbose: bool = False) -> str:
    """What ``help WORDS`` prints: the tool, all commands below a first word, or one command with its options.

    Raises:
        UsageError: no such command.
    """
    if not words and "" not in tool.commands:
        return tool_help(tool, verbose=verbose)
    below = [name for name in sorted(tool.commands) if name.startswith(" ".join(words) + " ")]
    if below:
        return "\n\n".join(command_help(tool, name) for name in below)
    return command_help(tool, pick(tool, words)[0])


def hint(tool: Tool, words: list[str]) -> str:
    """Lines below a usage error: the command's synopsis, or where to find the commands."""
    try:
        name, _ = pick(tool, words)
        return f"usage: {synopsis(tool, name)}\n"
    except UsageError:
        return f"'{tool.name} help' lists the commands.\n"
