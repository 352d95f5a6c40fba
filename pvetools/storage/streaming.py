"""Programs that write data to a descriptor or read it from one, watched until they end; and how far they are."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from pvetools.system import log, run
from pvetools.system.errors import PveError, RunError
from pvetools.system.streams import MIB, widen_pipe, write_all
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
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    meter: Meter | None = None,
) -> str:
    """Run a program with descriptors of ours to its end; gives what it said on standard error.

    It is ended when this process is interrupted, and killed when this one is killed.

    Args:
        argv: program and arguments.
        stdin: what it reads; nothing by default.
        stdout: what it writes to; nowhere by default.
        meter: is told how much the program has moved while it runs.

    Raises:
        RunError: with its words. BrokenPipeError: nobody reads what it writes. MissingTool.
    """
    words = [os.fspath(word) for word in argv]
    source = run.DEVNULL if stdin is None else stdin
    target = run.DEVNULL if stdout is None else stdout
    with tempfile.TemporaryFile() as errors:
        process = run.popen(words, stdin=source, stdout=target, stderr=errors, tied=True)
        try:
            code = _watched(process, meter or Meter(0), "rchar" if stdout is None else "wchar")
        except BaseException:
            run.end_group(process)
            raise
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if code == -signal.SIGPIPE and stdout is not None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    if code:
        raise RunError(words, code, said)
    return said


def feed(argv: Sequence[str | os.PathLike[str]], source: int, keep: int) -> bytes:
    """Run a program with what a descriptor gives on its input; gives the last bytes of that, so many at most.

    Raises:
        PveError: the stream can't be read. RunError: the program's words. MissingTool.
    """
    feeder = _Feeder(source, keep)
    outlet, inlet = os.pipe()
    widen_pipe(inlet)
    thread = threading.Thread(target=feeder.run, args=(inlet,))
    thread.start()
    try:
        stream(argv, stdin=outlet)
    finally:
        os.close(outlet)  # the feeder ends when nobody reads any more
        thread.join()
    if feeder.failed:
        raise PveError(f"the stream can't be read: {feeder.failed.strerror}") from feeder.failed
    return feeder.last


class _Feeder:
    """Moves a stream into a pipe, and remembers its end."""

    def __init__(self, source: int, keep: int) -> None:
        self._source, self._keep = source, keep
        self.last = b""
        self.failed: OSError | None = None

    def run(self, inlet: int) -> None:
        """Until the stream ends or nobody reads the pipe; closes it."""
        block = memoryview(bytearray(MIB))
        with os.fdopen(inlet, "wb", 0), contextlib.suppress(BrokenPipeError):  # its reader says why it has gone
            while self._awaited(inlet) and (count := self._read(block)):
                write_all(inlet, block[:count])
                self.last = (self.last + bytes(block[max(0, count - self._keep) : count]))[-self._keep :]

    def _awaited(self, inlet: int) -> bool:
        """Wait for data; False when nobody would read it."""
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(inlet, 0)
        return all(fd != inlet for fd, _ in poll.poll())

    def _read(self, block: memoryview) -> int:
        try:
            return os.readv(self._source, [block])
        except OSError as error:
            self.failed = error
            return 0


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
