"""libvirt's daemons inside of a sandbox, monolithic (libvirtd) or modular (virtqemud)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

URI = "qemu:///system"
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "logd"
"""
SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))
DRIVERS = ("libvirtd", "virtqemud")


class NotReady(RuntimeError):
    """A daemon did not answer in time."""


def names() -> list[str]:
    """The daemons to start, in order; virtlogd and virtlockd come first."""
    helpers = [name for name in ("virtlogd", "virtlockd") if shutil.which(name)]
    if shutil.which("libvirtd"):
        return [*helpers, "libvirtd"]
    return [*helpers, "virtqemud"] if shutil.which("virtqemud") else []


def configure() -> None:
    """Write the sandbox's own /etc/libvirt/qemu.conf; the default network is not started."""
    Path("/etc/libvirt").mkdir(exist_ok=True)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    shutil.rmtree("/etc/libvirt/qemu/networks/autostart", ignore_errors=True)


def start(timeout: float = 30.0) -> None:
    """Start the daemons and wait until the driver answers.

    Raises NotReady with the daemon's own words when it does not.
    """
    if not names():
        raise NotReady("libvirt is not installed: neither libvirtd nor virtqemud was found")
    for name in names():
        if _running(name):
            continue
        done = subprocess.run([name, "-d"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotReady(f"{name} -d failed with status {done.returncode}: {done.stderr.strip()}")
    deadline = time.monotonic() + timeout
    while not any(socket.exists() for socket in SOCKETS):
        if time.monotonic() > deadline:
            raise NotReady(f"no libvirt socket after {timeout:.0f} s")
        time.sleep(0.02)
    last = ""
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["virsh", "-c", URI, "list"], capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode == 0:
            return
        last = done.stderr.strip()
        time.sleep(0.05)
    raise NotReady(f"libvirt does not answer after {timeout:.0f} s: {last}")


def _running(name: str) -> int | None:
    """Process id of the daemon, None when it does not run."""
    try:
        pid = int(Path(f"/run/{name}.pid").read_text())
        command = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return pid if command == name[:15] else None


def stop(sig: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> None:
    """Stop the driver's daemon (guests go on running); waits until the process is gone."""
    for name in DRIVERS:
        pid = _running(name)
        if pid is None:
            continue
        os.kill(pid, sig)
        deadline = time.monotonic() + timeout
        while _running(name) is not None:
            if time.monotonic() > deadline:
                raise NotReady(f"{name} (pid {pid}) did not end within {timeout:.0f} s")
            time.sleep(0.02)
    for path in SOCKETS:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def stopped() -> Iterator[None]:
    """No libvirt for the length of the block; it is started again afterwards."""
    stop()
    try:
        yield
    finally:
        start()
