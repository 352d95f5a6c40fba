"""Progress lines of a virtual machine's backup, and numbers as its log shows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pvetools.backup import joblog
from pvetools.system import log

INTERVAL = 3.0  # seconds between two lines
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float, digits: int = 1) -> str:
    """``372.4 MiB``; bytes have no decimals."""
    number = 0
    while count >= 1024 and number < len(_UNITS) - 1:
        count, number = count / 1024, number + 1
    return f"{count:.0f} B" if not number else f"{count:.{digits}f} {_UNITS[number]}"


def archive_size(count: int) -> str:
    """``4.35GB``, ``612MB``, ``3KB``: the form of the line ``archive file size``."""
    if count < 1 << 20:
        return f"{count >> 10}KB"
    if count < 1 << 30:
        return f"{count >> 20}MB"
    return f"{count / (1 << 30):.2f}GB" if count < 1 << 40 else f"{count / (1 << 40):.2f}TB"


def duration(seconds: float) -> str:
    """``HH:MM:SS``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """Adds up the disks of one archive and writes a line when the percentage has moved."""

    def __init__(self, sizes: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._total = sum(sizes.values())
        self._state = {name: (0, 0) for name in sizes}
        self._clock = clock
        self._start = self._told_at = clock()
        self._told: tuple[int, int, int] = (-1, 0, 0)  # percent, done, zero
        self._done = self._zero = 0

    def __call__(self, name: str, done: int, zero: int) -> None:
        """A disk has come to ``done`` bytes, ``zero`` of which are zeros."""
        before = self._state[name]
        self._state[name] = (done, zero)
        self._done += done - before[0]
        self._zero += zero - before[1]
        log.progress("backup", self._done, self._total)
        if self._clock() - self._told_at >= INTERVAL:
            self._tell()

    def _tell(self) -> None:
        now = self._clock()
        percent = self._done * 100 // self._total if self._total else 100
        if percent == self._told[0]:
            return
        span = max(now - self._told_at, 0.001)
        read = self._done - self._told[1]
        write = max(0, read - (self._zero - self._told[2]))
        joblog.info(
            f"{percent:3d}% ({size(self._done)} of {size(self._total)}) in {round(now - self._start)}s, "
            f"read: {size(read / span)}/s, write: {size(write / span)}/s"
        )
        self._told_at, self._told = now, (percent, self._done, self._zero)

    def finish(self) -> None:
        """Write the last line and the sums."""
        self._tell()
        seconds = max(self._clock() - self._start, 0.001)
        if self._zero and self._total:
            joblog.info(f"backup is sparse: {size(self._zero, 2)} ({self._zero * 100 // self._total}%) total zero data")
        whole = max(1, round(seconds))
        joblog.info(f"transferred {size(self._done, 2)} in {whole} seconds ({size(self._done / seconds)}/s)")
