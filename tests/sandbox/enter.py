"""Run a command in a sandbox: `python -m tests.sandbox.enter -- COMMAND [ARGUMENT...]`.

The command gets pid, mount, network, ipc, uts and cgroup namespaces of its own with their own
libvirt, bridge `vmbr0` (10.99.0.1/24), /etc, /run, /dev/shm and state directories.  TMPDIR names a
scratch directory on the disk.  When the command ends, however it ends, all of it is gone: the
processes with the pid namespace, mounts and links with theirs, and this supervisor removes control
groups, loop devices and the scratch directory.

It needs root, and neither systemd nor a kernel module.  Status: that of the command, 128 + signal
when it was killed, 125 when the sandbox itself could not be made.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from tests.sandbox import cgroups, daemons

MARK = "PVETOOLS_SANDBOX"
PREFIX = "pvs-"
BRIDGE = "vmbr0"
BRIDGE_ADDRESS = "10.99.0.1/24"
HOSTNAME = "pvetest"
SUBIDS = "root:100000:65536\n"
REPOSITORY = Path(__file__).resolve().parents[2]
# State of the host that is hidden by empty directories; /etc is hidden by a copy of it.
HIDDEN = (
    "/var/lib/libvirt",
    "/var/log/libvirt",
    "/var/cache/libvirt",
    "/var/lib/lxc",
    "/var/log/lxc",
    "/var/lib/vz",
    "/var/log/pve",
    "/var/lib/pvetools",
)
CANNOT = 125


def inside() -> bool:
    """Is this process in a sandbox?"""
    return MARK in os.environ


def missing() -> str | None:
    """Why no sandbox can be made here, or None when it can."""
    if os.geteuid() != 0:
        return "a sandbox needs root"
    for tool in ("unshare", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"a sandbox needs the tool {tool}"
    probe = subprocess.run(["unshare", *_namespaces(), "true"], capture_output=True, text=True, check=False)
    return f"namespaces cannot be made: {probe.stderr.strip()}" if probe.returncode else None


def _namespaces() -> list[str]:
    return ["--fork", "--pid", "--mount", "--net", "--ipc", "--uts", "--mount-proc"]


# ---------------------------------------------------------------- the supervisor, on the host


def supervise(command: Sequence[str], *, libvirt: bool = True, keep: bool = False) -> int:
    """Run the command in a new sandbox and return its status; nothing is left behind."""
    sweep()
    with contextlib.ExitStack() as undo:
        scratch = undo.enter_context(_scratch(keep))
        groups = cgroups.create(cgroups.name(PREFIX))
        undo.callback(_remove_groups, groups)
        environment = {
            **os.environ,
            MARK: "1",
            "TMPDIR": str(scratch),
            "PVETOOLS_SANDBOX_LIBVIRT": "1" if libvirt else "0",
            "PVETOOLS_SANDBOX_GROUPS": ":".join(map(str, groups.paths)),
            "PVETOOLS_SANDBOX_CWD": str(Path.cwd()),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        child = subprocess.Popen(
            [
                "unshare",
                *_namespaces(),
                "--kill-child=KILL",
                "--",
                sys.executable,
                "-m",
                "tests.sandbox.enter",
                "--inside",
                "--",
                *command,
            ],
            env=environment,
            cwd=REPOSITORY,
            preexec_fn=_die_with_parent,
        )
        undo.callback(_bury, child)
        _pass_on_signals(child)
        status = child.wait()
    return status if status >= 0 else 128 - status


def _die_with_parent() -> None:
    """Between fork and exec: end with the supervisor, even when it is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _bury(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()


def _pass_on_signals(child: subprocess.Popen[bytes]) -> None:
    """Ctrl-C reaches the command by the terminal; TERM and HUP end the whole sandbox."""

    def end(_number: int, _frame: FrameType | None) -> None:
        child.kill()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)


