"""Starting in a child process: its result, and interrupts while it works."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pvetools.guest.lxc import runtime


def test_the_result_comes_back() -> None:
    assert runtime._in_child(lambda: True)
    assert not runtime._in_child(lambda: False)


def test_a_child_that_fails_or_dies_has_not_started_anything(capfd: pytest.CaptureFixture[str]) -> None:
    assert not runtime._in_child(lambda: bool(1 / 0))
    assert not runtime._in_child(lambda: os.kill(os.getpid(), signal.SIGKILL) is None)
    capfd.readouterr()


def test_an_interrupt_waits_for_the_child(tmp_path: Path) -> None:
    def work() -> bool:
        waiting = Path(f"/proc/{os.getppid()}/wchan")
        deadline = time.monotonic() + 20
        while "wait" not in waiting.read_text():  # in fork() itself, Python would lose the interrupt
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.2)
        (tmp_path / "done").touch()
        return True

    with pytest.raises(KeyboardInterrupt):
        runtime._in_child(work)
    assert (tmp_path / "done").exists()
