"""Public cases of the list of disks and of their health: simulated machines, given by files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pvetools.storage.disks import facts, smart
from pvetools.storage.disks import list as disks
from tests.conformance import loader


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _block(folder: Path, name: str) -> disks.Block:
    return facts.block(folder / name, facts.parse_udev(_text(folder / f"{name}_udevadm")))


def _facts(folder: Path, *names: str) -> disks.Facts:
    return disks.Facts(tuple(_block(folder, name) for name in names))


def _health(folder: Path) -> disks.Health:
    def health(block: disks.Block, type_: str) -> smart.Report | None:
        file = folder / f"{block.name}_{'smart' if type_ in disks.SOLID else 'health'}"
        return smart.parse(file.read_text()) if file.exists() else None

    return health


@pytest.mark.parametrize("folder", loader.folders("storage/disks"))
def test_lists_of_disks(folder: Path) -> None:
    names = (folder / "disklist").read_text().split()
    expected: dict[str, Any] = json.loads((folder / "disklist_expected.json").read_text())
    assert disks.rows(_facts(folder, *names), _health(folder)) == expected
    for name in names:
        assert disks.rows(_facts(folder, name), _health(folder)) == {name: expected[name]}


@pytest.mark.parametrize("folder", loader.folders("storage/disks"))
def test_health_of_disks(folder: Path) -> None:
    for name in (folder / "disklist").read_text().split():
        report = smart.parse((folder / f"{name}_smart").read_text())
        assert report.as_data() == json.loads((folder / f"{name}_smart_expected.json").read_text())
