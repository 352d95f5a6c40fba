"""Which virtual machines run: read from libvirt's pid files, without a connection to it."""

from __future__ import annotations

import os
from pathlib import Path

from pvetools.guest.qemu.place import domain_name, name_prefix
from pvetools.system import paths

PID_FOLDER = Path("/run/libvirt/qemu")


def running_pids() -> dict[int, int]:
    """Process ids of this root's running guests (paused ones too), by guest id."""
    prefix = name_prefix()
    try:
        with os.scandir(PID_FOLDER) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return {}
    found: dict[int, int] = {}
    for name in names:
        number = name[len(prefix) : -len(".pid")]
        if name.startswith(prefix) and name.endswith(".pid") and number.isdecimal():
            pid = _live_pid(PID_FOLDER / name, name.removesuffix(".pid"))
            if pid:
                found[int(number)] = pid
    return found


def running_pid(vmid: int) -> int:
    """Process id of a running guest, 0 when it does not run."""
    name = domain_name(vmid)
    return _live_pid(PID_FOLDER / f"{name}.pid", name)


def _live_pid(path: Path, name: str) -> int:
    """The pid in a file, if that process still is the QEMU of the domain."""
    try:
        pid = int(path.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return 0
    return pid if f"guest={name},".encode() in command else 0


def wait_for_end(pid: int, timeout: float | None) -> bool:
    """Wait until a process has ended; False when it still runs after ``timeout`` seconds."""
    import select

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(0, int(timeout * 1000))))
    finally:
        os.close(fd)


def is_running(vmid: int) -> bool:
    """Whether a guest runs; a paused one does.

    Raises:
        NotFound: no such guest.
    """
    if not paths.guest_config("qemu", vmid).exists():
        from pvetools.config import guest as config

        config.load("qemu", vmid)
    return running_pid(vmid) != 0
