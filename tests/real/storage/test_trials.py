"""Mounts of servers' folders that a killed trial has left."""

from __future__ import annotations

import pytest

from pvetools.storage import mounts, registry, volumes
from pvetools.storage.mounted import MountedStorage
from pvetools.system import paths, run
from pvetools.system.errors import PveError
from tests.sandbox.root import Root


def storage() -> MountedStorage:
    """One whose server refuses every connection."""
    paths.storage_config().write_text("nfs: one\n\tserver 127.0.0.1\n\texport /srv\n\toptions port=9\n")
    made = registry.driver(volumes.get("one"))
    assert isinstance(made, MountedStorage)
    return made


@pytest.mark.parametrize("act", ["deactivate", "verify"])
def test_what_a_killed_trial_left_is_unmounted(root: Root, act: str) -> None:
    made, point = storage(), paths.run_dir() / "verify-one"
    point.mkdir(parents=True)
    run.run(["mount", "-t", "tmpfs", "none", point])
    if act == "verify":
        with pytest.raises(PveError, match="Connection refused"):
            made.verify()
    else:
        made.deactivate()
    assert mounts.at(point) is None
    assert not point.exists()
