"""People at a terminal see bars and colours; pipes and cron see plain lines."""

import os
import pty
import subprocess
import sys

import pytest

SCRIPT = """
from pvetools.cli import app
from pvetools.system import log
with app.shown_progress():
    log.emit("INFO: before")
    log.warn("careful [red]")
    for done in (0, 512, 1024):
        log.progress("backup", done << 20, 1024 << 20)
        log.emit(f"INFO: at {done}")
"""


@pytest.fixture
def environment():
    return {**os.environ, "TERM": "xterm", "COLUMNS": "100"}


def on_terminal(env: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", SCRIPT], stderr=theirs, stdout=subprocess.PIPE, env=env, timeout=60)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert done.returncode == 0
    assert done.stdout == b""
    return shown.decode()


def test_a_terminal_shows_bars_and_coloured_warnings(environment):
    shown = on_terminal(environment)
    assert "\033[33mWARN: careful [red]\033[0m" in shown
    assert "1.0/1.0 GiB" in shown
    assert "backup" in shown
    assert shown.index("INFO: at 512") < shown.index("INFO: at 1024")


def test_no_color_is_respected(environment):
    shown = on_terminal({**environment, "NO_COLOR": "1"})
    assert "WARN: careful [red]" in shown
    assert "\033[33m" not in shown


def test_a_pipe_shows_plain_lines_only(environment):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "INFO: before", "WARN: careful [red]", "INFO: at 0", "INFO: at 512", "INFO: at 1024",
    ]  # fmt: skip
