"""Tools without their start-up time: a process that has loaded everything forks for each command line.

Walks run hundreds of commands around the one that they are about. What runs is the tool's own code in a process of its
own; only the import of its modules is spared.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.sandbox.root import Result, Root

BOOT = "from tests.sandbox import zygote; zygote.serve()"
HEAVY = ("libvirt", "libvirt_qemu", "lxc", "nbd", "typer")


class Zygote:
    """The process that forks; it serves one command at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=dict(environment)
            )
        self._lines = self._ours.makefile("r")

    def run(self, tool: str, words: Sequence[str], root: Path, timeout: float) -> tuple[int, bytes, bytes]:
        """Run a tool on a root; gives exit status (negative: signal), standard output and standard error."""
        said = [root / "var/log" / f"said.{name}" for name in ("stdout", "stderr")]
        request = {"tool": tool, "words": list(words), "root": str(root), "said": [*map(str, said)], "timeout": timeout}
        self._ours.sendall(json.dumps(request).encode() + b"\n")
        answer = self._lines.readline()
        if not answer:
            raise RuntimeError("the process that forks for commands has died")
        status = int(answer)
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired([tool, *words], timeout)
        return status, said[0].read_bytes(), said[1].read_bytes()

    def close(self) -> None:
        self._lines.close()
        self._ours.close()
        self._process.wait(10)


class QuickRoot(Root):
    """A root whose commands are run by a zygote."""

    def __init__(self, zygote: Zygote) -> None:
        super().__init__()
        self.zygote = zygote

    def cli(
        self, tool: str, *arguments: object, stdin: str | bytes | None = None, timeout: float = 120, ok: bool = False
    ) -> Result:
        if stdin is not None:
            return super().cli(tool, *arguments, stdin=stdin, timeout=timeout, ok=ok)
        words, start = [*map(str, arguments)], time.monotonic()
        status, out, err = self.zygote.run(tool, words, self.path, timeout)
        said = (out.decode(errors="replace"), err.decode(errors="replace"))
        result = Result(" ".join([tool, *words]), *said, status, time.monotonic() - start)
        assert not ok or result.status == 0, str(result)
        return result


@contextlib.contextmanager
def running() -> Iterator[Zygote]:
    """A zygote for the length of the block."""
    found = Zygote(os.environ)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def quick_root(zygote: Zygote) -> Iterator[QuickRoot]:
    """A fresh root for the length of the block."""
    root = QuickRoot(zygote)
    try:
        yield root
    finally:
        root.close()


# -- in the process that forks -----------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests on standard input until it is closed."""
    link = socket.socket(fileno=os.dup(0))
    _load()
    for line in link.makefile("r"):
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            link.close()
            _become(request)
        link.sendall(f"{_wait(pid, request['timeout'])}\n".encode())


def _load() -> None:
    import pvetools

    for module in pkgutil.walk_packages(pvetools.__path__, "pvetools."):
        importlib.import_module(module.name)
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # children share what is loaded


def _become(request: Mapping[str, object]) -> None:
    """Run the tool in this child, and end."""
    os.environ["PVETOOLS_ROOT"] = str(request["root"])
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(request["said"], 1):  # type: ignore[arg-type, var-annotated]
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = [str(request["tool"]), *request["words"]]  # type: ignore[misc]
    code = 255
    try:
        importlib.import_module(f"pvetools.cli.{request['tool']}").main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, timeout: float) -> int:
    """Exit status of the child; -SIGALRM when it had to be killed after the time-out."""
    fd = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([fd], [], [], timeout)
        if not ready:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if ready else -signal.SIGALRM
