"""A root of its own with virtual machines that are off: their backup needs no libvirt, only qemu-nbd."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pvetools.backup import job
from pvetools.options.backup import VzdumpOptions
from pvetools.system import log, paths
from pvetools.system.errors import PveError

PROJECT = Path(__file__).parents[3]
KIB = 1024


class Node:
    """What a test sees of its node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dump = root / "var/lib/vz/dump"
        self.images = root / "var/lib/vz/images"
        for folder in (self.dump, self.images, root / "etc", root / "run", root / "var/tmp"):
            folder.mkdir(parents=True)
        paths.ensure_tree()

    def vm(self, vmid: int, *lines: str, disk: int = 256 * KIB) -> Path:
        """Make a stopped VM with one raw disk of random data (none when ``disk`` is 0); returns the image."""
        image = self.images / f"{vmid}/vm-{vmid}-disk-0.raw"
        drive = []
        if disk:
            image.parent.mkdir(exist_ok=True)
            image.write_bytes(random.Random(vmid).randbytes(disk))
            drive = [f"scsi0: local:{vmid}/{image.name},size={disk // KIB}K"]
        self.config(vmid).write_text("\n".join(["kvm: 0", "memory: 64", f"name: vm{vmid}", *drive, *lines]) + "\n")
        return image

    def config(self, vmid: int) -> Path:
        return paths.guest_config("qemu", vmid)

    def archives(self, vmid: int | str = "*") -> list[Path]:
        found = self.dump.glob(f"vzdump-*-{vmid}-*")
        return sorted(p for p in found if p.suffix not in (".log", ".notes", ".protected"))

    def files(self) -> set[str]:
        """Everything below the root but for locks and logs."""
        ignored = ("run/lock", "var/log", "run/vzdump.lock")
        found = (str(p.relative_to(self.root)) for p in self.root.rglob("*") if not p.is_dir())
        return {name for name in found if not name.startswith(ignored)}

    def argv(self, tool: str, *arguments: object) -> list[str]:
        code = f"import sys; sys.argv[0] = {tool!r}; from pvetools.cli.{tool} import main; main()"
        return [sys.executable, "-c", code, *map(str, arguments)]

    def cli(self, tool: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        """Run a tool as a process of its own."""
        return subprocess.run(self.argv(tool, *arguments), capture_output=True, check=False, timeout=60, **options)

    def spawn(self, tool: str, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv(tool, *arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    return Node(tmp_path / "root")


class Outcome:
    """How a job in this process ended: its error (empty for none) and what it said."""

    def __init__(self, error: str, lines: Sequence[str]) -> None:
        self.error, self.lines = error, list(lines)

    def said(self, start: str) -> list[str]:
        return [line for line in self.lines if line.startswith(start)]


@pytest.fixture
def vzdump(node: Node, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a job in this process: ``vzdump(100, 101, compress="zstd")``."""
    monkeypatch.setattr(job, "_lower_priority", lambda ionice: None)  # of the process that runs all the tests

    def run(*vmids: int, **options: object) -> Outcome:
        raw = {
            name.replace("_", "-"): value if isinstance(value, list) else str(value) for name, value in options.items()
        }
        if vmids:
            raw["vmid"] = ",".join(map(str, vmids))
        lines: list[str] = []
        try:
            with log.sink(lines.append):
                job.vzdump(VzdumpOptions.check(raw))
        except PveError as error:
            return Outcome(str(error), lines)
        return Outcome("", lines)

    return run


@pytest.fixture
def fake_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a shell script of that name in front of all programs."""

    def make(name: str, body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return script

    return make


@pytest.fixture(autouse=True)
def _console(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
