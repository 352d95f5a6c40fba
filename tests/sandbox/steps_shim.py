"""Runs inside of a pvetools process under test: counts its steps and kills (or signals) it before the n-th.

A step is a call of a watched module's public function, the return of one that changed something outside of the
process, a child process that has just been started, or a change of the file tree below the root (by audit events,
so that none is forgotten).  Steps of the same name that follow each other directly count once: polling does not move
the numbers.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

LOG = "PVETOOLS_STEPS_LOG"
KILL = "PVETOOLS_STEPS_KILL"
SIGNAL = "PVETOOLS_STEPS_SIGNAL"
WATCHED = (
    "pvetools.system.run",
    "pvetools.system.files",
    "pvetools.guest.qemu.hypervisor",
    "pvetools.guest.lxc.runtime",
)
# These only look: a kill before them is a kill before the step that follows.
LOOKS = {"environment", "find", "require", "read_text", "sync_folder"}
# What these did is there when they return: that is a step of its own.
CHANGES = {
    "hypervisor.create", "hypervisor.destroy", "hypervisor.begin_backup", "hypervisor.abort_backup",
    "hypervisor.suspend", "hypervisor.resume", "runtime.start", "runtime.stop", "runtime.freeze", "runtime.thaw",
}  # fmt: skip
STARTED_AFTER = 0.02  # seconds after which a signal comes that is due when a child has been started
TREE_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
# Task logs, locks and sockets: what a kill leaves of these is no state.
UNCOUNTED = ("/var/log/", "/run/")


class Counter:
    """The steps so far; kills the process when its number comes, or signals it then and at every later step.

    SIGINT goes to its whole group, as from a terminal.
    """

    def __init__(self, log: str, kill: int, number: int, root: str) -> None:
        self.kill = kill
        self.signal = number
        self.root = root
        self.owner = os.getpid()
        self.number = 0
        self.last = ""
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def step(self, label: str) -> None:
        label = label.replace(self.root, "")
        if os.getpid() != self.owner:  # a child that asks a question keeps none of our files open
            return
        if label == self.last or any(f" {place}" in label for place in UNCOUNTED):
            return
        self.last = label
        self.number += 1
        os.write(self.log, f"{label}\n".encode(errors="replace"))
        if self.number == self.kill or 0 < self.kill < self.number:
            self._end(label)

    def _end(self, label: str) -> None:
        if self.signal != signal.SIGKILL and label.startswith("started "):
            # Not inside of subprocess.Popen: nobody would know the child. No thread: it would share mounts.
            signal.signal(signal.SIGALRM, lambda _number, _frame: self._send())
            signal.setitimer(signal.ITIMER_REAL, STARTED_AFTER)
        else:
            self._send()

    def _send(self) -> None:
        if self.signal == signal.SIGINT:
            os.killpg(0, self.signal)
        else:
            os.kill(os.getpid(), self.signal)


def _describe(function: str, arguments: Sequence[Any]) -> str:
    first = arguments[0] if arguments else ""
    if isinstance(first, list | tuple):
        words = [os.fspath(first[0]).rpartition("/")[2], *map(str, first[1:2])] if first else []
        return f"{function} {' '.join(words)}"
    return f"{function} {first}" if isinstance(first, str | int | os.PathLike) else function


def _wrapped(counter: Counter, label: str, function: Callable[..., Any], skip: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def counted(*arguments: Any, **named: Any) -> Any:
        counter.step(_describe(label, arguments[skip:]))
        result = function(*arguments, **named)
        if label in CHANGES:
            counter.step(f"{label} done")
        return result

    return counted


def watch(counter: Counter, module: ModuleType) -> None:
    """Wrap the public functions of a module, and the public methods of its classes."""
    short = module.__name__.rpartition(".")[2]
    for name, thing in list(vars(module).items()):
        if name.startswith("_") or name in LOOKS or getattr(thing, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(thing):
            setattr(module, name, _wrapped(counter, f"{short}.{name}", thing, 0))
        elif inspect.isclass(thing) and not issubclass(thing, BaseException | tuple):
            for key, method in list(vars(thing).items()):
                if inspect.isfunction(method) and not key.startswith("_"):
                    setattr(thing, key, _wrapped(counter, f"{short}.{name}.{key}", method, 1))


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the watched modules as soon as they are loaded, before anybody takes a name out of them."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name not in WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute, counter = spec.loader.exec_module, self.counter

        def exec_module(module: ModuleType) -> None:
            execute(module)
            watch(counter, module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _watch_tree(counter: Counter, root: str) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in TREE_EVENTS or not arguments:
            return
        place = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
        if event == "os.symlink":
            place = os.fsdecode(arguments[1])
        if not place.startswith("/"):
            counter.step(f"{event} in a tree")  # relative to an open folder: rmtree
        elif place.startswith(f"{root}/") and os.path.lexists(place) == (event not in ("os.mkdir", "os.symlink")):
            counter.step(f"{event} {place}")

    sys.addaudithook(hook)


def _watch_children(counter: Counter) -> None:
    start = subprocess.Popen.__init__

    @functools.wraps(start)
    def started(self: Any, argv: Any, *arguments: Any, **named: Any) -> None:
        start(self, argv, *arguments, **named)
        counter.step(_describe("started", [argv]))

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]


def install() -> None:
    """Called first thing in the process under test."""
    root = os.environ["PVETOOLS_ROOT"]
    kill, number = int(os.environ.pop(KILL)), int(os.environ.pop(SIGNAL, signal.SIGKILL))
    counter = Counter(os.environ.pop(LOG), kill, number, root)
    sys.meta_path.insert(0, _Finder(counter))
    _watch_children(counter)
    _watch_tree(counter, root)
