"""Backup jobs as processes, held in the middle or run to their end, and what they leave."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.sandbox.root import Root


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def archives(root: Root, vmid: int) -> list[Path]:
    """A guest's archives, the oldest first."""
    found = (root / "var/lib/vz/dump").glob(f"vzdump-*-{vmid}-*")
    return sorted(path for path in found if re.search(r"\.(tar|vma)(\.\w+)?$", path.name))


def newest(root: Root, vmid: int) -> Path:
    return archives(root, vmid)[-1]


def leftovers(root: Root) -> list[str]:
    """Everything that a job must not leave: growing archives, work folders, scratch images, sockets, records."""
    patterns = ("**/*.dat", "**/*.tmp", "**/vzdumptmp*", "**/*fleece*", "**/scratch-*", "**/*.nbd", "**/vzdump/*.json")
    return sorted({str(path) for pattern in patterns for path in root.path.glob(pattern)})


class Running:
    """A job under way, whose messages can be waited for."""

    def __init__(self, root: Root, *words: object) -> None:
        self.process = root.spawn("vzdump", *words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.said = ""

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while text not in self.said:
                left = deadline - time.monotonic()
                assert left > 0, f"vzdump did not say {text!r} within {timeout:.0f} s: {self.said}"
                if selector.select(left):
                    data = os.read(self.process.stderr.fileno(), 65536)
                    assert data, f"vzdump ended without saying {text!r}: {self.said}"
                    self.said += data.decode(errors="replace")

    def finish(self, timeout: float = 60) -> int:
        self.said += self.process.communicate(timeout=timeout)[1].decode(errors="replace")
        return self.process.returncode


@contextlib.contextmanager
def running(root: Root, *words: object) -> Iterator[Running]:
    """A job; whatever happens, it has ended when the block does."""
    job = Running(root, *words)
    try:
        yield job
    finally:
        if job.process.poll() is None:
            job.process.kill()
        job.process.wait()
        job.process.stderr.close()
