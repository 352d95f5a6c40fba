"""Methods of a storage that Proxmox VE answers from its records and from backup servers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pvetools.api import storage, tree
from pvetools.system import paths
from pvetools.system.errors import NotFound, ParamErrors, Refused

HOME = "/nodes/localhost/storage"


@pytest.fixture(autouse=True)
def storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides `local`, one that is switched off and one on a backup server."""
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    paths.ensure_tree()
    paths.storage_config().write_text(
        f"dir: local\n\tpath {tmp_path}\n\tcontent images\n\n"
        f"dir: off\n\tpath {tmp_path}\n\tcontent images\n\tdisable 1\n\n"
        "pbs: vault\n\tserver 127.0.0.1\n\tdatastore one\n\tcontent backup\n"
    )


def get(path: str, **raw: str) -> Any:
    assert storage  # its rows are in the tree now
    row, variables = tree.find("GET", f"{HOME}/{path}")
    return tree.call(row, {**variables, **raw})


def test_the_only_sample_is_that_of_now(tmp_path: Path) -> None:
    before, size = int(time.time()), os.statvfs(tmp_path)
    (sample,) = get("local/rrddata", timeframe="hour", cf="MAX")
    assert before <= sample["time"] <= time.time()
    assert sample["total"] == size.f_blocks * size.f_frsize
    assert 0 < sample["used"] < sample["total"]
    assert get("off/rrddata", timeframe="year") == []


def test_a_time_frame_has_to_be_one() -> None:
    with pytest.raises(ParamErrors, match="timeframe"):
        get("local/rrddata", timeframe="minute")
    with pytest.raises(NotFound, match="'nix'"):
        get("nix/rrddata", timeframe="hour")


def test_graphs_are_refused_with_the_place_of_the_figures() -> None:
    with pytest.raises(Refused, match=r"'local'.*rrddata"):
        get("local/rrd", timeframe="hour", ds="used")


@pytest.mark.parametrize("method", ["list", "download"])
@pytest.mark.parametrize(("name", "said"), [("local", "'local' is of type 'dir'.*'pbs'"), ("vault", "'pbs' are not")])
def test_single_files_come_from_backup_servers_only(method: str, name: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        get(f"{name}/file-restore/{method}", volume="backup/x", filepath="Lw==")
