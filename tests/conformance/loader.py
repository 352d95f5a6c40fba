"""Finds the public cases: their folder comes from PVETOOLS_CASES, suites that are not there give no tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("PVETOOLS_CASES") or Path(__file__).parents[2] / "../shared/cases").resolve()


def table(suite: str) -> tuple[list[Any], dict[str, Any]]:
    """Cases of a table suite, each as a pytest parameter, and the suite's environment."""
    path = FOLDER / f"{suite}.json"
    if not path.exists():
        return [], {}
    content = json.loads(path.read_text("utf-8"))
    return [pytest.param(case, id=str(case["name"])) for case in content["cases"]], content.get("environment", {})


def folders(suite: str) -> list[Any]:
    """Sub-folders of a folder suite, each as a pytest parameter."""
    path = FOLDER / suite
    found = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    return [pytest.param(entry, id=entry.name) for entry in found]
