from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.enter import REPOSITORY
from tests.sandbox.root import Root


@pytest.fixture
def pvesh(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the head of PATH with `pvesh` of this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "pvesh"
    tool.write_text(f'#!/bin/sh\nexport PYTHONPATH={REPOSITORY}\nexec {sys.executable} -m pvetools.cli.pvesh "$@"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin")
    return tool


@pytest.fixture
def client(pvesh: Path) -> Any:
    """The client library, on the tool."""
    from proxmoxer import ProxmoxAPI

    return ProxmoxAPI(backend="local", service="PVE", timeout=120)


@pytest.fixture
def node() -> str:
    from tests.sandbox.enter import HOSTNAME

    return HOSTNAME
