"""A small virtual machine for tests that need it running, but not booted."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.sandbox.root import Result, Root

SMALL = ("--memory", "64", "--kvm", "0")


def create(root: Root, vmid: int = 100, *words: object) -> Result:
    """Make a VM that a firmware can run, with nothing to boot from."""
    return root.cli("qm", "create", vmid, *SMALL, *words, ok=True)


def config(root: Root, vmid: int = 100, *words: object) -> dict[str, object]:
    said = root.cli("qm", "config", vmid, *words, "--output-format", "json", ok=True)
    return dict(json.loads(said.stdout))


def status(root: Root, vmid: int = 100) -> str:
    return root.cli("qm", "status", vmid, ok=True).stdout.strip()


def volumes(root: Root, vmid: int = 100) -> list[str]:
    folder = root / f"var/lib/vz/images/{vmid}"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def virsh(*words: str) -> str:
    return subprocess.run(["virsh", *words], capture_output=True, text=True, check=True, timeout=60).stdout


def wait_until(what: str, check: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.02)


def snapshot_of_files(root: Root) -> dict[str, bytes]:
    """Everything below the root that a refused command must leave as it is."""
    kept = ("etc/pve", "var/lib/vz")
    return {
        str(path.relative_to(root.path)): path.read_bytes()
        for folder in kept
        for path in Path(root / folder).rglob("*")
        if path.is_file() and not path.is_symlink()
    }
