"""Signals during a backup: cleaning up is never interrupted, and a closed pipe is an error like others."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    """A handler, other than ignoring, is not inherited by programs that are started."""


class Shield:
    """Holds signals back while something is finished; ``pending`` tells afterwards whether one came."""

    def __init__(self) -> None:
        self.pending = False

    def _remember(self, _signum: int, _frame: FrameType | None) -> None:
        self.pending = True

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """Hold signals back while the block runs."""
        before = {number: signal.signal(number, self._remember) for number in _HELD}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """The first request to end raises KeyboardInterrupt; writing to a closed pipe raises BrokenPipeError.

    Further requests are ignored: the job is about to end.
    """
    heard = False

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise KeyboardInterrupt

    wanted = {**dict.fromkeys(_HELD, interrupt), signal.SIGPIPE: _nothing}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undo_stack() -> Iterator[contextlib.ExitStack]:
    """A stack of things to undo when the block fails; undoing is not interrupted. ``pop_all`` at the end keeps all."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack
        except BaseException:
            with Shield().up():
                stack.close()
            raise
