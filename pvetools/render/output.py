"""Results on standard output: JSON, YAML or text, and nothing else there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, choice
from pvetools.system import stdio

TextRenderer = Callable[[Any, Any, Any], str]


class OutputOptions(Record):
    """Options of every command that prints data."""

    output_format: str = field(
        choice("text", "json", "json-pretty", "yaml"),
        "Format of the printed data.",
        name="output-format",
        default="text",
    )
    human_readable: bool = field(
        boolean, "Print times and sizes in a form for people.", name="human-readable", default=True
    )
    noborder: bool = field(boolean, "Print tables without borders (text format).", default=False)
    noheader: bool = field(boolean, "Print tables without column headers (text format).", default=False)
    quiet: bool = field(boolean, "Print no result.", default=False)


# Renderers of well-known keys, for results whose schema names none.
_USUAL: Mapping[str, str] = {
    "uptime": "duration",
    "starttime": "timestamp",
    "endtime": "timestamp",
    "ctime": "timestamp",
    "cpu": "fraction_as_percentage",
    **dict.fromkeys(("mem", "maxmem", "memhost", "freemem", "balloon_min", "swap", "maxswap"), "bytes"),
    **dict.fromkeys(("disk", "maxdisk", "diskread", "diskwrite", "netin", "netout"), "bytes"),
    **dict.fromkeys(("avail", "free", "total", "used"), "bytes"),
}


def show(
    data: Any,
    params: Record,
    options: OutputOptions,
    text: TextRenderer | None = None,
    *,
    returns: Mapping[str, Any] | None = None,
) -> None:
    """Print a result in the chosen format.

    Args:
        data: the result.
        params: the command's parameters, for the text renderer.
        options: format and manner.
        text: renders the result as text from (data, params, options); generic when there is none.
        returns: JSON schema of the result, whose ``renderer`` entries say how values look for people.
    """
    if options.quiet:
        return
    if options.output_format != "text":
        stdio.write(_encoded(data, options.output_format) + "\n")
        return
    if data is None:
        return
    shown = text(data, params, options) if text else generic(data, options, returns or {})
    if shown:
        stdio.write(stdio.harmless(shown.rstrip("\n"), sys.stdout) + "\n")


def _encoded(data: Any, form: str) -> str:
    if form == "yaml":
        import yaml

        return str(yaml.safe_dump(data, allow_unicode=True, sort_keys=True)).rstrip("\n")
    import json

    manner: Any = {"indent": 3} if form == "json-pretty" else {"separators": (",", ":")}
    shown = json.dumps(data, sort_keys=True, ensure_ascii=False, **manner)
    # bytes that are no UTF-8, as in names of files
    return re.sub(r"[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", shown)


def generic(data: Any, options: OutputOptions, returns: Mapping[str, Any] | None = None) -> str:
    """Text of any result: a table for a list of objects, two columns for an object, plain lines otherwise."""
    schema = returns or {}
    if isinstance(data, Mapping):
        properties = schema.get("properties", {})
        rows = [[key, _for_people(key, data[key], options, properties)] for key in sorted(data)]
        return table(["key", "value"], rows, options)
    if isinstance(data, Sequence) and not isinstance(data, str):
        if data and all(isinstance(row, Mapping) for row in data):
            return _objects(data, options, schema.get("items", {}).get("properties", {}))
        return "\n".join(cell(item) for item in data)
    return cell(data)


def _objects(data: Sequence[Mapping[str, Any]], options: OutputOptions, properties: Mapping[str, Any]) -> str:
    keys = sorted({key for row in data for key in row})
    rows = [[_for_people(key, row.get(key), options, properties) for key in keys] for row in data]
    return table(keys, rows, options)


def _for_people(key: str, value: Any, options: OutputOptions, properties: Mapping[str, Any]) -> str:
    if not options.human_readable or not isinstance(value, int | float) or isinstance(value, bool):
        return cell(value)
    from pvetools.render.values import rendered

    name = properties.get(key, {}).get("renderer") or _USUAL.get(key, "")
    return rendered(name, value) if name else cell(value)


def cell(value: Any) -> str:
    """One value as a word."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, dict | list):
        import json

        return json.dumps(value, separators=(",", ":"), sort_keys=True)
    return str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], options: OutputOptions) -> str:
    """A table with box-drawing borders on a UTF-8 terminal, ``+-|`` elsewhere, none with ``--noborder``.

    On a terminal the widest column is wrapped so that the table fits.
    """
    head = [] if options.noheader else [list(header)]
    lines = [[text.replace("\n", " ") for text in row] for row in [*head, *map(list, rows)]]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(header))]
    if options.noborder:
        return "\n".join(" ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
                         for line in lines)  # fmt: skip
    if sys.stdout.isatty():
        from shutil import get_terminal_size

        widths = _fitted(widths, get_terminal_size().columns)
    return _boxed(lines, widths, bool(head))


def _fitted(widths: list[int], columns: int) -> list[int]:
    """Widths of which the largest gives way until the table fits, but not below 12 characters."""
    excess = sum(widths) + 3 * len(widths) + 1 - columns
    widest = max(range(len(widths)), key=widths.__getitem__, default=0)
    if excess <= 0:
        return widths
    return [max(width - excess, 12) if number == widest else width for number, width in enumerate(widths)]


def _boxed(lines: list[list[str]], widths: list[int], has_head: bool) -> str:
    fancy = sys.stdout.isatty() and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    bar, chars = ("│", ("┌─┬┐", "╞═╪╡", "├─┼┤", "└─┴┘")) if fancy else ("|", ("+-++", "+=++", "+-++", "+-++"))

    def rule(corner: str) -> str:
        left, line, cross, right = tuple(corner)
        return left + cross.join(line * (width + 2) for width in widths) + right

    out = [rule(chars[0])]
    for number, cells in enumerate(lines):
        if number:
            out.append(rule(chars[1] if has_head and number == 1 else chars[2]))
        wrapped = [_wrapped(text, width) for text, width in zip(cells, widths, strict=True)]
        for parts in zip_longest(*wrapped, fillvalue=""):
            padded = (f" {text.ljust(width)} " for text, width in zip(parts, widths, strict=True))
            out.append(bar + bar.join(padded) + bar)
    return "\n".join([*out, rule(chars[3])])


def _wrapped(text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    return [text[start : start + width] for start in range(0, len(text), width)]


def columns(spec: Sequence[tuple[str, int]], rows: Sequence[Sequence[object]], *, header: bool = True) -> str:
    """Plain columns; a positive width aligns right, a negative one left, zero is the last free column."""

    def line(values: Sequence[object]) -> str:
        parts = []
        for (_, width), value in zip(spec, values, strict=True):
            text = cell(value)
            parts.append(text if not width else text.rjust(width) if width > 0 else text.ljust(-width))
        return " ".join(parts).rstrip()

    head = [line([name for name, _ in spec])] if header else []
    return "\n".join(head + [line(row) for row in rows])


def key_values(data: Mapping[str, Any], params: object = None, options: object = None) -> str:
    """``key: value`` lines, sorted; a description's line breaks are kept as ``%0A``."""
    return "\n".join(f"{key}: {_one_line(cell(data[key]))}" for key in sorted(data))


def _one_line(text: str) -> str:
    return text.replace("%", "%25").replace("\n", "%0A") if "\n" in text else text
