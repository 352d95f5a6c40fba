"""``pvesm prune-backups``: the table, the rules, and what goes."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pvetools.cli import app, pvesm
from pvetools.system import paths


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def prune(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``pvesm prune-backups local`` as root."""

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["pvesm", "prune-backups", "local", *words])
        monkeypatch.setattr("os.geteuid", lambda: 0)
        with pytest.raises(SystemExit) as ended:
            app.main(pvesm.TOOL)
        gc.enable()
        return Ran(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def dump(local: Path) -> Path:
    """Backups of two guests, one of them renamed and one protected."""
    folder = local / "dump"
    folder.mkdir(parents=True)
    for name in (
        "vzdump-qemu-100-2024_01_01-00_00_00.vma", "vzdump-qemu-100-2024_01_02-00_00_00.vma.zst",
        "vzdump-qemu-100-2024_01_03-00_00_00.vma.zst", "vzdump-lxc-200-2024_01_01-00_00_00.tar.zst",
        "vzdump-qemu-100-mine.vma",
    ):  # fmt: skip
        (folder / name).touch()
    (folder / "vzdump-qemu-100-2024_01_01-00_00_00.vma.protected").touch()
    return folder


def test_a_dry_run_shows_what_would_happen_guest_by_guest(prune: Callable[..., Ran], dump: Path) -> None:
    out = prune("--dry-run", "--keep-last", "1").out
    rows = [
        ("Backup", "Backup-ID", "Prune-Mark"),
        ("local:backup/vzdump-qemu-100-2024_01_01-00_00_00.vma", "qemu/100", "protected"),
        ("local:backup/vzdump-qemu-100-2024_01_02-00_00_00.vma.zst", "qemu/100", "remove"),
        ("local:backup/vzdump-qemu-100-2024_01_03-00_00_00.vma.zst", "qemu/100", "keep"),
    ]
    assert out.splitlines()[2:6] == [f"{volid:57} {guest:>15} {mark:>10}" for volid, guest, mark in rows]
    assert "vzdump-qemu-100-mine.vma" in out
    assert len(list(dump.iterdir())) == 6


def test_rules_may_stand_on_the_command_line_or_in_the_definition(prune: Callable[..., Ran], dump: Path) -> None:
    def marks(*words: str) -> list[str]:
        rows = json.loads(prune("--dry-run", "--output-format", "json", *words).out)
        return sorted(row["mark"] for row in rows)

    assert marks("--keep-daily", "1", "--vmid", "100") == ["keep", "protected", "remove", "renamed"]
    assert marks("--keep-all", "1") == ["keep", "keep", "keep", "protected", "renamed"]
    assert marks("--type", "lxc", "--keep-last", "1") == ["keep"]
    paths.storage_config().write_text(
        f"dir: local\n\tpath {dump.parent}\n\tcontent backup\n\tprune-backups keep-last=1\n"
    )
    assert marks() == ["keep", "keep", "protected", "remove", "renamed"]


def test_without_dry_run_the_backups_go(prune: Callable[..., Ran], dump: Path) -> None:
    ran = prune("--keep-last", "1", "--type", "qemu")
    assert (ran.code, ran.out) == (0, "")
    assert "remove    local:backup/vzdump-qemu-100-2024_01_02-00_00_00.vma.zst" in ran.err
    assert not (dump / "vzdump-qemu-100-2024_01_02-00_00_00.vma.zst").exists()
    assert len(list(dump.iterdir())) == 5


def test_contradicting_rules_remove_nothing(prune: Callable[..., Ran], dump: Path) -> None:
    ran = prune("--keep-all", "1", "--keep-last", "1")
    assert ran.code == 255
    assert "keep-all cannot be set together with other options" in ran.err
    assert len(list(dump.iterdir())) == 6


def test_a_storage_without_backups_says_so(prune: Callable[..., Ran]) -> None:
    assert prune("--dry-run", "--keep-last", "1").out == "no backups found\n"


def test_a_table_has_no_header_on_request(prune: Callable[..., Ran], dump: Path) -> None:
    lines = prune("--dry-run", "--keep-last", "1", "--vmid", "100", "--noheader").out.splitlines()
    assert lines
    assert all(line.startswith("local:backup/vzdump-qemu-100-") for line in lines)


def test_without_rules_or_backups_there_is_nothing_to_do(prune: Callable[..., Ran], dump: Path) -> None:
    ran = prune()
    assert (ran.code, ran.out) == (255, "")
    assert "storage 'local' has no prune-backups rules, and none are given" in ran.err
    paths.storage_config().write_text(f"dir: local\n\tpath {dump.parent}\n\tcontent images\n")
    ran = prune("--keep-last", "1")
    assert ran.code == 255
    assert "storage 'local' is not configured for content type 'backup'" in ran.err
    assert len(list(dump.iterdir())) == 6
