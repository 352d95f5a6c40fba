"""Several jobs at a time, each in a process of its own, so that each can be a task that is stopped by itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from pvetools.system import log, task
from pvetools.system.errors import PveError


class Job(NamedTuple):
    """A function with a name for messages."""

    label: str
    body: Callable[[], object]


def run(jobs: Sequence[Job], limit: int) -> list[str]:
    """Run jobs in forked processes, at most ``limit`` at a time; gives the labels of those that failed.

    A job's error is one line in the messages. When this process is interrupted, the jobs are interrupted as well and
    waited for.
    """
    waiting, running, failed = list(reversed(jobs)), dict[int, Job](), list[str]()
    with task.interruptible():
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    job = waiting.pop()
                    running[_fork(job)] = job
                pid, status = os.wait()
                if (ended := running.pop(pid, None)) and status:
                    failed.append(ended.label)
        except BaseException:
            _end(list(running))
            raise
    return failed


def _fork(job: Job) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        job.body()
        code = 0
    except PveError as error:
        log.emit(f"{job.label}: {error}")
    except BaseException as error:
        log.emit(f"{job.label}: {type(error).__name__} {error}")
    finally:
        sys.stderr.flush()
        os._exit(code)  # the undo stacks of the parent are not ours to unwind


def _end(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
