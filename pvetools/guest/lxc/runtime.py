"""The only place that talks to LXC. Containers are named by their id, below LXC's folder of this root."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pvetools.guest.lxc.host import log_folder
from pvetools.system import files, paths
from pvetools.system.errors import MissingTool, PveError


def _container(vmid: int) -> Any:
    try:
        import lxc
    except ImportError:
        raise MissingTool("LXC's Python binding", "python3-lxc lxc") from None
    return lxc.Container(str(vmid), str(paths.lxc_dir()))


def log_file(vmid: int) -> Path:
    """LXC's own log of the last start."""
    return log_folder() / f"{vmid}.log"


def start(vmid: int, program: Sequence[str] = ()) -> None:
    """Start a container from its written configuration; its monitor stays in this process's mount namespace.

    Args:
        vmid: its id.
        program: words of what is started first, where the configuration names a program: LXC itself would split
            them at every blank, quotes or not.

    Raises:
        PveError: with LXC's own words.
    """
    log_file(vmid).parent.mkdir(parents=True, exist_ok=True)
    log_file(vmid).unlink(missing_ok=True)
    container = _container(vmid)
    # the monitor must not keep our locks
    more = {"cmd": tuple(program)} if program else {}
    if not _in_child(lambda: bool(container.start(daemonize=True, close_fds=True, **more))):
        raise PveError(f"CT {vmid} did not start: {said(vmid)}")


def _in_child(body: Callable[[], bool]) -> bool:
    """Run what moves its caller into the control group of the container's monitor, which ends with that.

    The child is waited for also when this process is interrupted, so that what it has made can be undone.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C is for the parent
            code = 0 if body() else 1
        finally:
            os._exit(code)
    interrupt: KeyboardInterrupt | None = None
    while True:
        try:
            status = os.waitpid(pid, 0)[1]
        except KeyboardInterrupt as raised:
            interrupt = raised
        else:
            break
    if interrupt:
        raise interrupt
    return status == 0


def said(vmid: int) -> str:
    """The errors of the last start, from LXC's log: the first one tells the cause."""
    text = files.read_text(log_file(vmid)) or ""
    found = re.findall(r"^lxc \S+ \S+ ERROR +\S+ - [^ ]+:\d+ - (.*)$", text, re.MULTILINE)
    return "; ".join(dict.fromkeys(found[:4])) or f"no message (log: {log_file(vmid)})"


def stop(vmid: int) -> None:
    """Kill all processes of a running container.

    Raises:
        PveError: LXC could not.
    """
    container = _container(vmid)
    if container.running and not container.stop() and container.running:
        raise PveError(f"CT {vmid} could not be stopped")


def ask_to_halt(vmid: int) -> None:
    """Send the container's init the signal to shut down, and do not wait."""
    _container(vmid).shutdown(0)


def freeze(vmid: int) -> None:
    """Stop all processes of a container without ending them.

    Raises:
        PveError: LXC could not.
    """
    if not _container(vmid).freeze():
        raise PveError(f"CT {vmid} could not be frozen")


def thaw(vmid: int) -> None:
    """Let a frozen container go on.

    Raises:
        PveError: LXC could not.
    """
    if not _container(vmid).unfreeze():
        raise PveError(f"CT {vmid} could not be resumed")


def state(vmid: int) -> str:
    """LXC's word: ``RUNNING``, ``FROZEN``, ``STOPPED``, ``STARTING`` ..."""
    return str(_container(vmid).state)


def init_pid(vmid: int) -> int:
    """Process id of the container's first process on the host.

    Raises:
        PveError: it does not run.
    """
    pid = int(_container(vmid).init_pid)
    if pid <= 0:
        raise PveError(f"CT {vmid} is not running")
    return pid
