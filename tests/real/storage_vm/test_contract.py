"""The contract of storage backends, with every backend and format that is served."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from pvetools.storage import registry
from pvetools.system import paths
from tests.real import test_storage_contract
from tests.real.storage_vm.beds import BEDS, CASES
from tests.real.storage_vm.contract import *  # noqa: F403 - the tests are the point
from tests.real.storage_vm.contract import Case


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, module_root: object) -> Iterator[Case]:
    """A real storage, defined; the next case gets a fresh one."""
    name, form = request.param
    with BEDS[name]() as bed:
        paths.storage_config().write_text(f"{bed.section}\tcontent {bed.content}\n")
        yield Case(bed, form)
        paths.storage_config().unlink()


def test_every_backend_is_held_to_the_contract() -> None:
    on_the_host = {*test_storage_contract.BEDS, "rbd"}
    assert {name for name, _ in CASES} >= {*BEDS} - on_the_host
    assert {*registry.SERVED} - foreign() <= {name.rstrip("0123456789") for name in BEDS}


def foreign() -> set[str]:
    """The types whose volumes are made elsewhere, or that hold no guests; they have contracts of their own."""
    places = {name: place.partition(":") for name, place in registry.SERVED.items()}
    return {
        name for name, (module, _, backend) in places.items()
        if not getattr(importlib.import_module(module), backend).info.alloc
    }  # fmt: skip
