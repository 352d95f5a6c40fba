"""Arithmetic of pending changes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pvetools.config import pending
from pvetools.config.guest import GuestConfig, Section

NAMES = ("cores", "memory", "mp0", "name")
VALUES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("123"))
DELETIONS = st.dictionaries(st.sampled_from(NAMES), st.booleans())


def made(current: dict[str, str], changes: dict[str, str]) -> GuestConfig:
    return GuestConfig("qemu", 100, Path("x"), current=Section(current), pending=Section(changes))


def test_a_new_value_takes_back_the_deletion_and_the_other_way_round() -> None:
    config = made({"cores": "1"}, {})
    pending.add_delete(config.pending, "cores")
    assert config.pending == {"delete": "cores"}
    pending.put(config, "cores", "2")
    assert config.pending == {"cores": "2"}
    pending.add_delete(config.pending, "cores", force=True)
    assert config.pending == {"delete": "!cores"}


def test_the_value_in_force_is_no_change() -> None:
    config = made({"cores": "1"}, {"cores": "2"})
    pending.put(config, "cores", "1")
    assert config.pending == {}


def test_revert_forgets_values_and_deletions() -> None:
    config = made({"cores": "1", "memory": "1"}, {"cores": "2", "delete": "memory,!mp0", "name": "x"})
    pending.revert(config, ["cores", "memory", "not-there"])
    assert config.pending == {"delete": "!mp0", "name": "x"}


def test_apply_puts_chosen_changes_in_force() -> None:
    config = made({"cores": "1", "mp0": "a", "memory": "1"}, {"cores": "2", "memory": "5", "delete": "!mp0"})
    assert pending.apply(config, lambda key: key != "memory") == {"mp0": True}
    assert config.current == {"cores": "2", "memory": "1"}
    assert config.pending == {"memory": "5"}


def test_an_empty_pending_description_removes_the_description() -> None:
    config = made({"description": "old\n"}, {"description": "\n"})
    pending.apply(config)
    assert config.current == {}


def test_overview_shows_current_pending_and_deleted() -> None:
    config = made({"a": "1", "b": "1", "c": "1"}, {"a": "2", "d": "4", "b": "1", "delete": "c,!e"})
    assert pending.overview(config) == [
        ("a", "1", "2", 0),
        ("b", "1", None, 0),
        ("c", "1", None, 1),
        ("d", None, "4", 0),
        ("e", None, None, 2),
    ]


@given(DELETIONS)
def test_the_list_of_deletions_survives_its_text(keys: dict[str, bool]) -> None:
    assert pending.parse_delete(pending.format_delete(keys)) == keys


@given(VALUES, VALUES, DELETIONS)
def test_applying_gives_what_merged_foretold(
    current: dict[str, str], new: dict[str, str], deletions: dict[str, bool]
) -> None:
    config = made(current, new)
    for key, force in deletions.items():
        pending.add_delete(config.pending, key, force=force)
    pending.clean(config.current, config.pending)
    expected = pending.merged(config)
    pending.apply(config)
    assert config.current == expected
    assert not config.pending
    assert not deletions.keys() & config.current.keys()
