"""Configurations and the domain definitions that are made of them.

`PVETOOLS_REGENERATE=1 pytest tests/golden/qemu` writes the definitions anew; look at the difference before committing.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pvetools.guest.qemu.buses import split, target
from tests.unit.qemu.places import define, section

HERE = Path(__file__).parent
CONFIGS = sorted(HERE.glob("*.conf"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_makes_the_same_domain_as_ever(path: Path) -> None:
    made = define(path.read_text()).xml
    expected = path.with_suffix(".xml")
    if os.environ.get("PVETOOLS_REGENERATE") == "1":
        if os.environ.get("CI"):
            pytest.fail("definitions are not regenerated in CI")
        expected.write_text(made)
    assert made == expected.read_text()


def test_there_is_no_definition_without_its_configuration() -> None:
    assert {path.stem for path in HERE.glob("*.xml")} == {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_disk_has_the_target_that_other_commands_expect(path: Path) -> None:
    made = define(path.read_text()).xml
    keys = [key for key in section(path.read_text()) if split(key)]
    assert all(f'dev="{target(key)}"' in made for key in keys)
