"""For all tests: real ones run in the sandbox only (`make test` starts pytest there)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.sandbox import enter

with contextlib.suppress(ImportError):  # the storage VM does without it
    import hypothesis

    hypothesis.settings.register_profile("pvetools", deadline=None)  # a busy machine is no fault of the example's
    hypothesis.settings.load_profile("pvetools")

REAL = Path(__file__).parent / "real"
REASON = "needs the sandbox: python -m tests.sandbox.enter -- python -m pytest tests/real"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if enter.inside():
        return
    for item in items:
        if REAL in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=REASON))


def pytest_report_header() -> str:
    if enter.inside():
        return "sandbox: yes"
    return f"sandbox: no ({enter.missing() or REASON})"
