"""From a table of commands to a running tool: the one place where command lines become calls of the method tree.

A tool is data: names, the method or local function behind each command, which parameters are positional. Only the
command that was asked for is imported and declared to Typer, so that tools start fast.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer._click.exceptions import ClickException, MissingParameter, NoArgsIsHelpError

from pvetools.api import tree
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
from pvetools.system import stdio
from pvetools.system.errors import Forbidden, ParamErrors, PveError


class Parsed(NamedTuple):
    """A command line taken apart: the command, what stands behind it and its raw parameters."""

    command: Command
    target: Any
    raw: dict[str, str | list[str]]


# -- its options -------------------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """A command line with every option as ``--name=value``, the complaints about the others, and the names given."""

    words: list[str]
    problems: list[str]
    named: dict[str, None]


def option_words(args: Sequence[str], params: type[Record], command: Command) -> Words:
    """Bring ``-name value``, ``--name value``, ``--name=value`` and bare booleans into one form, for Typer to parse.

    A value may begin with a dash, as long as it follows its option. Options that the command sets itself are unknown.
    """
    out = Words([], [], {})
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            out.words.extend(["--", *rest])
            break
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name or (name.isdigit() and not word.startswith("--")):
            out.words.append(word)
            continue
        row = None if name in command.fixed else find_option(params, name)
        if row is None:
            out.problems.append(f"Unknown option: {name}")
        elif not equals and (said := _value_word(row, name in command.prompted, rest)) is None:
            out.problems.append(f"Option {name} requires an argument")
        else:
            out.words.append(f"--{name}={value if equals else said}")
            out.named[name] = None
    return out


def _value_word(row: Field, prompted: bool, rest: list[str]) -> str | None:
    is_boolean = row.kind.json.get("type") == "boolean"
    if (is_boolean or prompted) and (not rest or rest[0].startswith("-")):
        return "1" if is_boolean else ""
    return rest.pop(0) if rest else None


def is_list(row: Field) -> bool:
    """Whether an option may be repeated: arrays, and lists written in one string."""
    return row.kind.array or str(row.kind.json.get("format", "")).endswith("-list")


def _argument(number: int, name: str, row: Field) -> inspect.Parameter:
    variadic = name.endswith("...")
    needed = row.required and not variadic
    type_ = list[str] | None if variadic else (str if needed else str | None)
    return inspect.Parameter(
        f"p{number}",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=... if needed else None,
        annotation=Annotated[type_, typer.Argument(metavar=row.name)],
    )


def _option(number: int, name: str, row: Field) -> inspect.Parameter:
    type_ = list[str] | None if is_list(row) else str | None
    return inspect.Parameter(
        f"o{number}",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[type_, typer.Option(f"--{name}")],
    )


def _split_typed(words: Sequence[str], names: Mapping[str, str], signature: list[inspect.Parameter]) -> dict[str, Any]:
    """Let Typer take the words apart; gives what was said, keyed by public name.

    Raises:
        UsageError: missing or superfluous arguments.
    """
    said: dict[str, Any] = {}

    def collect(**values: Any) -> None:
        said.update({names[key]: value for key, value in values.items() if value not in (None, [])})

    collect.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    collect.__annotations__ = {item.name: item.annotation for item in signature}
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(add_help_option=False)(collect)
    try:
        typer.main.get_command(app).main(args=list(words), prog_name="", standalone_mode=False)
    except (MissingParameter, NoArgsIsHelpError):
        raise UsageError("not enough arguments") from None
    except ClickException as error:
        text = error.format_message()
        raise UsageError("too many arguments" if "unexpected extra" in text else text) from None
    return said


def parse(command: Command, args: Sequence[str], *, target: Any = None) -> Parsed:
    """Parse the words behind a command; an argument that is named as an option is not expected by position.

    Raises:
        UsageError: missing or superfluous arguments, or unknown options: all of them, and wrong values beside them.
    """
    target = target or resolve(command.target)
    params = parameters(command, target)
    words, problems, named = option_words(args, params, command)
    if problems:
        if any(name.endswith("...") for name in command.positional):
            problems.append("(words that begin with a dash and are no options stand behind '--')")
        raise UsageError("\n".join(["unable to parse option", *problems, *_wrong_values(words, params)]))
    arguments = [name for name in command.positional if name.removesuffix("...") not in named]
    signature = [_argument(i, name, params.FIELDS[name.removesuffix("...")]) for i, name in enumerate(arguments)]
    names = {f"p{i}": name.removesuffix("...") for i, name in enumerate(arguments)}
    for i, name in enumerate(named):
        row = find_option(params, name)
        if row is not None:
            signature.append(_option(i, name, row))
            names[f"o{i}"] = name
    try:
        said = _split_typed(words, names, signature)
    except UsageError as error:
        raise UsageError("\n".join([str(error), *_wrong_values(words, params)])) from None
    return Parsed(command, target, _joined(said, params))


def _option_part(words: Sequence[str]) -> list[str]:
    return list(words[: words.index("--")]) if "--" in words else list(words)


def _wrong_values(words: Sequence[str], params: type[Record]) -> list[str]:
    """Reasons against option values, to be told together with an error that prevents the real check."""
    pairs = [word[2:].partition("=") for word in _option_part(words) if word.startswith("--")]
    try:
        params.check({name: value for name, _, value in pairs})
    except NestedErrors as error:
        return [f"{name}: {why}" for name, why in error.errors.items() if "is missing" not in why]
    return []


def _joined(said: dict[str, Any], params: type[Record]) -> dict[str, str | list[str]]:
    out = dict(said)
    for name, value in said.items():
        row = find_option(params, name)
        if row is not None and isinstance(value, list) and not row.kind.array:
            out[name] = ",".join(value)
    return out


# -- running it --------------------------------------------------------------------------------------------------------


def execute(parsed: Parsed) -> Any:
    """Run a parsed command and print its result; gives it, too.

    Raises:
        PveError: whatever went wrong.
    """
    command, target, _ = parsed
    raw = completed(parsed)
    output = split_output(command, target, raw)
    with shown_progress():
        data, params = call(target, raw)
    if output is not None:
        from pvetools.render import output as render

        text = resolve(command.text) if command.text else None
        render.show(None if hides_result(target) else data, params, output, text, returns=target.returns)
    return data


def shown_progress() -> contextlib.AbstractContextManager[None]:
    """Bars and colours while a command runs on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from pvetools.render import terminal

    return terminal.bars()


