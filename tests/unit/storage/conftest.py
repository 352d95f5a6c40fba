"""A root of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvetools.system import paths


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root: storage ``local`` is there without being configured."""
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    paths.etc_pve().mkdir(parents=True)
    return tmp_path


@pytest.fixture
def local(root: Path) -> Path:
    """Directory of storage ``local``."""
    return root / "var/lib/vz"
