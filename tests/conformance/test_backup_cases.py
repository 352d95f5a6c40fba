"""Public cases of retention."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from pvetools.backup import retention
from pvetools.backup.retention import Backup
from pvetools.system.errors import PveError
from tests.conformance import loader

CASES, AT = loader.table("storage/prune_backups")


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def _limits(case: dict[str, Any]) -> dict[str, Any]:
    """The case's own rules, else those of its storage."""
    if case.get("keep") is not None:
        return dict(case["keep"])
    given = (case.get("scfg") or {}).get("prune-backups", "keep-all=1")
    return dict(pair.split("=", 1) for pair in given.split(",")) if isinstance(given, str) else dict(given)


@pytest.mark.usefixtures("utc")
@pytest.mark.parametrize("case", CASES)
def test_retention(case: dict[str, Any]) -> None:
    listed = [
        Backup(row["volid"], int(row["ctime"]), row.get("vmid"), bool(row.get("protected")))
        for row in AT["lists"][case.get("list") or "default"]
    ]
    vmid = case.get("vmid")
    if isinstance(case["expected"], str):
        with pytest.raises(PveError):
            retention.prune(listed, _limits(case), vmid=vmid, kind=case.get("type"))
        return
    found = retention.prune(listed, _limits(case), vmid=vmid, kind=case.get("type"))
    got = [{"volid": b.volid, "ctime": b.ctime, "type": b.kind, "mark": b.mark, "vmid": b.vmid} for b in found]
    expected = sorted(case["expected"], key=lambda row: row["volid"])
    assert [{key: value for key, value in row.items() if value is not None} for row in got] == [
        {key: value for key, value in row.items() if value is not None} for row in expected
    ]