def hides_result(target: Any) -> bool:
    """Whether the result is a task's UPID: the tools have shown the task itself."""
    return isinstance(target, tree.Method) and bool(target.task)


def completed(parsed: Parsed) -> dict[str, str | list[str]]:
    """The raw parameters with what the command adds: files' contents, answers on the terminal, fixed values.

    Raises:
        PveError: unreadable file, nobody to ask.
    """
    from pvetools.system import paths

    command, target, said = parsed
    raw = {**said, **{key: paths.node() if value == LOCAL_NODE else value for key, value in command.fixed.items()}}
    for name in command.file_params:
        if name in raw:
            raw[name] = _file_value(str(raw[name]), target.params.FIELDS[name])
    for name in command.prompted:
        if raw.get(name) == "":
            raw[name] = _asked(name)
    return dict(resolve(command.prepare)(raw)) if command.prepare else raw


def split_output(command: Command, target: Any, raw: dict[str, str | list[str]]) -> Any:
    """Take the output options out of the raw parameters (those that the method knows too stay); None: no output.

    Raises:
        ParamErrors: wrong ones.
    """
    if not prints_data(command):
        return None
    from pvetools.render.output import OutputOptions

    chosen = {name: raw[name] for name in OutputOptions.FIELDS if name in raw}
    for name in chosen:
        if name not in target.params.FIELDS:
            del raw[name]
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


def call(target: Any, raw: Raw) -> tuple[Any, Record]:
    """Check the parameters of a method or a local command and run it; gives its result and the parameters.

    Raises:
        PveError: whatever went wrong.
    """
    if isinstance(target, Local):
        params = checked(target.params, raw)
        return target.handler(params), params
    params = tree.check(target, raw)
    return tree.invoke(target, params), params


