"""Programs that write data to a descriptor or read it from one, watched until they end; and how far they are."""

from __future__ import annotations

import os
import re
import select
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pvetools.system import log, run
from pvetools.system.errors import RunError
from pvetools.system.units import human_size

_STEP = 10.0  # percent between two lines of progress
_LOOK = 0.5  # seconds between two looks at a program


class Meter:
    """Tells how much of a volume has been moved: one line a step, and the terminal's bar."""

    def __init__(self, total: int, label: str = "transfer") -> None:
        self._total, self._label = total, label
        self._shown = 0.0

    def at(self, done: int) -> None:
        """So much is done."""
        if not self._total:
            return
        done = min(done, self._total)
        percent = 100 * done / self._total
        log.progress(self._label, done, self._total)
        if percent >= self._shown + _STEP or (done == self._total and self._shown < 100):
            self._shown = percent
            log.emit(f"transferred {human_size(done)} of {human_size(self._total)} ({percent:.2f}%)")


def stream(
    argv: Sequence[str | os.PathLike[str]], *, stdin: int | None = None, stdout: int | None = None, total: int = 0
) -> str:
    """Run a program with descriptors of ours to its end; gives what it said on standard error.

    It is ended when this process is interrupted, and killed when this one is killed.

    Args:
        argv: program and arguments.
        stdin: what it reads; nothing by default.
        stdout: what it writes to; nowhere by default.
        total: bytes that it will move, for the progress.

    Raises:
        RunError: with its words. MissingTool.
    """
    words = [os.fspath(word) for word in argv]
    source = run.DEVNULL if stdin is None else stdin
    target = run.DEVNULL if stdout is None else stdout
    with tempfile.TemporaryFile() as errors:
        process, meter = run.popen(words, stdin=source, stdout=target, stderr=errors, tied=True), Meter(total)
        try:
            code = _watched(process, meter, "rchar" if stdout is None else "wchar")
        except BaseException:
            run.end_group(process)
            raise
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if code:
        raise RunError(words, code, said)
    meter.at(total)
    return said


def _watched(process: run.Process, meter: Meter, counter: str) -> int:
    """Wait for a program's end; what it has read or written meanwhile is told by the kernel."""
    watch = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        while not poll.poll(_LOOK * 1000):
            meter.at(_counted(process.pid, counter))
        return process.wait()
    finally:
        os.close(watch)


def _counted(pid: int, counter: str) -> int:
    try:
        found = re.search(rf"^{counter}: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)
    except OSError:
        return 0  # it has just ended
    return int(found[1]) if found else 0
