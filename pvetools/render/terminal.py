"""What a person at a terminal sees besides plain lines: progress bars, and colour on warnings and errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pvetools.system import log, stdio

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# first word of a message -> name of its colour, and the terminal's code for it
_COLOURS = {"WARN": ("yellow", 33), "ERROR": ("red", 31)}


def _colour(line: str) -> tuple[str, int] | None:
    """Colour of a message line, none where ``NO_COLOR`` is set."""
    return None if os.environ.get("NO_COLOR") else _COLOURS.get(line.partition(":")[0])


@contextmanager
def bars() -> Iterator[None]:
    """Show progress as bars below the message lines; rich is loaded when the first thing makes progress."""
    shown: list[Progress] = []
    rows: dict[str, TaskID] = {}

    def write(line: str) -> None:
        line, colour = stdio.harmless(line, sys.stderr), _colour(line)
        if shown:
            style = colour[0] if colour else ""
            shown[0].console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
            return
        sys.stderr.write(f"\033[{colour[1]}m{line}\033[0m\n" if colour else f"{line}\n")
        sys.stderr.flush()

    def measure(label: str, done: int, total: int) -> None:
        if not shown:
            shown.append(_started())
        if label not in rows:
            rows[label] = shown[0].add_task(label, total=total)
        shown[0].update(rows[label], completed=done, total=total)

    try:
        with log.console(write), log.meter(measure):
            yield
    finally:
        if shown:
            shown[0].stop()


def _started() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )  # fmt: skip

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    progress.start()
    return progress
