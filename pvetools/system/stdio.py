"""Standard input, output and error, in whatever state they were handed over."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import IO

from pvetools.system.errors import PveError


def complete() -> None:
    """Open those that are closed: otherwise the next file that is opened would become standard output."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def write(text: str) -> None:
    """Write to standard output, with what was written before.

    Raises:
        PveError: it has no room. BrokenPipeError: nobody reads it any more.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_output()
        raise PveError(f"can't write to standard output: {error.strerror}") from error


def complain(text: str) -> None:
    """Write to standard error; where nobody reads it, or it has no room, that is no reason to stop."""
    with suppress(OSError):
        sys.stderr.write(harmless(text, sys.stderr))
        sys.stderr.flush()


def forget_output() -> None:
    """Drop what standard output did not take, and all that is to come."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def settle() -> None:
    """Drop what standard error did not take: at the end of the process it would change the exit status."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def harmless(text: str, place: IO[str]) -> str:
    """On a terminal, signs that steer it are spelled out: notes, names and answers of servers are written by others."""
    if not place.isatty():
        return text
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: repr(match[0])[1:-1], text)