@contextlib.contextmanager
def _scratch(keep: bool) -> Iterator[Path]:
    """A directory that guests of any user id can walk through; locked while it is used."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    path.chmod(0o755)
    lock = os.open(path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        if not keep:
            _remove_scratch(path)
        os.close(lock)


def _remove_scratch(path: Path) -> None:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(f"{path}/"):
                subprocess.run(["losetup", "-d", f"/dev/{backing.parts[3]}"], check=False)
    shutil.rmtree(path, ignore_errors=True)


def _remove_groups(groups: cgroups.Groups) -> None:
    left = cgroups.remove(groups)
    if left:
        sys.stderr.write(f"sandbox: control groups left: {' '.join(map(str, left))}\n")


def sweep() -> None:
    """Remove what sandboxes left whose supervisor was killed."""
    for path in Path("/tmp").glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_scratch(path)
            finally:
                os.close(lock)
    cgroups.remove(cgroups.stale(PREFIX), timeout=0.2)


# ---------------------------------------------------------------- process 1 of the sandbox


def furnish(libvirt: bool) -> None:
    """Mounts, network and daemons, from within the new namespaces."""
    layout = cgroups.hierarchies()
    cgroups.enter([Path(group) for group in os.environ.pop("PVETOOLS_SANDBOX_GROUPS").split(":") if group])
    _run("mount", "-t", "sysfs", "sysfs", "/sys")
    cgroups.mount_inside(layout)
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/lock").mkdir(mode=0o1777)
    _hide_apparmor()
    _run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    for path in HIDDEN:
        if Path(path).is_dir():
            _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", path)
    _own_etc()
    _run("hostname", HOSTNAME)
    _network()
    if libvirt:
        daemons.configure()
        daemons.start()


def _hide_apparmor() -> None:
    """Let LXC find AppArmor switched off: policy belongs to the whole kernel, loading it would change the host."""
    switch = Path("/sys/module/apparmor/parameters/enabled")
    if switch.exists():
        off = Path("/run/apparmor-enabled")
        off.write_text("N\n")
        _run("mount", "--bind", str(off), str(switch))


def _own_etc() -> None:
    """Hide /etc behind a copy, so that a test may write there and two sandboxes never meet."""
    copy = Path("/run/etc")
    copy.mkdir()
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(copy))
    _run("cp", "-a", "/etc/.", str(copy))
    _run("mount", "--move", str(copy), "/etc")
    copy.rmdir()
    for name in ("subuid", "subgid"):
        Path("/etc", name).write_text(SUBIDS)
    Path("/etc/hostname").write_text(f"{HOSTNAME}\n")
    address = BRIDGE_ADDRESS.partition("/")[0]
    hosts = Path("/etc/hosts")
    before = hosts.read_text() if hosts.exists() else "127.0.0.1 localhost\n"
    hosts.write_text(f"{before.rstrip()}\n{address} {HOSTNAME}\n")


def _network() -> None:
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "address", "add", BRIDGE_ADDRESS, "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def init(command: Sequence[str]) -> int:
    """Start the command and bury orphans until it ends; returns its status."""
    environment = dict(os.environ)
    cwd = environment.pop("PVETOOLS_SANDBOX_CWD", "/")
    environment.pop("PVETOOLS_SANDBOX_LIBVIRT", None)
    try:
        child = subprocess.Popen(list(command), env=environment, cwd=cwd, preexec_fn=_hear_interrupts)
    except OSError as error:
        sys.stderr.write(f"sandbox: {command[0]}: {error.strerror}\n")
        return 127
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _hear_interrupts() -> None:
    """Between fork and exec: what a shell starts in the background ignores them, and so would all that is tested."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox.enter", description=__doc__)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-libvirt", action="store_true", help="start no libvirt")
    parser.add_argument("--keep", action="store_true", help="keep the scratch directory")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(arguments)
    if options.inside:
        try:
            furnish(os.environ["PVETOOLS_SANDBOX_LIBVIRT"] == "1")
        except (OSError, daemons.NotReady) as error:
            sys.stderr.write(f"sandbox: {error}\n")
            return CANNOT
        return init(options.command)
    why = missing()
    if why:
        sys.stderr.write(f"sandbox: {why}\n")
        return CANNOT
    return supervise(options.command, libvirt=not options.no_libvirt, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
