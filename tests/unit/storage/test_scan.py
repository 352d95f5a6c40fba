"""``pvesm scan`` before anybody is asked: its methods, its names, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvetools.api import tree
from pvetools.cli.pvesm import TOOL
from pvetools.render.command import pick
from pvetools.render.storage import scanned
from pvetools.system import paths
from pvetools.system.errors import ParamErrors, Refused

KINDS = ("cifs", "iscsi", "lvm", "lvmthin", "nfs", "nvme", "pbs", "zfs")


@pytest.fixture(autouse=True)
def rows(root: Path) -> None:
    tree.load("scan")


def call(kind: str, **raw: str) -> object:
    row = tree.ROWS["GET", f"/nodes/{{node}}/scan{kind and '/' + kind}"]
    return tree.call(row, {"node": paths.node(), **raw})


def test_the_index_names_what_can_be_scanned() -> None:
    assert call("") == [{"method": kind} for kind in KINDS]


def test_backup_servers_are_refused_by_name() -> None:
    with pytest.raises(Refused, match=r"^storage type 'pbs' is not served by this version, so its servers can't be"):
        call("pbs", server="127.0.0.1", username="root@pam", password="secret")


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("nfs", {"server": "-x"}), ("nfs", {"server": "a;b"}), ("cifs", {"server": "a b"}), ("cifs", {}),
        ("iscsi", {"portal": "127.0.0.1:0"}), ("nvme", {"portal": "[x]:1"}), ("lvmthin", {"vg": "-vg"}),
        ("lvmthin", {"vg": "a/b"}),
    ],
)  # fmt: skip
def test_names_that_are_none_reach_no_tool(kind: str, raw: dict[str, str]) -> None:
    with pytest.raises(ParamErrors):
        call(kind, **raw)


@pytest.mark.parametrize("kind", ["cifs", "iscsi", "lvm", "lvmthin", "nfs", "zfs"])
def test_the_old_names_of_the_commands_work(kind: str) -> None:
    assert pick(TOOL, [f"{kind}scan", "x"]) == (f"scan {kind}", ["x"])


def test_what_is_known_besides_the_name_stands_in_a_column() -> None:
    found = [
        {"path": "/srv/long", "options": "*"},
        {"path": "/a", "options": "10.0.0.1"},
        {"path": "/b", "options": ""},
    ]
    assert scanned(found, None, None) == "/srv/long *\n/a        10.0.0.1\n/b"
    assert scanned([], None, None) == ""
