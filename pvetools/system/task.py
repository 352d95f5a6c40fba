"""Tasks: every longer change has a UPID, a log file and an entry in the list, in the places Proxmox VE uses.

``var/log/pve/tasks/active`` lists running and just ended tasks, ``index`` the ended ones, and
``tasks/X/UPID`` holds a task's log, whose last line is its result (X: last hex digit of the start time).
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from pvetools.system import files, lock, log, paths
from pvetools.system.errors import Interrupted, NotFound, PveError
from pvetools.system.run import signals_held

KEEP_IN_ACTIVE = 25
ROTATE_AT = 1 << 20  # bytes of the index; older entries and their logs are dropped after two times as many
NO_RESULT = "unexpected status"
_UPID = re.compile(
    r"UPID:(?P<node>[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?):(?P<pid>[0-9A-Fa-f]{8}):(?P<pstart>[0-9A-Fa-f]{8,9}):"
    r"(?P<starttime>[0-9A-Fa-f]{8}):(?P<type>[^:\s/]+):(?P<id>[^:\s/]*):(?P<user>[^:\s/]+):"
)


class Upid(NamedTuple):
    """Name of a task: where, which process, since when, what for, by whom."""

    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    user: str

    def __str__(self) -> str:
        return (
            f"UPID:{self.node}:{self.pid:08X}:{self.pstart:08X}:{self.starttime:08X}:{self.type}:{self.id}:{self.user}:"
        )


class Entry(NamedTuple):
    """One line of the task lists; ``endtime`` is 0 and ``status`` empty while it runs."""

    upid: Upid
    endtime: int = 0
    status: str = ""


def parse_upid(text: str) -> Upid:
    """Read a UPID.

    Raises:
        PveError: malformed.
    """
    match = _UPID.fullmatch(text)
    if not match:
        raise PveError(f"unable to parse worker upid '{text}'")
    pid, pstart, start = (int(match[part], 16) for part in ("pid", "pstart", "starttime"))
    return Upid(match["node"], pid, pstart, start, match["type"], match["id"], match["user"])


def log_path(upid: Upid) -> Path:
    """Log file of a task."""
    return paths.log_dir() / "tasks" / f"{upid.starttime & 0xF:X}" / str(upid)


def process_start(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 when it does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *fields = stat.rsplit(")", 1)[1].split()
    return 0 if state == "Z" else int(fields[18])


def is_alive(upid: Upid) -> bool:
    """Whether the process of a task still runs."""
    return upid.pid > 0 and process_start(upid.pid) == upid.pstart


def result_in_log(upid: Upid) -> str:
    """Result that the log's last line states; ``unexpected status`` when the process died without one."""
    try:
        with log_path(upid).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            last = file.read().decode("utf-8", "replace").rstrip("\n").rpartition("\n")[2]
    except OSError:
        return NO_RESULT
    match = re.match(r"TASK (?:(OK)|ERROR: (.*)|(WARNINGS: \d+))$", last)
    return next((part for part in match.groups() if part is not None), "") if match else NO_RESULT


# -- the lists ---------------------------------------------------------------------------------------------------------


def _tasks_dir() -> Path:
    return paths.log_dir() / "tasks"


def _read_active() -> list[Entry]:
    entries: list[Entry] = []
    for line in (files.read_text(_tasks_dir() / "active") or "").splitlines():
        match = re.match(r"(\S+) [01](?: ([0-9A-Fa-f]{8}) (.*))?$", line)
        if match and _UPID.fullmatch(match[1]):
            entries.append(Entry(parse_upid(match[1]), int(match[2] or "0", 16), match[3] or ""))
    return entries


def _write_active(entries: list[Entry]) -> None:
    running = [entry for entry in entries if not entry.endtime]
    ended = sorted((entry for entry in entries if entry.endtime), key=lambda entry: -entry.endtime)
    lines = [f"{entry.upid} 0" for entry in running]
    lines += [f"{entry.upid} 1 {entry.endtime:08X} {entry.status}" for entry in ended[:KEEP_IN_ACTIVE]]
    files.write_atomic(_tasks_dir() / "active", "\n".join(lines) + "\n")


def _archive(entry: Entry) -> None:
    path = _tasks_dir() / "index"
    with path.open("a", errors="surrogateescape") as index:
        index.write(f"{entry.upid} {entry.endtime:08X} {entry.status}\n")
    if path.stat().st_size > ROTATE_AT:
        _rotate(path)


def _rotate(index: Path) -> None:
    older = index.with_name("index.1")
    for entry in _entries_backwards(older):
        log_path(entry.upid).unlink(missing_ok=True)
    index.replace(older)


def _register(upid: Upid) -> None:
    with lock.config_lock("tasks"):
        _write_active([*_bury_dead(_read_active()), Entry(upid)])


def _finish(upid: Upid, status: str) -> None:
    ended = Entry(upid, int(time.time()), status.replace("\n", " "))
    with lock.config_lock("tasks"):
        _archive(ended)
        _write_active([entry for entry in _bury_dead(_read_active()) if entry.upid != upid] + [ended])


def _bury_dead(entries: list[Entry]) -> list[Entry]:
    """Move tasks whose process died without a result to the ended ones."""
    return [entry if entry.endtime or is_alive(entry.upid) else _buried(entry) for entry in entries]


def _buried(entry: Entry) -> Entry:
    dead = _dead(entry.upid)
    _archive(dead)
    return dead


