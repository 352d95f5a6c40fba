"""A simulated ESXi host: govmomi's simulator, built once and kept in the cache."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox import cache

USER, PASSWORD = "root", 'p&ss<w>"ord'
PACKAGES = "golang-go golang-github-vmware-govmomi-dev"
_SOURCE = Path(__file__).with_name("main.go")
_LIBRARY = Path("/usr/share/gocode/src/github.com/vmware/govmomi")


def program() -> Path:
    """The simulator; it is built at need.

    Raises:
        cache.NotAvailable: it is not in the cache, and Go or the library is not installed.
    """

    def build(target: Path, workspace: Path) -> None:
        if not shutil.which("go") or not _LIBRARY.is_dir():
            raise cache.NotAvailable(f"the simulator of ESXi is built once with: apt install {PACKAGES}")
        settings = ["GO111MODULE=off", "GOPATH=/usr/share/gocode", f"GOCACHE={workspace}/go", f"HOME={workspace}"]
        cache.run(["env", *settings, "go", "build", "-o", target, _SOURCE])

    return cache.obtain(f"esxi_{cache.key(_SOURCE.read_bytes())}_simulator", build)


@dataclass(frozen=True)
class Host:
    """A running host: where it listens, and the folder that is its datastore."""

    address: str
    port: int
    folder: Path
    process: subprocess.Popen[str]


@contextlib.contextmanager
def running() -> Iterator[Host]:
    """A host with two machines, of which the second is switched on."""
    with tempfile.TemporaryDirectory(prefix="esxi") as scratch, _started(scratch) as process:
        found: dict[str, list[str]] = {}
        deadline = time.monotonic() + 30
        while "address" not in found:
            assert process.stdout
            words = process.stdout.readline().split()
            assert words and time.monotonic() < deadline, "the simulated host did not start within 30 s"
            found[words[0]] = words[1:]
        address, _, port = found["address"][0].rpartition(":")
        yield Host(address, int(port), Path(found["store"][1]), process)


@contextlib.contextmanager
def _started(scratch: str) -> Iterator[subprocess.Popen[str]]:
    words = [program(), "127.0.0.1:0", USER, PASSWORD]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, env={"TMPDIR": scratch}, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)
