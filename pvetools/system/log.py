"""Messages of a running command: one plain line each, on standard error and in the task's log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pvetools.system import stdio

Sink = Callable[[str], None]
Meter = Callable[[str, int, int], None]


def _to_stderr(line: str) -> None:
    stdio.complain(line + "\n")


_sinks: list[Sink] = [_to_stderr]
_meters: list[Meter] = []
_warnings = 0
_WARNING = "WARN: "


def emit(line: str) -> None:
    """Write one message line to every sink, into the log file before anyone can see it."""
    for sink in reversed(_sinks):
        sink(line)


def warn(text: str) -> None:
    """A warning: shown as such and counted by the task."""
    global _warnings
    _warnings += 1
    emit(f"{_WARNING}{text}")


def only_warnings(line: str) -> None:
    """A sink that writes warnings to standard error and drops all else."""
    if line.startswith(_WARNING):
        _to_stderr(line)


def warnings() -> int:
    """Number of warnings so far in this process."""
    return _warnings


@contextmanager
def sink(extra: Sink) -> Iterator[None]:
    """Send messages to one more place while the block runs."""
    _sinks.append(extra)
    try:
        yield
    finally:
        _sinks.remove(extra)


@contextmanager
def only(writer: Sink) -> Iterator[None]:
    """Send messages nowhere else while the block runs."""
    before = list(_sinks)
    _sinks[:] = [writer]
    try:
        yield
    finally:
        _sinks[:] = before


@contextmanager
def console(writer: Sink) -> Iterator[None]:
    """Send messages to another writer in place of standard error while the block runs."""
    before = list(_sinks)
    _sinks[:] = [writer if known is _to_stderr else known for known in before]
    try:
        yield
    finally:
        _sinks[:] = before


def progress(label: str, done: int, total: int) -> None:
    """Tell how far something is, in any unit; shown only where somebody installed a meter (a terminal)."""
    for meter in _meters:
        meter(label, done, total)


@contextmanager
def meter(shown: Meter) -> Iterator[None]:
    """Install a meter while the block runs."""
    _meters.append(shown)
    try:
        yield
    finally:
        _meters.remove(shown)
