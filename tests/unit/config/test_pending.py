"""Arithmetic of pending changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pvetools.config import pending

NAMES = ("cores", "memory", "mp0", "name")
VALUES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("123"))
DELETIONS = st.dictionaries(st.sampled_from(NAMES), st.booleans())


def test_a_deletion_replaces_the_pending_value_and_can_be_taken_back() -> None:
    changes = {"cores": "2", "memory": "3"}
    pending.add_delete(changes, "cores")
    assert changes == {"memory": "3", "delete": "cores"}
    pending.add_delete(changes, "cores", force=True)
    assert changes == {"memory": "3", "delete": "!cores"}
    pending.drop_delete(changes, "cores")
    assert changes == {"memory": "3"}


def test_lists_are_read_with_any_separator() -> None:
    assert pending.parse_delete("a; !b,c  !d") == {"a": False, "b": True, "c": False, "d": True}
    assert pending.parse_delete(None) == {}


@given(DELETIONS)
def test_the_list_of_deletions_survives_its_text(keys: dict[str, bool]) -> None:
    assert pending.parse_delete(pending.format_delete(keys)) == keys


@given(VALUES, VALUES, DELETIONS)
def test_cleaning_keeps_only_what_changes_something(
    current: dict[str, str], new: dict[str, str], deletions: dict[str, bool]
) -> None:
    changes = dict(new)
    for key, force in deletions.items():
        pending.add_delete(changes, key, force=force)
    pending.clean(current, changes)
    gone = pending.parse_delete(changes.pop("delete", None))
    assert gone == {key: force for key, force in deletions.items() if key in current}
    assert changes == {key: value for key, value in new.items() if key not in deletions and current.get(key) != value}
