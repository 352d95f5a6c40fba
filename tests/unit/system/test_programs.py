"""Starting programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pvetools.system import run
from pvetools.system.errors import MissingTool, PveError, RunError


def test_output_and_status_are_collected() -> None:
    done = run.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin="ä", check=False)
    assert done == ("ä", "err\n", 3)


def test_a_failing_program_is_told_with_its_own_words() -> None:
    with pytest.raises(RunError) as caught:
        run.run(["sh", "-c", "echo no space left >&2; exit 7"])
    assert str(caught.value) == "command 'sh' failed: no space left (exit code 7)"
    assert (caught.value.code, caught.value.stderr) == (7, "no space left")


def test_a_program_that_was_killed_is_told_with_its_signal() -> None:
    with pytest.raises(RunError, match="signal 9"):
        run.run(["sh", "-c", "kill -9 $$"])


def test_a_missing_program_is_told_with_its_package() -> None:
    with pytest.raises(MissingTool) as caught:
        run.require("qemu-img-of-nobody")
    assert str(caught.value).endswith("apt install qemu-img-of-nobody")
    assert run.PACKAGES["qemu-img"] == "qemu-utils"
    assert run.PACKAGES["multipathd"] == "multipath-tools"


def test_a_program_that_takes_too_long_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(PveError, match=r"command 'sleep' did not end within 0\.2 seconds"):
        run.run(["sleep", "20"], timeout=0.2)
    assert time.monotonic() - start < 10


def test_children_get_a_scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    words = run.run(["env"], env={"MORE": "1"}).stdout.split()
    assert "MORE=1" in words
    assert "LC_ALL=C.UTF-8" in words
    assert not any(word.startswith("SECRET=") for word in words)


def test_a_program_in_a_system_folder_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert run.find("sh") in ("/usr/bin/sh", "/bin/sh")


def test_words_are_passed_as_they_are_without_a_shell() -> None:
    assert run.run(["printf", "%s|", "a b", "$HOME", "*", ";"]).stdout == "a b|$HOME|*|;|"


def test_undecodable_output_survives_a_round_trip() -> None:
    text = run.run(["printf", "\\377x"]).stdout
    assert run.run(["cat"], stdin=text).stdout == text


def test_a_streaming_program_gives_its_pipes() -> None:
    process = run.popen(["cat"], stdin=run.PIPE, stdout=run.PIPE)
    out, _ = process.communicate(b"data", timeout=20)
    assert (out, process.returncode) == (b"data", 0)


def test_an_interactive_program_gives_a_shells_status() -> None:
    assert run.interactive(["sh", "-c", "exit 5"]) == 5
    assert run.interactive(["sh", "-c", "kill -15 $$"]) == 128 + 15


def test_file_descriptors_are_passed_on_request() -> None:
    read, write = os.pipe()
    os.write(write, b"hello")
    os.close(write)
    assert run.run(["cat", f"/proc/self/fd/{read}"], pass_fds=[read]).stdout == "hello"
    os.close(read)


def test_a_program_that_takes_too_long_goes_with_its_helpers(tmp_path: Path) -> None:
    """Such as ``mount``, which lets another program do the work."""
    note = tmp_path / "helper"
    start = time.monotonic()
    with pytest.raises(PveError, match=r"command 'sh' did not end within 0\.5 seconds"):
        run.run(["sh", "-c", f"sleep 60 & echo $! >{note}; wait"], timeout=0.5)
    assert time.monotonic() - start < 5
    deadline = time.monotonic() + 5
    while (state := _state(int(note.read_text()))) not in ("", "Z"):
        assert time.monotonic() < deadline, f"the helper is in state {state} after 5 s"
        time.sleep(0.01)


def test_an_interrupted_program_goes_with_its_helpers(tmp_path: Path) -> None:
    note = tmp_path / "helper"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(KeyboardInterrupt):
            run.run(["sh", "-c", f"sleep 60 & echo $! >{note}; wait"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    deadline = time.monotonic() + 5
    while (state := _state(int(note.read_text()))) not in ("", "Z"):
        assert time.monotonic() < deadline, f"the helper is in state {state} after 5 s"
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


WHOLE = """\
import sys
from pvetools.system import run
run.run(["sh", "-c", "echo > $0/begun; sleep 0.3; echo > $0/done", sys.argv[1]], whole=True, timeout=float(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_change_is_brought_to_its_end_whoever_is_asked_to_end(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WHOLE, tmp_path, "60"], start_new_session=True)
    until(lambda: (tmp_path / "begun").exists())
    os.killpg(process.pid, number)
    assert process.wait(20) != 0
    until(lambda: (tmp_path / "done").exists())


def test_what_a_change_starts_hears_signals() -> None:
    blocked = run.run(["sh", "-c", "grep SigBlk /proc/self/status"], whole=True).stdout.split()[1]
    assert int(blocked, 16) & (1 << signal.SIGTERM - 1) == 0


def test_a_change_that_takes_too_long_goes_on(tmp_path: Path) -> None:
    with pytest.raises(PveError, match=r"'sh' did not end within 0.1 seconds; it goes on as process \d+"):
        run.run(["sh", "-c", "sleep 0.3; echo > $0/done", tmp_path], whole=True, timeout=0.1)
    until(lambda: (tmp_path / "done").exists())


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.01)
