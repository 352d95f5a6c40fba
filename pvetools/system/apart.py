"""Questions whose answers may never come, such as those to a dead server's file system: each in a child of its own.

A thread would not do: one that waits inside the kernel keeps the whole process from ending. A child that does not
answer in time is killed with the programs that it started, and left to itself where that does not help; it holds none
of our files, locks or terminals.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pvetools.system import files, log, paths
from pvetools.system.errors import PveError

_PATIENCE = 0.2  # seconds for a killed child and its programs to go
_lost: set[int] = set()


class Answer(NamedTuple):
    """What a question gave; ``error`` says why it gave nothing."""

    value: Any = None
    error: str = ""


class _Child(NamedTuple):
    name: str
    pid: int
    said: bytearray


def ask(questions: Mapping[str, Callable[[], Any]], timeout: float) -> dict[str, Answer]:
    """Ask all questions at once; gives the answers by name, in the order of the questions.

    A question that is still hanging since an earlier time, in whatever process, is not asked again. Messages and
    warnings of the children are repeated here.

    Args:
        questions: functions by names that are unique on this host and fit into a file name.
        timeout: seconds for each.
    """
    answers = dict.fromkeys(questions, Answer())
    _reap()
    with selectors.DefaultSelector() as waiting:
        try:
            for name, question in questions.items():
                if pid := hanging(name):
                    answers[name] = Answer(error=f"it does not answer: process {pid} hangs in it since an earlier time")
                else:
                    _start(name, question, waiting)
            _collect(waiting, time.monotonic() + timeout, answers)
            for key in [*waiting.get_map().values()]:
                answers[key.data.name] = Answer(error=f"no answer within {timeout:g} seconds")
        finally:
            for key in [*waiting.get_map().values()]:
                _forget(key, waiting)
    return answers


def _start(name: str, question: Callable[[], Any], waiting: selectors.BaseSelector) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _answer(question, writing)
    os.close(writing)
    waiting.register(reading, selectors.EVENT_READ, _Child(name, pid, bytearray()))


def _answer(question: Callable[[], Any], writing: int) -> NoReturn:
    """The child: it keeps nothing of its parent open but the pipe for its answer."""
    try:
        os.setsid()  # programs get groups of their own, but stay in this session
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if fd > 2 and fd != writing:
                with contextlib.suppress(OSError):
                    os.close(fd)
        lines: list[str] = []
        with log.only(lines.append):
            answer = _called(question)
        with os.fdopen(writing, "wb") as file:
            pickle.dump((answer, lines), file)
    finally:
        os._exit(0)  # the undo stacks and exit handlers are the parent's


def _called(question: Callable[[], Any]) -> Answer:
    try:
        return Answer(question())
    except (PveError, OSError) as error:
        return Answer(error=str(error) or type(error).__name__)
    except Exception as error:  # our own fault, but not one that may hide the other answers
        return Answer(error=f"internal error: {type(error).__name__}: {error}")


def _collect(waiting: selectors.BaseSelector, deadline: float, answers: dict[str, Answer]) -> None:
    """Read what the children say, until all are through or the time is over."""
    while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
        for key, _ in waiting.select(left):
            data = os.read(key.fd, 1 << 20)
            key.data.said.extend(data)
            if not data:
                waiting.unregister(key.fd)
                os.close(key.fd)
                answers[key.data.name] = _taken(key.data)


def _taken(child: _Child) -> Answer:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child.pid, 0)
    if not child.said:
        return Answer(error="the process that asked it ended without an answer")
    try:
        answer, lines = pickle.loads(child.said)  # noqa: S301 - our own child wrote it
    except (pickle.UnpicklingError, EOFError):  # killed while it wrote
        return Answer(error="the process that asked it ended in the middle of its answer")
    for line in lines:
        if line.startswith("WARN: "):
            log.warn(line.removeprefix("WARN: "))
        else:
            log.emit(line)
    return Answer(*answer)


def _forget(key: selectors.SelectorKey, waiting: selectors.BaseSelector) -> None:
    """Kill a child and what it started; what hangs in the kernel, where no signal reaches it, is noted down."""
    waiting.unregister(key.fd)
    os.close(key.fd)
    child: _Child = key.data
    _kill(child.pid)
    deadline = time.monotonic() + _PATIENCE
    while left := _living(child.pid):
        for pid in left:
            _kill(pid)
        if time.monotonic() > deadline:
            _lost.add(child.pid)
            with contextlib.suppress(OSError):
                place = _note(child.name)
                place.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomic(place, f"{left[0]} {_started(left[0])}\n")
            return
        time.sleep(0.005)
    # only now: until it is waited for, nobody else gets its number, by which its programs are found
    if not _gone(child.pid):
        _lost.add(child.pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _living(child: int) -> list[int]:
    """What still lives of a child and its session, the child itself first."""
    found = [child] if _started(child) else []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != child:
            words = _stat(int(entry.name))
            if words and int(words[3]) == child:
                found.append(int(entry.name))
    return found


def _gone(pid: int) -> bool:
    """Whether a child has come to its end."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _reap() -> None:
    """Let go of children that came to their end after all."""
    _lost.difference_update({pid for pid in _lost if _gone(pid)})


def _note(name: str) -> Path:
    return paths.run_dir() / f"hanging-{name}"


def hanging(name: str) -> int:
    """Process that still hangs with this question; 0: none."""
    text = files.read_text(_note(name))
    if text is None:
        return 0
    pid, _, started = text.strip().partition(" ")
    if pid.isdecimal() and started and _started(int(pid)) == started:
        return int(pid)
    with contextlib.suppress(OSError):
        files.remove(_note(name))
    return 0


def _started(pid: int) -> str:
    """When a living process was started, in the kernel's words; empty for one that is gone."""
    words = _stat(pid)
    return words[19] if words else ""


def _stat(pid: int) -> list[str]:
    """What the kernel tells of a living process, from its state on; empty for one that is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if words[0] in "ZX" else words
