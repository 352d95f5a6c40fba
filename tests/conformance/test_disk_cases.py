"""Public cases of the list of disks and of their health: simulated machines, given by files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvetools.storage.disks import facts, smart
from pvetools.storage.disks import list as disks
from tests.conformance import loader


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _block(folder: Path, name: str) -> disks.Block:
    """A disk; the holders of partitions are not among the files, but they have some."""
    found = facts.block(folder / name, facts.parse_udev(_text(folder / f"{name}_udevadm")))
    partitions = [part for part in _text(folder / "partlist").split() if part.startswith(name)]
    return replace(
        found,
        partitions=tuple(disks.Block(part, holders=("dm-0",), udev={"DEVNAME": f"/dev/{part}"}) for part in partitions),
    )


def _facts(folder: Path, *names: str) -> disks.Facts:
    mounts = [line.split() for line in _text(folder / "mounts").splitlines()]
    return disks.Facts(
        tuple(_block(folder, name) for name in names),
        facts.parse_lsblk(_text(folder / "lsblk")),
        frozenset(_text(folder / "pvs").split()),
        facts.parse_zpools(_text(folder / "zpool")),
        {words[0]: words[1] for words in mounts},
        facts.parse_osds(_text(folder / "lvs")),
    )


def _health(folder: Path) -> disks.Health:
    def health(block: disks.Block, type_: str) -> smart.Report | None:
        file = folder / f"{block.name}_{'smart' if type_ in disks.SOLID else 'health'}"
        return smart.parse(file.read_text()) if file.exists() else None

    return health


def _same(value: Any) -> Any:
    """The cases don't tell numbers from their texts, and nothing from null."""
    if isinstance(value, dict):
        return {key: _same(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_same(item) for item in value]
    return str(value)


@pytest.mark.parametrize("folder", loader.folders("storage/disks"))
def test_lists_of_disks(folder: Path) -> None:
    names = (folder / "disklist").read_text().split()
    expected: dict[str, Any] = json.loads((folder / "disklist_expected.json").read_text())
    assert _same(disks.rows(_facts(folder, *names), _health(folder))) == _same(expected)
    for name in names:
        key = name.replace("!", "/")
        assert _same(disks.rows(_facts(folder, name), _health(folder))) == {key: _same(expected[key])}


@pytest.mark.parametrize("folder", loader.folders("storage/disks"))
def test_health_of_disks(folder: Path) -> None:
    for file in sorted(folder.glob("*_smart_expected.json")):
        report = smart.parse((folder / file.name.removesuffix("_expected.json")).read_text())
        assert _same(report.as_data()) == _same(json.loads(file.read_text()))