def _dead(upid: Upid) -> Entry:
    """A task whose process is gone: it ended when its log was written last."""
    try:
        endtime = int(log_path(upid).stat().st_mtime)
    except OSError:
        endtime = upid.starttime
    return Entry(upid, max(endtime, 1), result_in_log(upid))


def active() -> list[Entry]:
    """Running tasks and the newest ended ones; dead processes are shown with ``unexpected status``."""
    return [entry if entry.endtime or is_alive(entry.upid) else _dead(entry.upid) for entry in _read_active()]


def ended() -> Iterator[Entry]:
    """Ended tasks, newest first: those that died without anybody noticing yet, then the archived ones."""
    yield from (_dead(entry.upid) for entry in _read_active() if not entry.endtime and not is_alive(entry.upid))
    yield from archived()


def archived() -> Iterator[Entry]:
    """Ended tasks that are in the index, newest first."""
    for name in ("index", "index.1"):
        yield from _entries_backwards(_tasks_dir() / name)


def _entries_backwards(path: Path) -> Iterator[Entry]:
    for line in reversed((files.read_text(path) or "").splitlines()):
        match = re.match(r"(\S+)(?: ([0-9A-Fa-f]{8})(?: (.*))?)?$", line)
        if match and _UPID.fullmatch(match[1]):
            yield Entry(parse_upid(match[1]), int(match[2] or "0", 16), match[3] or "")


# locks in a guest's file -> types of the tasks that write them
LOCKERS = {"backup": ("vzdump",), "create": ("qmcreate", "qmrestore", "vzcreate", "vzrestore")}


def owner_of(vmid: int, held: str) -> Entry | None:
    """The task that wrote a lock into a guest's file: the newest one of a fitting type that runs or died at work.

    A backup job of several guests names none of them; it may be the owner, too.
    """
    idents = (str(vmid), "") if held == "backup" else (str(vmid),)
    found = [
        entry
        for entry in active()
        if entry.upid.type in LOCKERS.get(held, ())
        and entry.upid.id in idents
        and entry.upid.pid != os.getpid()
        and (not entry.endtime or entry.status == NO_RESULT)
    ]
    return max(found, key=lambda entry: entry.upid.starttime, default=None)


def entry_of(upid: Upid) -> Entry:
    """A task's place in the lists, whether it runs or has ended.

    Raises:
        NotFound: no log of that task.
    """
    if not log_path(upid).exists():
        raise NotFound(f"no such task '{upid}'")
    for entries in (active(), archived()):  # a process may go on after the end of one of its tasks
        for entry in entries:
            if entry.upid == upid:
                return entry
    dead = _dead(upid)
    return Entry(upid) if is_alive(upid) and dead.status == NO_RESULT else dead  # just about to be listed


# -- running -----------------------------------------------------------------------------------------------------------


def run(kind: str, ident: str, body: Callable[[], object], user: str = "root@pam") -> str:
    """Run a function as a task in this process; its messages go to standard error and to the task's log.

    Returns:
        The UPID, when the body succeeded.

    Raises:
        PveError: what the body raised; Interrupted after SIGINT, SIGTERM or SIGHUP.
    """
    gc.enable()  # tools switch it off to start fast
    pid = os.getpid()
    ident = re.sub(r"[:\s/]", "-", ident)
    upid = Upid(paths.node(), pid, process_start(pid), int(time.time()), kind, ident, user)
    while log_path(upid).exists():  # two tasks of one kind within one second in one process
        upid = upid._replace(starttime=upid.starttime + 1)
    log_path(upid).parent.mkdir(parents=True, exist_ok=True)
    with log_path(upid).open("a", errors="surrogateescape") as file:

        def to_file(line: str) -> None:
            file.write(line + "\n")
            file.flush()

        status = NO_RESULT
        with interruptible() as deaf:
            _register(upid)
            try:
                with log.sink(to_file):
                    status = _run_body(body)
                deaf()
            except BaseException as error:
                deaf()
                status = _reason(error)
                to_file(f"TASK ERROR: {status}")
                if isinstance(error, KeyboardInterrupt):
                    raise Interrupted from None
                raise
            else:
                to_file(f"TASK {status}")
            finally:
                _finish(upid, status)
    return str(upid)


def _run_body(body: Callable[[], object]) -> str:
    before = log.warnings()
    body()
    counted = log.warnings() - before
    return f"WARNINGS: {counted}" if counted else "OK"


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(Interrupted())
    return (str(error) or type(error).__name__).replace("\n", " ")


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Turn SIGTERM and SIGHUP into the same KeyboardInterrupt that Ctrl-C raises, so that undo stacks unwind.

    That happens once: further signals are ignored, so that nothing is undone by halves. The function that the block
    gets makes it deaf to all of them. Python swallows what a handler raises inside a finalizer: it is raised again.
    """
    heard = over = False

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise KeyboardInterrupt

    def deaf() -> None:
        nonlocal heard, over
        heard = over = True

    def swallowed(lost: sys.UnraisableHookArgs) -> None:
        nonlocal heard
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            report(lost)
            return
        if not over:
            heard = False
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # raised again once the finalizer has ended

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    report, sys.unraisablehook = sys.unraisablehook, swallowed
    try:
        yield deaf
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Let signals wait until the block has ended: for making something together with noting how it is undone."""
    return signals_held()


def stop(upid: Upid) -> None:
    """Ask a running task to end (SIGTERM); it undoes what it began.

    Raises:
        NotFound: no such task. PveError: it does not run here.
    """
    if upid.node != paths.node() or entry_of(upid).endtime:
        raise PveError(f"task '{upid}' is not running")
    os.kill(upid.pid, signal.SIGTERM)
