"""Messages of a backup: lines with a level on the console, and with a time stamp in the guest's log file."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pvetools.system import log, run
from pvetools.system.errors import RunError

LEVELS = ("INFO: ", "WARN: ", "ERROR: ")
_EMPTY = ("",)


def info(text: str) -> None:
    """Tell about a step; every line gets the level in front."""
    for line in text.splitlines() or _EMPTY:
        log.emit(f"INFO: {line}")


def error(text: str) -> None:
    """Tell about a failure."""
    for line in text.splitlines() or _EMPTY:
        log.emit(f"ERROR: {line}")


def warn(text: str) -> None:
    """Tell about something that went wrong without making the backup fail; counted once."""
    first, *rest = text.splitlines() or _EMPTY
    log.warn(first)
    for line in rest:
        log.emit(f"WARN: {line}")


class GuestLog:
    """The log of one guest's backup: all that is said while it is open, but for what is meant for the console only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape")
        self._muted = False

    def take(self, line: str) -> None:
        """Write one line with its time; lines of other parts of the program get the level INFO."""
        if self._muted:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        level = "" if line.startswith(LEVELS) else "INFO: "
        self._file.write(f"{stamp} {level}{line}\n")
        self._file.flush()

    def console(self, text: str) -> None:
        """Say something that does not belong into the file."""
        self._muted = True
        try:
            info(text)
        finally:
            self._muted = False

    @contextlib.contextmanager
    def recording(self) -> Iterator[GuestLog]:
        """Take all messages while the block runs, then close the file."""
        try:
            with log.sink(self.take):
                yield self
        finally:
            self._file.close()


class Console:
    """Standard error during a job. Quiet jobs show errors only, so that cron mails exactly what went wrong."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._gone = False

    def take(self, line: str) -> None:
        """Write one line; when nobody reads any more (``vzdump | head``) the job is asked to end, once."""
        if self._gone or (self._quiet and not line.startswith("ERROR: ")):
            return
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except BrokenPipeError:
            self._gone = True
            signal.raise_signal(signal.SIGTERM)  # held back while something is cleaned up


def logged(argv: Sequence[str]) -> None:
    """Run a program and log what it says, line by line, as it comes.

    Raises:
        RunError: it failed. MissingTool: there is no such program.
    """
    process = run.popen(argv, stdout=run.PIPE, stderr=run.STDOUT, tied=True)
    last = ""
    with process:
        try:
            for raw in process.stdout or ():
                last = raw.decode("utf-8", "replace").rstrip("\r\n")
                info(last)
        except BaseException:
            run.kill_group(process)
            raise
    if process.returncode:
        raise RunError(argv, process.returncode, last)
