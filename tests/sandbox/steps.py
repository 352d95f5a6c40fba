"""Kill a tool at each of its steps, to see what it leaves: no hook in production code is needed.

    walk = Walk(root, "qm", "create", "100", "--scsi0", "local:1")
    steps = walk.count()                 # runs it to the end and names the steps
    for number in range(1, len(steps) + 1):
        ...make the state before it again...
        dead = walk.kill_before(number)  # dead.killed, dead.label, dead.orphans

Folders that are made once (below etc/pve, in a storage) are steps of the first run only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox import steps_shim
from tests.sandbox.root import ENTRY, Root

BOOT = "from tests.sandbox import steps_shim; steps_shim.install(); "


@dataclass(frozen=True)
class Ended:
    """How a run under the shim ended."""

    killed: bool
    labels: list[str]
    status: int
    stdout: str
    stderr: str
    orphans: dict[int, str]  # children that outlived the tool: process id -> command line

    @property
    def label(self) -> str:
        """The step before which it was killed, or the last one."""
        return self.labels[-1] if self.labels else "start"


class Walk:
    """One command on one root, to be run to its end or to a chosen step."""

    def __init__(self, root: Root, tool: str, *arguments: object, timeout: float = 120) -> None:
        self.root = root
        self.command = [sys.executable, "-c", BOOT + ENTRY.format(tool=tool), *map(str, arguments)]
        self.timeout = timeout

    @classmethod
    def of_code(cls, root: Root, code: str) -> Walk:
        """The same for a piece of Python instead of a tool."""
        walk = cls(root, "none")
        walk.command = [sys.executable, "-c", BOOT + code]
        return walk

    def count(self) -> list[str]:
        """Run to the end and return the names of the steps; the command has to succeed."""
        ended = self.kill_before(0)
        assert ended.status == 0, f"status {ended.status}: {ended.stderr}{ended.stdout}"
        return ended.labels

    def kill_before(self, number: int, *, linger: float = 5.0, sig: signal.Signals = signal.SIGKILL) -> Ended:
        """Run and be killed (or get another signal) before step `number` (from 1; never when there are fewer).

        Children that the tool leaves get `linger` seconds to end by themselves, then they are killed
        and named in `orphans`.
        """
        log = self.root.path / "var/log/steps"
        environment = {**self.root.environment(), steps_shim.LOG: str(log), steps_shim.KILL: str(number)}
        environment[steps_shim.SIGNAL] = str(int(sig))
        environment["PYTHONHASHSEED"] = "0"  # the same order of steps each time
        said = {name: (self.root.path / "var/log" / f"steps.{name}") for name in ("stdout", "stderr")}
        # Files instead of pipes: a child that outlives the tool would keep a pipe open.
        with said["stdout"].open("wb") as out, said["stderr"].open("wb") as err:
            child = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
            try:
                status = child.wait(self.timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                raise AssertionError(f"step {number}: no end after {self.timeout:.0f} s: {_text(log)}") from None
        return Ended(
            killed=status == -sig,
            labels=_text(log).splitlines(),
            status=status,
            stdout=_text(said["stdout"]),
            stderr=_text(said["stderr"]),
            orphans=_bury(child.pid, linger),
        )


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def session(leader: int) -> dict[int, str]:
    """Living processes of a session: process id -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = words.decode(errors="replace").strip()
    return found


def _bury(leader: int, linger: float) -> dict[int, str]:
    deadline = time.monotonic() + linger
    while (left := session(leader)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left
