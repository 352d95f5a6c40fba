"""Public cases of backup options, guest selection and configuration rewriting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvetools.backup import options, select, vmconf
from pvetools.options.backup import PruneBackups, VzdumpOptions
from pvetools.schema.core import NestedErrors
from tests.conformance import loader

OPTION_CASES, _ = loader.table("vzdump/options")
GUEST_CASES, GUESTS = loader.table("vzdump/included_guests")


def _in_force(case: dict[str, Any]) -> dict[str, Any]:
    given = VzdumpOptions.check({key: str(value) for key, value in case["cli"].items()} | {"vmid": "100"})
    conf = options.read_conf("".join(f"{key}: {value}\n" for key, value in case["vzdump_conf"].items()))
    of_storage = case["storage"].get("prune-backups")
    keep = PruneBackups.parse(of_storage) if of_storage else None
    settings = options.resolve(given, conf, keep)
    return {
        "prune-backups": dict(settings.keep),
        "remove": int(settings.remove),
        "mailto": settings.options.mailto or [],
    }


@pytest.mark.parametrize("case", OPTION_CASES)
def test_options_in_force(case: dict[str, Any]) -> None:
    if isinstance(case["expected"], str):
        with pytest.raises(NestedErrors) as caught:
            PruneBackups.parse(case["cli"]["prune-backups"])
        assert f"{caught.value}\n" == case["expected"]
        return
    found = _in_force(case)
    assert {key: found[key] for key in case["compare_options"]} == case["expected"]


@pytest.mark.parametrize("case", GUEST_CASES)
def test_chosen_guests(case: dict[str, Any]) -> None:
    chosen = VzdumpOptions.check({key: str(value) for key, value in case["params"].items()})
    nodes = {int(vmid): guest["node"] for vmid, guest in GUESTS["guests"].items()}
    assert select.included(chosen, nodes, GUESTS["pools"].__getitem__) == case["expected"]


@pytest.mark.parametrize("folder", loader.folders("qemu-restore-config"))
def test_a_restored_configuration(folder: Path) -> None:
    text, vmid = (folder / "input.conf").read_text(), folder.name
    volumes = {
        line.key: f"target:{vmid}/vm-{vmid}-disk-{number}.{line.format or 'raw'}"
        for number, line in enumerate(vmconf.maps(text))
    }
    how = vmconf.Rewrite(volumes, unique=False, new_mac=lambda: "")
    assert vmconf.rewritten(text, how) == (folder / "expected.conf").read_text()
