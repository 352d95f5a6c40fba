"""The only place that starts programs: no shell, a scrubbed environment, errors with the program's own words.

Programs get a process group of their own: Ctrl-C reaches only this process, which ends or undoes in its own order; one
that is impatiently repeated does not kill what the undoing runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple, NoReturn

from pvetools.system.errors import MissingTool, PveError, RunError

# program -> Debian package, where the two differ
PACKAGES: dict[str, str] = {
    "qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils", "qemu-io": "qemu-utils", "lxc-usernsexec": "lxc",
    "lxc-attach": "lxc", "lxc-console": "lxc", "lxc-start": "lxc", "mkfs.ext4": "e2fsprogs", "resize2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs", "ip": "iproute2", "mount": "mount", "umount": "mount", "losetup": "mount",
    "mount.nfs": "nfs-common", "mount.cifs": "cifs-utils", "mount.ceph": "ceph-common",
    "btrfs": "btrfs-progs", "iscsiadm": "open-iscsi", "multipath": "multipath-tools", "nvme": "nvme-cli",
    "udevadm": "udev", "modprobe": "kmod", "showmount": "nfs-common", "multipathd": "multipath-tools",
    "ionice": "util-linux", "nsenter": "util-linux", "unshare": "util-linux", "virsh": "libvirt-clients",
    "ceph": "ceph-common", "rbd": "ceph-common",
    "zfs": "zfsutils-linux", "zpool": "zfsutils-linux", "ssh": "openssh-client",
    "smartctl": "smartmontools", "sfdisk": "fdisk", "mkfs.xfs": "xfsprogs", "wipefs": "util-linux",
    "blkid": "util-linux", "blockdev": "util-linux", "lsblk": "util-linux", "systemctl": "systemd", "vgremove": "lvm2",
    "sendmail": "postfix", "xz": "xz-utils", "fstrim": "util-linux", "sync": "coreutils",
}  # fmt: skip
KEPT_ENV = (
    "PATH",
    "HOME",
    "TERM",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "PVETOOLS_ROOT",
    "PVETOOLS_DEBUG",
)
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
# words to put before a program that is started by another one and is to be killed with that
TIED = ("setpriv", "--pdeathsig", "KILL")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Completed(NamedTuple):
    """What a finished program said."""

    stdout: str
    stderr: str
    code: int


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that children get: only well-known variables, C locale messages."""
    kept = {key: os.environ[key] for key in KEPT_ENV if key in os.environ}
    kept.setdefault("PATH", SYSTEM_PATH)
    return {**kept, "LC_ALL": "C.UTF-8", **(extra or {})}


def find(tool: str) -> str | None:
    """Absolute path of a program, looked up also in the system folders."""
    return shutil.which(tool) or shutil.which(tool, path=SYSTEM_PATH)


def require(tool: str) -> str:
    """Absolute path of a program.

    Raises:
        MissingTool: naming the package to install.
    """
    found = find(tool)
    if found is None:
        raise MissingTool(tool, PACKAGES.get(tool, tool))
    return found


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | bytes | None = None,
    check: bool = True,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    whole: bool = False,
) -> Completed:
    """Run a program to its end and collect its output (text; undecodable bytes are kept as surrogates).

    A change that must not end halfway is done ``whole``: signals wait for its end, and whoever kills this process, or
    what it has started, leaves it alone. One that takes longer than ``timeout`` goes on.

    Raises:
        MissingTool: there is no such program.
        RunError: it failed and ``check`` is set.
        PveError: it ran longer than ``timeout`` seconds.
    """
    words = [os.fspath(word) for word in argv]
    data = stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
    with signals_held() if whole else contextlib.nullcontext():
        process = subprocess.Popen(
            [require(words[0]), *words[1:]],
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            process_group=None if whole else 0,
            start_new_session=whole,
            preexec_fn=_hear_signals if whole else None,
        )
        try:
            stdout, stderr = process.communicate(data, timeout)
        except subprocess.TimeoutExpired:
            late = f"command '{words[0]}' did not end within {timeout:g} seconds"
            if whole:
                _going_on.append(process)  # its pipes stay open
                raise PveError(f"{late}; it goes on as process {process.pid}") from None
            _give_up(process)
            raise PveError(late) from None
        except BaseException:
            _give_up(process)
            raise
    result = Completed(stdout.decode("utf-8", "surrogateescape"), stderr.decode("utf-8", "replace"), process.returncode)
    if check and result.code:
        raise RunError(words, result.code, result.stderr or result.stdout)
    return result


_going_on: list[subprocess.Popen[bytes]] = []


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _hear_signals() -> None:
    """In a child: a daemon that it may start could not be ended otherwise."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let the signals that ask to end wait until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _give_up(process: subprocess.Popen[bytes]) -> None:
    """Kill a program with its helpers; one that hangs in the kernel, where no signal reaches it, is left alone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)


def popen(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
    tied: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program for streaming; the caller waits for it. ``tied``: it is killed when this process is."""
    words = [os.fspath(word) for word in argv]
    return subprocess.Popen(
        [require(words[0]), *words[1:]],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment(env),
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=new_session,
        process_group=None if new_session else 0,
        preexec_fn=_die_with(os.getpid()) if tied else None,
    )


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program: it asks the kernel to be killed when its parent ends."""
    import ctypes

    control = ctypes.CDLL(None).prctl

    def tie() -> None:
        control(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was too late
            os._exit(1)

    return tie


def kill_group(process: subprocess.Popen[bytes], timeout: float = 5.0) -> None:
    """Kill a program that was started for streaming, with all that it has started, and wait until they are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + timeout
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.002)


def end_group(process: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """Ask a program that was started for streaming to end, so that it can let go of what it holds; kill what stays."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    kill_group(process)


def interactive(argv: Sequence[str | os.PathLike[str]]) -> int:
    """Run a program on the caller's own terminal; returns its exit status as a shell would give it."""
    words = [os.fspath(word) for word in argv]
    code = subprocess.run([require(words[0]), *words[1:]], env=environment(), check=False).returncode
    return code if code >= 0 else 128 - code


def become(argv: Sequence[str | os.PathLike[str]], env: Mapping[str, str] | None = None) -> NoReturn:
    """Give this process to another program for good: its terminal, its signals and its exit status are then ours.

    Args:
        argv: program and arguments.
        env: its whole environment (default: the usual scrubbed one).

    Raises:
        MissingTool: there is no such program.
    """
    words = [os.fspath(word) for word in argv]
    path = require(words[0])
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(path, words, dict(environment() if env is None else env))  # noqa: S606


PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT
Process = subprocess.Popen[bytes]  # for annotations elsewhere
