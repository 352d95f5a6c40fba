"""Public cases of containers: id maps, and what is written into the trees of those distributions that we adapt."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pvetools.config import guest
from pvetools.guest.lxc import idmap
from pvetools.guest.lxc.idmap import IdMap
from pvetools.guest.lxc.setup import family
from pvetools.guest.lxc.setup.names import Dns
from pvetools.guest.lxc.tree import GuestTree
from pvetools.options.lxc import LxcOptions
from pvetools.system.errors import PveError
from tests.conformance import loader

MAPS, _ = loader.table("lxc-idmap/idmap")
# The others' network files are of kinds that we do not write yet (network-scripts, NetworkManager, wicked).
ADAPTED = ("debian", "devuan", "alpine")
TREES = [case for case in loader.folders("lxc-setup") if case.values[0].name.startswith(ADAPTED)]
HOST_DNS = Dns(("proxmox.com",), ("8.8.8.8", "8.8.8.9"))


@pytest.mark.parametrize("case", MAPS)
def test_id_maps(case: dict[str, Any]) -> None:
    lines = [(key, value) for key, value in case["lxc"]]
    section = {"unprivileged": "1"} if case["unprivileged"] else {}
    if case["valid"]:
        given = [value for key, value in lines if key == "lxc.idmap"]
        found = [str(entry) for entry in idmap.of(section, lines).entries]
        assert found == (given or [str(entry) for entry in idmap.DEFAULT.entries])
        return
    with pytest.raises(PveError) as caught:
        idmap.of(section, lines)
    for pattern in case["error_patterns"]:
        assert re.search(pattern, str(caught.value))


@pytest.mark.parametrize("case", TREES)
def test_trees_after_creation(case: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(case / "rootfs", root, symlinks=True)
    extra = json.loads((case / "tree.json").read_text())
    for folder in extra["directories"]:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for link, target in extra["symlinks"].items():
        (root / link).symlink_to(target)
    options = LxcOptions.read(guest.parse("lxc", 100, (case / "config").read_text()).current)
    for _ in ("created", "and once more"):
        with GuestTree(root, IdMap()) as tree:
            subject = family.subject(tree, options, HOST_DNS)
            family.after_create(subject, "$5$SALT$PASS", ["ssh-rsa ABCDEFG ABC@DEF"])
    expected = {path.relative_to(case / "expected"): path for path in (case / "expected").rglob("*") if path.is_file()}
    today = str(int(time.time()) // 86400)
    for name, path in expected.items():
        assert (root / name).read_text() == path.read_text().replace("@DAYS@", today), name