def _file_value(name: str, row: Field) -> str:
    from pathlib import Path

    try:
        text = Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PveError(f"can't read file '{name}': {getattr(error, 'strerror', None) or error}") from None
    if row.kind.json.get("format") != "urlencoded":
        return text
    from urllib.parse import quote

    return quote(text, safe="")


def _asked(name: str) -> str:
    """Ask for a secret twice on the terminal, without showing it."""
    import getpass

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise ParamErrors({name: "no value given, and there is no terminal to ask for it"}) from None
    first = getpass.getpass(f"Enter new {name}: ")
    if getpass.getpass(f"Retype new {name}: ") != first:
        raise ParamErrors({name: "the two inputs differ"})
    return first


# -- entry -------------------------------------------------------------------------------------------------------------

Runner = Callable[[Tool, list[str]], object]


def main(tool: Tool, *, run: Runner | None = None, numbered: bool = False) -> NoReturn:
    """Run a tool as a process: exit status 0, or the error's own.

    Args:
        tool: its table.
        run: carries out one command line in place of ``dispatch``.
        numbered: every error begins with its HTTP status, not only the complaints about the command line.
    """
    stdio.complete()
    words = sys.argv[1:]
    code = 0
    try:
        (run or dispatch)(tool, words)
        stdio.write("")
    except PveError as error:
        code = error.exit_code
        _report(tool, words, error, numbered)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # whoever read our output has enough; nothing may be flushed into it at exit
        stdio.forget_output()
        code = 141
    except Exception as error:
        if debugging():
            raise
        stdio.complain(_unexpected(error) + "\n")
        code = 255
    stdio.settle()
    sys.exit(code)


def _unexpected(error: Exception) -> str:
    """Words for an error that nobody foresaw: a full or broken file system, or our own fault."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: '{error.filename}'"
    return f"internal error: {type(error).__name__}: {error} (PVETOOLS_DEBUG=1 shows where)"


def debugging() -> bool:
    """Whether errors show where they come from."""
    return os.environ.get("PVETOOLS_DEBUG") == "1"


def dispatch(tool: Tool, words: list[str]) -> tuple[str, Any]:
    """Run one command line; gives the command's name and its result (``help`` and None for a question).

    Raises:
        PveError: whatever went wrong.
    """
    if helped(tool, words):
        return "help", None
    name, rest = pick(tool, words)
    if not tool.commands[name].anyone:
        need_root()
    return name, execute(parse(tool.commands[name], rest))


def need_root() -> None:
    """Everything but help is for root.

    Raises:
        Forbidden: another user.
    """
    if os.geteuid() != 0:
        raise Forbidden("please run as root")


def helped(tool: Tool, words: list[str]) -> bool:
    """Answer ``help [COMMAND] [--verbose]``, ``COMMAND --help`` and ``--version``; False: something else is asked."""
    asked = any(word in ("--help", "-h", "-help", "-?") for word in _option_part(words))
    if words[:1] == ["--version"]:
        from pvetools import __version__

        stdio.write(f"{tool.name} {__version__} (pvetools)\n")
        return True
    if not asked and not (words[:1] == ["help"] and "help" not in tool.commands):
        return False
    from pvetools.render import usage

    plain = [word for word in words if not word.startswith("-")]
    plain = plain[1:] if plain[:1] == ["help"] else plain
    verbose = any(word in ("--verbose", "-verbose", "-v") for word in words)
    stdio.write(usage.help_text(tool, plain, verbose=verbose) + "\n")
    return True


def _report(tool: Tool, words: list[str], error: PveError, numbered: bool) -> None:
    said = f"{error.status} {error}" if numbered or error.status == 400 else str(error)
    stdio.complain(said.rstrip("\n") + "\n")
    if isinstance(error, UsageError):
        from pvetools.render import usage

        stdio.complain(usage.hint(tool, words))
    if debugging():
        raise error
