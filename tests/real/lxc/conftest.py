"""Containers that several tests share."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sandbox.enter import BRIDGE
from tests.sandbox.root import Root, fresh

ADDRESS = "10.99.0.21"
PASSWORD = "correct horse"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8Kq0mJvGkz me@host"


def until(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {timeout:.0f} s"
        time.sleep(0.02)


def put_template(root: Root, template: Path) -> str:
    """Copy a template to the storage ``local``; gives its volume id."""
    shutil.copy(template, root / "var/lib/vz/template/cache" / template.name)
    return f"local:vztmpl/{template.name}"


@pytest.fixture(scope="module")
def debian(ct_template: Path) -> Iterator[Root]:
    """Container 101: unprivileged, a real Debian on a disk image, running; tests look at it and leave it running."""
    with fresh() as root:
        volume = put_template(root, ct_template)
        keys = root / "keys.pub"
        keys.write_text(f"# mine\n{KEY}\n")
        root.cli(
            "pct", "create", 101, volume, "--hostname", "web.example.org", "--memory", 128, "--swap", 64,
            "--rootfs", "local:1", "--net0", f"name=eth0,bridge={BRIDGE},ip={ADDRESS}/24,gw=10.99.0.1",
            "--nameserver", "9.9.9.9", "--cores", 1, "--cpulimit", 0.5, "--cpuunits", 300,
            "--ssh-public-keys", keys, "--password", PASSWORD, "--start", 1, ok=True,
        )  # fmt: skip
        yield root


@pytest.fixture
def small(root: Root, local_template: str) -> Callable[..., Root]:
    """Make container 101 from the small template: ``small("--rootfs", "local:0", ...)``."""

    def make(*options: object) -> Root:
        root.cli("pct", "create", 101, local_template, *options, ok=True)
        return root

    return make
