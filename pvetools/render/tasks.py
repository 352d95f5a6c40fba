"""Tasks as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pvetools.render.output import OutputOptions, cell, table
from pvetools.render.values import timestamp

_COLUMNS = (("upid", "UPID"), ("type", "Type"), ("id", "ID"), ("user", "User"), ("starttime", "Starttime"),
            ("endtime", "Endtime"), ("status", "Status"))  # fmt: skip


def task_table(data: Sequence[Mapping[str, Any]], params: object, options: OutputOptions) -> str:
    """List of tasks."""
    rows = [[_shown(key, task.get(key), options) for key, _ in _COLUMNS] for task in data]
    return table([title for _, title in _COLUMNS], rows, options)


def _shown(key: str, value: Any, options: OutputOptions) -> str:
    is_time = key.endswith("time") and value is not None and options.human_readable
    return timestamp(value) if is_time else cell(value)


def log_lines(data: Sequence[Mapping[str, Any]], params: object, options: OutputOptions) -> str:
    """Lines of a log."""
    return "\n".join(str(line["t"]) for line in data)


def findings(data: Sequence[Mapping[str, str]], params: object, options: OutputOptions) -> str:
    """Checks of the host: one line each, below it the command that mends what is missing."""
    width = max((len(finding["check"]) for finding in data), default=0)
    lines: list[str] = []
    for finding in data:
        lines.append(f"{finding['status']:8} {finding['check']:{width}} {finding['detail']}")
        if finding["mend"]:
            lines.append(f"{'':8} {'':{width}} mend: {finding['mend']}")
    return "\n".join(lines)
