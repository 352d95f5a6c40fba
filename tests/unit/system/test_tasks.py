"""Tasks: log, lists, results, ends of every sort."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pvetools.system import log, paths, task
from pvetools.system.errors import NotFound, PveError
from tests.signals import ask_to_end


def _upid(**changes: Any) -> task.Upid:
    pid = os.getpid()
    return task.Upid(paths.node(), pid, task.process_start(pid), 1_700_000_000, "qmstart", "100", "root@pam")._replace(
        **changes
    )


def _index(root: Path) -> list[str]:
    return (root / "var/log/pve/tasks/index").read_text().splitlines()


def test_a_task_that_succeeds_leaves_its_log_and_an_entry(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = task.run("qmstart", "100", lambda: log.emit("working"))
    upid = task.parse_upid(name)
    assert (upid.type, upid.id, upid.user, upid.node, upid.pid) == (
        "qmstart",
        "100",
        "root@pam",
        paths.node(),
        os.getpid(),
    )
    folder = root / "var/log/pve/tasks" / name.split(":")[4][-1]
    assert (folder / name).read_text() == "working\nTASK OK\n"
    assert capsys.readouterr().err == "working\n"
    assert [line.split(" ")[0] for line in _index(root)] == [name]
    entry = task.entry_of(upid)
    assert entry.status == "OK"
    assert entry.endtime >= upid.starttime
    assert task.active() == [entry]


def test_a_task_that_fails_tells_why_in_log_and_list_and_raises(root: Path) -> None:
    def body() -> None:
        raise PveError("no\nspace")

    with pytest.raises(PveError, match="no\nspace"):
        task.run("vzcreate", "101", body)
    (entry,) = task.archived()
    assert entry.status == "no space"
    assert task.log_path(entry.upid).read_text() == "TASK ERROR: no space\n"
    assert task.result_in_log(entry.upid) == "no space"


def test_warnings_are_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        log.warn("a")
        log.warn("b")

    name = task.run("vzdump", "", body)
    assert task.entry_of(task.parse_upid(name)).status == "WARNINGS: 2"
    assert capsys.readouterr().err == "WARN: a\nWARN: b\n"


def test_a_running_task_is_listed_as_such_even_beside_an_ended_one_of_its_process(root: Path) -> None:
    seen: dict[str, task.Entry] = {}

    def body() -> None:
        inner = task.parse_upid(task.run("qmstart", "100", lambda: None))
        outer = next(entry.upid for entry in task.active() if not entry.endtime)
        seen.update(inner=task.entry_of(inner), outer=task.entry_of(outer))

    task.run("startall", "", body)
    assert (seen["inner"].upid.type, seen["inner"].status) == ("qmstart", "OK")
    assert (seen["outer"].upid.type, seen["outer"].endtime, seen["outer"].status) == ("startall", 0, "")


def test_two_tasks_of_one_kind_in_one_second_have_two_names(root: Path) -> None:
    assert task.run("qmstart", "100", lambda: None) != task.run("qmstart", "100", lambda: None)


def test_what_a_task_works_on_cannot_break_its_name(root: Path) -> None:
    name = task.run("imgdel", "local:iso/a b.iso", lambda: None)
    assert task.parse_upid(name).id == "local-iso-a-b.iso"


_WAITING = """
import sys, time
from pvetools.system import paths, task, log
from pvetools.system.errors import PveError
paths.ensure_tree()
def body():
    try:
        log.emit("begun")
        time.sleep(60)
    finally:
        log.emit("undone")
try:
    task.run("qmstart", "100", body)
except PveError as error:
    sys.exit(error.exit_code)
"""


def _waiting() -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _WAITING], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_a_task_which_undoes_what_it_began(root: Path, number: int) -> None:
    process = _waiting()
    assert ask_to_end(process, number) == 130
    (entry,) = task.archived()
    assert entry.status == "interrupted by signal"
    assert task.log_path(entry.upid).read_text() == "begun\nundone\nTASK ERROR: interrupted by signal\n"


def test_a_running_task_of_another_process_is_stopped(root: Path) -> None:
    process = _waiting()
    (entry,) = task.active()
    assert entry.endtime == 0
    task.stop(entry.upid)
    assert process.wait(20) == 130
    with pytest.raises(PveError, match="is not running"):
        task.stop(entry.upid)


def test_a_task_whose_process_was_killed_is_shown_as_ended_without_a_result(root: Path) -> None:
    process = _waiting()
    process.kill()
    process.wait(20)
    (entry,) = task.active()
    assert (entry.status, bool(entry.endtime)) == ("unexpected status", True)
    assert task.entry_of(entry.upid) == entry
    task.run("qmstop", "100", lambda: None)  # the next task moves it to the ended ones
    assert [found.status for found in task.archived()] == ["OK", "unexpected status"]


def test_the_newest_ended_tasks_stay_in_the_list_of_active_ones(root: Path) -> None:
    for number in range(task.KEEP_IN_ACTIVE + 3):
        task.run("qmstart", str(number), lambda: None)
    assert len(task.active()) == task.KEEP_IN_ACTIVE
    assert [entry.upid.id for entry in task.archived()][:2] == [
        str(task.KEEP_IN_ACTIVE + 2),
        str(task.KEEP_IN_ACTIVE + 1),
    ]


def test_an_index_that_grows_too_long_drops_its_oldest_half_with_the_logs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "ROTATE_AT", 200)
    names = [task.run("qmstart", str(number), lambda: None) for number in range(9)]
    kept = [str(entry.upid) for entry in task.archived()]
    assert kept == names[::-1][: len(kept)]
    assert 3 <= len(kept) < 9
    assert [task.log_path(task.parse_upid(name)).exists() for name in names] == [name in kept for name in names]


def test_damaged_lines_of_the_lists_are_skipped(root: Path) -> None:
    name = task.run("qmstart", "100", lambda: None)
    for file in ("active", "index"):
        path = root / "var/log/pve/tasks" / file
        path.write_text(f"garbage\nUPID:x:1 0\n\n{path.read_text()}")
    assert [str(entry.upid) for entry in task.active()] == [name]
    assert [str(entry.upid) for entry in task.archived()] == [name]


def test_a_task_nobody_knows_is_not_found(root: Path) -> None:
    with pytest.raises(NotFound):
        task.entry_of(_upid())


@pytest.mark.parametrize("text", ["", "UPID:", "UPID:n:1:2:3:t:i:u:", f"{_upid()}x", str(_upid(type="a/b"))])
def test_a_malformed_name_is_refused(text: str) -> None:
    with pytest.raises(PveError, match="unable to parse worker upid"):
        task.parse_upid(text)


def test_tasks_that_start_and_end_at_the_same_time_all_find_their_place(root: Path) -> None:
    code = "from pvetools.system import task\nfor n in range(10): task.run('qmstart', str(n), lambda: None)"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(30) for process in processes] == [0] * 4
    assert len(_index(root)) == 40
    assert all(entry.endtime <= time.time() for entry in task.archived())
    assert not list((root / "var/log/pve/tasks").glob(".*"))
