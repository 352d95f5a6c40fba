"""The tree of methods: finding, checking, indexes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pvetools.api import nodes, tree  # noqa: F401 - its rows
from pvetools.api.common import GuestParams, NodeParams
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import string
from pvetools.system import paths, task
from pvetools.system.errors import NotImplementedMethod, ParamErrors


class VolumeParams(NodeParams):
    volume: str = field(string(), "Volume.", required=True)


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, Any]]:
    """A tree of a few rows."""
    monkeypatch.setattr(tree, "ROWS", {})

    def given(params: Record) -> Any:
        """Give the parameters."""
        return params.given

    tree.method("GET", "/nodes/{node}/box", NodeParams)(given)
    tree.method("GET", "/nodes/{node}/box/{vmid}/config", GuestParams)(given)
    tree.method("PUT", "/nodes/{node}/box/{vmid}/config", GuestParams)(given)
    tree.method("POST", "/nodes/{node}/box/{vmid}/status/start", GuestParams, task="boxstart")(given)
    tree.method("GET", "/nodes/{node}/content/{volume:*}", VolumeParams)(given)
    tree.method("DELETE", "/nodes/{node}/box/special", NodeParams)(given)
    tree.method("DELETE", "/nodes/{node}/box/{vmid}", GuestParams)(given)
    yield tree.ROWS


def _call(verb: str, path: str, **raw: str) -> Any:
    row, variables = tree.find(verb, path)
    return tree.call(row, {**variables, **raw})


def test_a_path_names_a_row_and_gives_its_variables(root: Path) -> None:
    assert _call("GET", "nodes//localhost/box/100/config/") == {"node": "localhost", "vmid": 100}


def test_the_last_variable_may_take_the_rest_of_the_path(root: Path) -> None:
    assert _call("GET", "/nodes/localhost/content/local:iso/a.iso")["volume"] == "local:iso/a.iso"
    assert _call("GET", "/nodes/localhost/content/local:x")["volume"] == "local:x"


def test_a_fixed_word_goes_before_a_variable(root: Path) -> None:
    assert _call("DELETE", "/nodes/localhost/box/special") == {"node": "localhost"}


@pytest.mark.parametrize(("verb", "path"), [("GET", "/nowhere"), ("POST", "/nodes/x/box"), ("PUT", "/")])
def test_what_is_not_there_is_told_by_verb_and_path(verb: str, path: str) -> None:
    with pytest.raises(NotImplementedMethod, match=f"Method '{verb} {path}' not implemented"):
        tree.find(verb, path)


def test_another_node_is_refused(root: Path) -> None:
    with pytest.raises(ParamErrors, match=f"no such node 'far', this host is '{paths.node()}'"):
        _call("GET", "/nodes/far/box")
    assert _call("GET", f"/nodes/{paths.node()}/box") == {"node": paths.node()}


def test_all_wrong_parameters_are_told_at_once(root: Path) -> None:
    with pytest.raises(ParamErrors) as caught:
        _call("GET", "/nodes/localhost/box/7/config", more="x")
    assert caught.value.errors.keys() == {"vmid", "more"}


@pytest.mark.parametrize(
    ("path", "index"),
    [
        ("/", [{"subdir": "nodes"}]),
        ("/nodes/localhost", [{"name": "box"}, {"name": "content"}]),
        ("/nodes/localhost/box/100", [{"subdir": "config"}, {"subdir": "status"}]),
        ("/nodes/localhost/box/100/status", [{"subdir": "start"}]),
    ],
)
def test_an_inner_node_lists_its_children(root: Path, path: str, index: list[dict[str, str]]) -> None:
    assert _call("GET", path) == index


def test_an_index_checks_its_path_too(root: Path) -> None:
    with pytest.raises(ParamErrors, match="no such node"):
        _call("GET", "/nodes/far")
    with pytest.raises(ParamErrors, match="vmid"):
        _call("GET", "/nodes/localhost/box/7")


def test_verbs_and_children_of_a_path_are_known() -> None:
    assert tree.verbs_at("/nodes/x/box/100/config") == ["GET", "PUT"]
    assert tree.verbs_at("/nodes/x/box/100") == ["DELETE", "GET"]
    assert tree.children("/nodes/x/box") == ["{vmid}", "special"]
    assert tree.children("/nodes/x/box/100/config") == []


def test_a_row_with_a_task_runs_as_one_and_gives_its_id(root: Path) -> None:
    upid = task.parse_upid(_call("POST", "/nodes/localhost/box/100/status/start"))
    assert (upid.type, upid.id) == ("boxstart", "100")
    assert task.entry_of(upid).status == "OK"
