"""Rows about guests, as they are declared."""

from __future__ import annotations

import pytest

from pvetools.api import tree


@pytest.mark.parametrize(
    ("path", "given", "kind"),
    [
        ("lxc", {"ostemplate": "local:vztmpl/x.tar"}, "vzcreate"),
        ("lxc", {"ostemplate": "/x.tar", "restore": "1"}, "vzrestore"),
        ("qemu", {}, "qmcreate"),
        ("qemu", {"archive": "/x.vma"}, "qmrestore"),
    ],
)
def test_making_and_restoring_guests_are_tasks_of_different_types(path: str, given: dict[str, str], kind: str) -> None:
    row, _ = tree.find("POST", f"/nodes/localhost/{path}")
    assert callable(row.task)
    assert row.task(row.params.check({"node": "localhost", "vmid": "100", **given})) == kind
