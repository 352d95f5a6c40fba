"""Public cases of OVF descriptors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pvetools.storage import ovf
from pvetools.system import run
from pvetools.system.errors import PveError
from tests.conformance import loader


def _checks(case: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case / "expected.json").read_text())
    return found


def _make_disks(case: Path, folder: Path) -> None:
    """Images of the sizes that the case expects, beside the descriptor."""
    found: dict[int, dict[str, Any]] = {}
    for check in _checks(case).get("checks", ()):
        if check["path"][0] == "disks":
            found.setdefault(check["path"][1], {})[check["path"][2]] = check["expected"]
    for disk in found.values():
        path = Path(disk["backing_file"].replace("@DIR@", str(folder)))
        run.run(["qemu-img", "create", "-q", "-f", path.suffix[1:], path, str(disk.get("virtual_size", 1 << 20))])


def _read(case: Path, folder: Path) -> dict[str, Any]:
    manifest = folder / _checks(case).get("manifest", "manifest.ovf")
    shutil.copy(case / "manifest.ovf", manifest)
    guest = ovf.parse(manifest.read_bytes(), ovf.beside(manifest))
    disks = [
        {"disk_address": key, "backing_file": f"{folder}/{disk.volume}", "virtual_size": disk.size}
        for key, disk in guest.disks.items()
    ]
    return {"disks": disks, "net": guest.nets, "qm": guest.options}


@pytest.mark.parametrize("case", loader.folders("storage/ovf"))
def test_descriptors(case: Path, tmp_path: Path) -> None:
    expected = _checks(case)
    if expected.get("must_fail"):
        with pytest.raises(PveError):
            _read(case, tmp_path)
        return
    _make_disks(case, tmp_path)
    found = _read(case, tmp_path)
    for check in expected["checks"]:
        value: Any = found
        for step in check["path"]:
            value = value[step]
        wanted = check["expected"]
        assert value == (wanted.replace("@DIR@", str(tmp_path)) if isinstance(wanted, str) else wanted), check["path"]
