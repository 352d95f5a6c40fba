"""Methods of the tree that are about backups."""

import json
from pathlib import Path
from typing import Any

import pytest

from pvetools.api import backup, tree
from pvetools.system import paths
from pvetools.system.errors import PveError
from tests.unit.vzdump.conftest import Node

PRUNE = "/nodes/localhost/storage/local/prunebackups"


def call(verb: str, path: str, **raw: str) -> Any:
    assert backup  # its rows are in the tree now
    row, variables = tree.find(verb, path)
    return tree.call(row, {**variables, **{name.replace("_", "-"): text for name, text in raw.items()}})


def archives(node: Node, *names: str) -> list[Path]:
    for name in names:
        (node.dump / name).touch()
    return [node.dump / name for name in names]


def test_defaults_show_file_and_storage(node: Node):
    (node.root / "etc/vzdump.conf").write_text("mode: stop\nexclude-path: /a '/b c'\n")
    paths.storage_config().write_text(
        f"dir: local\n\tpath {node.root}/var/lib/vz\n\tcontent backup\n\tprune-backups keep-last=3\n"
    )
    shown = call("GET", "/nodes/localhost/vzdump/defaults", storage="local")
    assert (shown["mode"], shown["prune-backups"], shown["remove"], shown["zstd"]) == ("stop", "keep-last=3", 1, 1)
    assert shown["exclude-path"] == ["/a", "/b c"]
    assert call("GET", "/nodes/localhost/vzdump/defaults")["prune-backups"] == "keep-all=1"
    json.dumps(shown)


def test_pruning_is_shown_before_it_is_done(node: Node):
    keep, drop, other, named = archives(
        node, "vzdump-qemu-100-2024_01_02-00_00_00.vma", "vzdump-qemu-100-2024_01_01-00_00_00.vma",
        "vzdump-lxc-200-2024_01_01-00_00_00.tar", "vzdump-qemu-100-mine.vma",
    )  # fmt: skip
    rows = call("GET", PRUNE, prune_backups="keep-last=1", vmid="100")
    assert {row["volid"].rpartition("/")[2]: row["mark"] for row in rows} == {
        keep.name: "keep", drop.name: "remove", named.name: "renamed",
    }  # fmt: skip
    assert all(path.exists() for path in (keep, drop, other, named))
    call("DELETE", PRUNE, prune_backups="keep-last=1", vmid="100")
    assert [path.exists() for path in (keep, drop, other, named)] == [True, False, True, True]


def test_without_limits_nothing_is_removed(node: Node):
    archives(node, "vzdump-qemu-100-2024_01_02-00_00_00.vma", "vzdump-qemu-100-2024_01_01-00_00_00.vma")
    assert {row["mark"] for row in call("GET", PRUNE, **{"prune-backups": "keep-all=1"})} == {"keep"}
    with pytest.raises(PveError, match="has no prune-backups rules, and none are given"):
        call("GET", PRUNE)


def test_only_backups_have_a_configuration_to_extract(node: Node):
    (node.root / "var/lib/vz/template/iso").mkdir(parents=True)
    for volume in ("local:iso/x.iso", "local:backup/vzdump-qemu-100-2024_01_01-00_00_00.vma", "nonsense"):
        with pytest.raises(PveError):
            call("GET", "/nodes/localhost/vzdump/extractconfig", volume=volume)
