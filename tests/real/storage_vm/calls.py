"""Calls of the interface in this process: starting Python takes seconds under emulation."""

from __future__ import annotations

from typing import Any

import pytest

from pvetools.api import tree
from pvetools.system.errors import PveError

NODE = "/nodes/localhost"


def call(verb: str, path: str, **options: object) -> Any:
    """`call("create", "/lxc", vmid=100)`; two underscores are a dash."""
    tree.load_for(NODE + path)
    row, variables = tree.find(tree.VERBS[verb], NODE + path)
    given = {key.rstrip("_").replace("__", "-"): str(value) for key, value in options.items()}
    return tree.call(row, {**variables, **given})


def refused(verb: str, path: str, **options: object) -> str:
    """What a call says that must fail."""
    with pytest.raises(PveError) as caught:
        call(verb, path, **options)
    return str(caught.value)
