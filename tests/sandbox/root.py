"""A root of its own for one test or one demo: run the tools on it, and clean up whatever it runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox import daemons
from tests.sandbox.enter import BRIDGE, HOSTNAME, REPOSITORY
from tests.sandbox.serial import Serial, TimedOut

LOCAL_STORAGE = ("images", "private", "template/iso", "template/cache", "dump", "snippets")
ENTRY = "import sys; sys.argv[0] = {tool!r}; from pvetools.cli.{tool} import main; sys.exit(main())"


@dataclass(frozen=True)
class Result:
    """What a tool said, and how it ended."""

    command: str
    stdout: str
    stderr: str
    status: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.command}\nstatus {self.status}\nstdout: {self.stdout}\nstderr: {self.stderr}"


class Root:
    """A PVETOOLS_ROOT with the usual skeleton, below TMPDIR."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="r"))
        self.path.chmod(0o755)  # unprivileged containers walk through it
        for folder in LOCAL_STORAGE:
            (self.path / "var/lib/vz" / folder).mkdir(parents=True)
        for folder in ("etc/pve", "run", "var/log/pve", "var/lib/lxc", "var/tmp"):
            (self.path / folder).mkdir(parents=True)
        node = self.path / "etc/pve/nodes" / HOSTNAME
        for folder in ("qemu-server", "lxc"):
            (node / folder).mkdir(parents=True)
        self._links = _links()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self, vmid: int) -> Path:
        """The configuration file of a guest, whichever kind it is."""
        node = self.path / "etc/pve/nodes" / HOSTNAME
        container = node / "lxc" / f"{vmid}.conf"
        return container if container.exists() else node / "qemu-server" / f"{vmid}.conf"

    def serial(self, vmid: int, index: int = 0, timeout: float = 60.0) -> Serial:
        """Connect to the serial port of a VM; waits until its socket is there."""
        deadline = time.monotonic() + timeout
        while not (found := list((self.path / "run").rglob(f"{vmid}.serial{index}*"))):
            if time.monotonic() > deadline:
                raise TimedOut(f"VM {vmid} has no socket of serial{index} below {self.path}/run after {timeout:.0f} s")
            time.sleep(0.02)
        return Serial(found[0], timeout)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PVETOOLS_ROOT": str(self.path), "PYTHONPATH": str(REPOSITORY)}

    def argv(self, tool: str, *arguments: object) -> list[str]:
        """The command line that runs a tool of this checkout."""
        return [sys.executable, "-c", ENTRY.format(tool=tool), *map(str, arguments)]

    def cli(
        self, tool: str, *arguments: object, stdin: str | bytes | None = None, timeout: float = 120, ok: bool = False
    ) -> Result:
        """Run a tool as a process of its own; with `ok`, a status other than 0 fails the test."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        start = time.monotonic()
        done = subprocess.run(
            self.argv(tool, *arguments),
            env=self.environment(),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        result = Result(
            " ".join([tool, *map(str, arguments)]),
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
            done.returncode,
            time.monotonic() - start,
        )
        assert not ok or result.status == 0, str(result)
        return result

    def spawn(self, tool: str, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
        """Start a tool without waiting for it."""
        return subprocess.Popen(self.argv(tool, *arguments), env=self.environment(), **options)  # type: ignore[call-overload,no-any-return]

    # ------------------------------------------------------------ what runs on this root

    def domains(self) -> list[str]:
        """Names of the active libvirt domains whose definition mentions this root."""
        return [name for name in _virsh("list", "--name").split() if str(self.path) in _virsh("dumpxml", name)]

    def containers(self) -> list[str]:
        """Names of this root's running LXC containers."""
        home = self.path / "var/lib/lxc"
        listed = subprocess.run(["lxc-ls", "-P", home, "-1", "--active"], capture_output=True, text=True, check=False)
        return listed.stdout.split()

    def processes(self) -> dict[int, str]:
        """Processes that name this root on their command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.path) in words:
                    found[int(entry.name)] = words
        return found

    def mounts(self) -> list[str]:
        """Mount points below this root, deepest first."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return sorted((point for point in points if point.startswith(f"{self.path}/")), key=len, reverse=True)

    def links(self) -> set[str]:
        """Network links that came since this root was made."""
        return _links() - self._links

    def loops(self) -> list[str]:
        """Loop devices on files of this root."""
        found = []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if backing.read_text().startswith(f"{self.path}/"):
                    found.append(f"/dev/{backing.parts[3]}")
        return found

    def running(self) -> dict[str, object]:
        """All that is active on this root, by kind, without what is empty: {} when nothing is."""
        seen = {
            "domains": self.domains(),
            "containers": self.containers(),
            "processes": self.processes(),
            "mounts": self.mounts(),
            "links": self.links(),
            "loops": self.loops(),
        }
        return {kind: things for kind, things in seen.items() if things}

    def close(self) -> None:
        """Stop all of it and remove the root."""
        for name in self.domains():
            _virsh("destroy", name)
        for name in self.containers():
            _quietly("lxc-stop", "-P", str(self.path / "var/lib/lxc"), "-k", "-n", name)
        self._kill()
        for point in self.mounts():
            _quietly("umount", "-l", point)
        for device in self.loops():
            _quietly("losetup", "-d", device)
        for link in self.links():
            _quietly("ip", "link", "delete", link)
        shutil.rmtree(self.path, ignore_errors=True)

    def _kill(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (left := self.processes()):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


@contextlib.contextmanager
def fresh() -> Iterator[Root]:
    """A root for the length of the block."""
    root = Root()
    try:
        yield root
    finally:
        root.close()


def _links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()} - {"lo", BRIDGE}


def _virsh(*words: str) -> str:
    done = subprocess.run(
        ["virsh", "-q", "-c", daemons.URI, *words], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout


def _quietly(*words: str) -> None:
    subprocess.run(words, capture_output=True, timeout=60, check=False)
