"""Several jobs at a time in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pvetools.system import task, workers
from pvetools.system.errors import PveError
from tests.signals import ask_to_end


def _note(path: Path, word: str) -> None:
    with path.open("a") as file:
        file.write(f"{word} {os.getpid()}\n")


def test_each_job_has_a_process_of_its_own_and_they_begin_in_order(tmp_path: Path) -> None:
    jobs = [workers.Job(str(n), lambda n=n: _note(tmp_path / "log", str(n))) for n in range(4)]  # type: ignore[misc]
    assert workers.run(jobs, 1) == []
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [word for word, _ in lines] == ["0", "1", "2", "3"]
    assert len({pid for _, pid in lines} | {str(os.getpid())}) == 5


def test_as_many_jobs_run_at_a_time_as_are_allowed(tmp_path: Path) -> None:
    """Two jobs that wait for each other end only when both run."""

    def meet(name: str, other: str) -> Callable[[], None]:
        def body() -> None:
            os.mkfifo(tmp_path / name)
            (tmp_path / f"{name}.there").touch()
            while not (tmp_path / f"{other}.there").exists():
                os.sched_yield()

        return body

    jobs = [workers.Job("a", meet("a", "b")), workers.Job("b", meet("b", "a")), workers.Job("c", lambda: None)]
    assert workers.run(jobs, 2) == []


def test_a_job_that_fails_is_named_and_its_reason_told(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise PveError("no space")

    def crash() -> None:
        raise ZeroDivisionError("oops")

    jobs = [workers.Job("VM 100", fail), workers.Job("VM 101", lambda: None), workers.Job("VM 102", crash)]
    assert workers.run(jobs, 1) == ["VM 100", "VM 102"]
    assert capfd.readouterr().err == "VM 100: no space\nVM 102: ZeroDivisionError oops\n"


_CODE = """
import sys, time
from pvetools.system import log, task, workers
from pvetools.system.errors import PveError
def body():
    try:
        log.emit("begun")
        time.sleep(60)
    finally:
        log.emit("undone")
try:
    task.run("startall", "", lambda: workers.run(
        [workers.Job(f"VM {n}", lambda n=n: task.run("qmstart", str(n), body)) for n in (100, 101)], 2))
except PveError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.timeout(40)
def test_an_interrupt_reaches_the_jobs_and_waits_until_they_have_undone_their_work(root: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _CODE], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert [process.stderr.readline() for _ in range(2)] == ["begun\n"] * 2
    assert ask_to_end(process) == 130
    assert sorted(process.stderr.read().splitlines())[-2:] == ["undone", "undone"]
    assert {(entry.upid.type, entry.status) for entry in task.archived()} == {
        ("startall", "interrupted by signal"),
        ("qmstart", "interrupted by signal"),
    }


@pytest.mark.timeout(40)
def test_one_job_of_a_running_group_is_stopped_by_itself(root: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _CODE], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert [process.stderr.readline() for _ in range(2)] == ["begun\n"] * 2
    victim = next(entry.upid for entry in task.active() if entry.upid.id == "100")
    task.stop(victim)
    while not task.entry_of(victim).endtime:
        os.sched_yield()
    assert {entry.upid.id for entry in task.active() if not entry.endtime} == {"", "101"}
    process.terminate()
    process.stderr.read()
    assert process.wait(20) == 130
