"""From a table of commands to a running tool: the one place where command lines become calls of the method tree.

A tool is data: names, the method or local function behind each command, which parameters are positional. Only the
command that was asked for is imported and declared to Typer, so that tools start fast.
"""

from __future__ import annotations

import gc
import inspect
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer._click.exceptions import ClickException, MissingParameter, NoArgsIsHelpError

from pvetools.render.command import (
    LOCAL_NODE,
    Command,
    Local,
    Tool,
    UsageError,
    find_option,
    parameters,
    pick,
    prints_data,
    resolve,
)  # fmt: skip
from pvetools.schema.core import Field, NestedErrors, Raw, Record
from pvetools.system.errors import ParamErrors, PveError


class Parsed(NamedTuple):
    """A command line taken apart: the command, what stands behind it and its raw parameters."""

    command: Command
    target: Any
    raw: dict[str, str | list[str]]


# -- its options -------------------------------------------------------------------------------------------------------


def option_words(args: Sequence[str], params: type[Record]) -> tuple[list[str], list[str]]:
    """Write every option as ``--name=value`` (``-name``, ``--name value`` and bare booleans too); gives unknown names.

    Typer then parses exactly one form. A value may begin with a dash, as long as it follows its option.
    """
    out: list[str] = []
    unknown: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*out, "--", *rest], unknown
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name or (name.isdigit() and not word.startswith("--")):
            out.append(word)
        elif name in ("help", "h"):
            out.append("--help")
        elif (row := find_option(params, name)) is None:
            unknown.append(name)
        elif equals:
            out.append(f"--{name}={value}")
        else:
            out.append(f"--{name}={_value_word(row, name, rest)}")
    return out, unknown


def _value_word(row: Field, name: str, rest: list[str]) -> str:
    if row.kind.json.get("type") == "boolean" and (not rest or rest[0].startswith("-")):
        return "1"
    if not rest:
        raise UsageError(f"unable to parse option\nOption {name} requires an argument")
    return rest.pop(0)


def is_list(row: Field) -> bool:
    """Whether an option may be repeated: arrays, and lists written in one string."""
    return row.kind.array or str(row.kind.json.get("format", "")).endswith("-list")


def _signature(command: Command, params: type[Record], words: Sequence[str]) -> list[inspect.Parameter]:
    """What Typer sees: the positional arguments, and those options that stand on the command line."""
    out: list[inspect.Parameter] = []
    for number, name in enumerate(_names(command)):
        row = params.FIELDS[name]
        variadic = command.positional[number].endswith("...")
        needed = row.required and not variadic
        out.append(
            inspect.Parameter(
                f"p{number}",
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=... if needed else None,
                annotation=Annotated[
                    list[str] | None if variadic else (str if needed else str | None), typer.Argument(metavar=name)
                ],
            )
        )
    typed = dict.fromkeys(word[2:].partition("=")[0] for word in words if word.startswith("--") and word != "--")
    for number, name in enumerate(name for name in typed if name and name != "help"):
        found = find_option(params, name)
        repeated = found is not None and is_list(found)
        out.append(
            inspect.Parameter(
                f"o{number}",
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[list[str] | None if repeated else str | None, typer.Option(f"--{name}")],
            )
        )
    return out


def _names(command: Command) -> list[str]:
    return [name.removesuffix("...") for name in command.positional]


def _option_part(words: Sequence[str]) -> list[str]:
    return list(words[: words.index("--")]) if "--" in words else list(words)


def parse(command: Command, args: Sequence[str], prog: str, *, target: Any = None) -> Parsed:
    """Parse the words behind a command.

    Raises:
        UsageError: unknown options (all of them), missing or superfluous arguments.
    """
    target = target or resolve(command.target)
    params = parameters(command, target)
    words, unknown = option_words(args, params)
    if unknown:
        raise UsageError(_unknown_text(unknown, params, words))
    given = _option_part(words)
    signature = _signature(command, params, given)
    raw: dict[str, str | list[str]] = {}
    names = {
        item.name: item.annotation.__metadata__[0].param_decls[0][2:] for item in signature if item.name[0] == "o"
    } | {f"p{number}": name for number, name in enumerate(_names(command))}

    def collect(**values: Any) -> None:
        raw.update({names[key]: value for key, value in values.items() if value not in (None, [])})

    collect.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    collect.__annotations__ = {item.name: item.annotation for item in signature}
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(add_help_option=False)(collect)
    try:
        typer.main.get_command(app).main(args=words, prog_name=prog, standalone_mode=False)
    except MissingParameter:
        raise UsageError("not enough arguments") from None
    except NoArgsIsHelpError:
        raise UsageError("not enough arguments") from None
    except ClickException as error:
        said = error.format_message()
        raise UsageError("too many arguments" if "unexpected extra" in said else said) from None
    return Parsed(command, target, _joined(raw, params))


