from __future__ import annotations

from pathlib import Path

import pytest

from pvetools.system import paths


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of its own with the folders that every writing command makes."""
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    monkeypatch.setattr(paths, "is_real_proxmox", lambda: False)
    paths.ensure_tree()
    return tmp_path
