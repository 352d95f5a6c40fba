"""Questions in children: answers, errors, messages, and what does not come in time."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pvetools.system import apart, lock, log
from pvetools.system.errors import PveError, Refused


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    return tmp_path


def test_answers_come_by_name_in_the_order_of_the_questions() -> None:
    found = apart.ask({"slow": lambda: time.sleep(0.2) or 1, "quick": lambda: {"two": [2]}, "none": lambda: None}, 10)
    assert list(found.items()) == [
        ("slow", apart.Answer(1)), ("quick", apart.Answer({"two": [2]})), ("none", apart.Answer(None)),
    ]  # fmt: skip


def test_nothing_to_ask_is_no_error() -> None:
    assert apart.ask({}, 1) == {}


def test_all_are_asked_at_once() -> None:
    start = time.monotonic()
    apart.ask({f"q{number}": lambda: time.sleep(0.5) for number in range(20)}, 10)
    assert time.monotonic() - start < 6  # one after the other would take 10 s


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PveError("no such thing"), "no such thing"),
        (Refused("not here"), "not here"),
        (OSError(5, "Input/output error", "/mnt/x"), "[Errno 5] Input/output error: '/mnt/x'"),
        (ValueError("wrong"), "internal error: ValueError: wrong"),
    ],
)
def test_an_error_is_an_answer(error: Exception, said: str) -> None:
    assert apart.ask({"one": lambda: fail(error), "two": lambda: 2}, 10) == {
        "one": apart.Answer(error=said), "two": apart.Answer(2),
    }  # fmt: skip


@pytest.mark.parametrize(
    "end", [lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: sys.exit(1)]
)
def test_a_child_that_ends_without_an_answer_is_told(end) -> None:
    found = apart.ask({"one": end, "two": lambda: 2}, 10)
    assert found["one"].error == "the process that asked it ended without an answer"
    assert found["two"].value == 2


def test_messages_and_warnings_are_repeated_here() -> None:
    lines: list[str] = []
    before = log.warnings()

    def speak() -> None:
        log.emit("plain")
        log.warn("odd")

    with log.sink(lines.append):
        apart.ask({"one": speak}, 10)
    assert lines == ["plain", "WARN: odd"]
    assert log.warnings() == before + 1


def test_large_answers_come_whole() -> None:
    assert apart.ask({"one": lambda: "x" * 10_000_000}, 30)["one"].value == "x" * 10_000_000


def children() -> set[str]:
    """Children of this process, ended ones that nobody waited for included."""
    found = Path("/proc/self/task").glob("*/children")
    return {pid for path in found for pid in path.read_text().split()}


def test_one_that_takes_too_long_is_killed_and_the_others_are_there() -> None:
    before, start = children(), time.monotonic()
    found = apart.ask({"late": lambda: time.sleep(60), "two": lambda: os.getpid()}, 2)
    assert time.monotonic() - start < 20
    assert found["late"] == apart.Answer(error="no answer within 2 seconds")
    assert found["two"].value != os.getpid()
    assert children() <= before


def test_a_child_keeps_no_lock_and_no_file_of_its_parent(root: Path) -> None:
    with (root / "open").open("w") as file, lock.locked(root / "lock"):
        number = file.fileno()

        def looked() -> list[Path]:
            return [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if int(fd.name) > 2 and fd.is_symlink()]

        def written() -> None:
            os.write(number, b"x")

        found = apart.ask({"files": looked, "write": written}, 10)
    assert [name for name in found["files"].value if not name.name.startswith("pipe:")] == []
    assert "Bad file descriptor" in found["write"].error
    fd = os.open(root / "lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_a_program_that_inherits_a_lock_holds_it(root: Path) -> None:
    from pvetools.system import run
    from pvetools.system.errors import LockTimeout

    with lock.handed(root / "lock") as held:
        program = run.popen(["sleep", "30"], pass_fds=(held,))
    try:
        with pytest.raises(LockTimeout), lock.locked(root / "lock", 0.1):
            pass
    finally:
        run.kill_group(program)
    with lock.locked(root / "lock", 1):
        pass


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_programs_of_one_that_takes_too_long_are_killed_with_it(root: Path) -> None:
    from pvetools.system import run

    note = root / "pids"

    def asked() -> None:
        run.run(["sh", "-c", f"sleep 60 & echo $$ $! >{note}; wait"])

    before = children()
    assert apart.ask({"late": asked}, 2)["late"].error == "no answer within 2 seconds"
    pids = [int(word) for word in note.read_text().split()]
    assert len(pids) == 2
    assert not any(lives(pid) for pid in pids)
    assert not apart.hanging("late")
    assert children() <= before


def test_what_outlives_its_killing_is_noted_and_not_asked_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because nothing is killed; otherwise because it waits inside the kernel."""
    from pvetools.system import run

    note = root / "pid"
    monkeypatch.setattr(apart, "_kill", lambda pid: os.kill(pid, signal.SIGKILL) if pid in own() else None)

    def own() -> set[int]:
        return {int(pid) for pid in children()}

    def asked() -> None:
        run.run(["sh", "-c", f"echo $$ >{note}; exec sleep 60"])

    apart.ask({"late": asked}, 2)
    program = int(note.read_text())
    try:
        assert lives(program)
        assert apart.hanging("late") == program
        again = apart.ask({"late": asked}, 2)["late"]
        assert again.error == f"it does not answer: process {program} hangs in it since an earlier time"
    finally:
        os.kill(program, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while lives(program):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert apart.ask({"late": lambda: 3}, 10)["late"].value == 3


class Halved:
    """An answer whose child is killed while it writes it."""

    def __reduce__(self) -> tuple[object, ...]:
        os.kill(os.getpid(), signal.SIGKILL)
        return (Halved, ())


def test_a_child_that_is_killed_while_it_answers_does_not_hide_the_others() -> None:
    found = apart.ask({"one": lambda: ["x" * 1_000_000, Halved()], "two": lambda: 2}, 10)
    assert found["one"].error == "the process that asked it ended in the middle of its answer"
    assert found["two"].value == 2