def _unknown_text(unknown: list[str], params: type[Record], words: list[str]) -> str:
    lines = [f"Unknown option: {name}" for name in unknown]
    try:
        params.check({word[2:].partition("=")[0]: word.partition("=")[2] for word in words if word[:2] == "--" != word})
    except NestedErrors as error:
        lines += [f"{name}: {why}" for name, why in error.errors.items() if "is missing" not in why]
    return "\n".join(["unable to parse option", *lines])


def _joined(raw: dict[str, str | list[str]], params: type[Record]) -> dict[str, str | list[str]]:
    out = dict(raw)
    for name, value in raw.items():
        row = find_option(params, name)
        if row is not None and isinstance(value, list) and not row.kind.array:
            out[name] = ",".join(value)
    return out


# -- running it --------------------------------------------------------------------------------------------------------


def execute(parsed: Parsed) -> None:
    """Run a parsed command and print its result.

    Raises:
        PveError: whatever went wrong.
    """
    from pvetools.system import paths

    command, target, raw = parsed
    fixed = {key: paths.node() if value == LOCAL_NODE else value for key, value in command.fixed.items()}
    raw = {**raw, **fixed}
    for name in command.file_params:
        if name in raw:
            raw[name] = _file_value(str(raw[name]))
    if command.prepare:
        raw = resolve(command.prepare)(raw)
    output = _split_output(command, raw)
    data, params = _call(target, raw)
    if prints_data(command):
        from pvetools.render import output as render

        render.show(data, params, output, resolve(command.text) if command.text else None)


def _split_output(command: Command, raw: dict[str, str | list[str]]) -> Any:
    if not prints_data(command):
        return None
    from pvetools.render.output import OutputOptions

    chosen = {name: raw.pop(name) for name in list(raw) if name in OutputOptions.FIELDS}
    return checked(OutputOptions, chosen)


def checked(params: type[Record], raw: Raw) -> Record:
    """Check raw parameters.

    Raises:
        ParamErrors: all wrong ones.
    """
    try:
        return params.check(raw)
    except NestedErrors as error:
        raise ParamErrors(error.errors) from None


def _call(target: Any, raw: Raw) -> tuple[Any, Record]:
    if isinstance(target, Local):
        params = checked(target.params, raw)
        return target.handler(params), params
    from pvetools.api import tree

    params = tree.check(target, raw)
    data = tree.invoke(target, params)
    return (None if target.task else data), params


def _file_value(name: str) -> str:
    from pathlib import Path
    from urllib.parse import quote

    try:
        return quote(Path(name).read_text().strip(), safe="")
    except (OSError, UnicodeDecodeError) as error:
        raise PveError(f"can't read file '{name}': {getattr(error, 'strerror', None) or error}") from None


# -- entry -------------------------------------------------------------------------------------------------------------


def main(tool: Tool, args: Sequence[str] | None = None) -> NoReturn:
    """Run a tool as a process: exit status 0, or the error's own."""
    gc.disable()  # short-lived; long tasks turn it on again
    words = list(sys.argv[1:] if args is None else args)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code = dispatch(tool, words)
        sys.stdout.flush()
    except PveError as error:
        code = _report(tool, words, error)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141
    except Exception as error:
        if os.environ.get("PVETOOLS_DEBUG") == "1":
            raise
        sys.stderr.write(f"internal error: {type(error).__name__}: {error} (PVETOOLS_DEBUG=1 shows where)\n")
        code = 255
    sys.exit(code)


def dispatch(tool: Tool, words: list[str]) -> int:
    """Run one command line; returns the exit status.

    Raises:
        PveError: whatever went wrong.
    """
    if words[:1] and words[0] in ("help", "--help", "-h", "-help") and "help" not in tool.commands:
        _print_help(tool, words[1:])
        return 0
    if words[:1] == ["--version"]:
        from pvetools import __version__

        print(f"{tool.name} {__version__} (pvetools)")
        return 0
    name, rest = pick(tool, words)
    option_part = _option_part(rest)
    if any(word in ("--help", "-h", "-help") for word in option_part):
        _print_help(tool, name.split())
        return 0
    if os.geteuid() != 0:
        raise UsageError("please run as root")
    execute(parse(tool.commands[name], rest, f"{tool.name} {name}".strip()))
    return 0


def _print_help(tool: Tool, words: list[str]) -> None:
    from pvetools.render import usage

    verbose = any(word in ("--verbose", "-v") for word in words)
    words = [word for word in words if not word.startswith("-")]
    if words or "" in tool.commands:
        name, _ = pick(tool, words)
        print(usage.command_help(tool, name))
    else:
        print(usage.tool_help(tool, verbose=verbose))


def _report(tool: Tool, words: list[str], error: PveError) -> int:
    text = str(error)
    if error.status == 400:
        text = f"400 {text}"
    sys.stderr.write(text.rstrip("\n") + "\n")
    if isinstance(error, UsageError) and "root" not in text:
        from pvetools.render import usage

        sys.stderr.write(usage.hint(tool, words))
    if os.environ.get("PVETOOLS_DEBUG") == "1":
        raise error
    return error.exit_code
