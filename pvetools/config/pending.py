"""Arithmetic of pending changes: what is asked for but not yet in force, and what is to be deleted.

The part of pending changes holds new values by key, and under ``delete`` the keys to be deleted: ``cpu,!mp0``,
where ``!`` asks to delete the volume behind the key as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from pvetools.schema.kinds import split_list

DELETE = "delete"


def parse_delete(text: str | None) -> dict[str, bool]:
    """Keys to be deleted, each with whether its volume goes as well (``!``)."""
    return {part.removeprefix("!"): part.startswith("!") for part in split_list(text or "")}


def format_delete(keys: Mapping[str, bool]) -> str:
    """The text of ``delete``."""
    return ",".join(("!" if force else "") + key for key, force in keys.items())


def _store(pending: dict[str, str], keys: Mapping[str, bool]) -> None:
    if keys:
        pending[DELETE] = format_delete(keys)
    else:
        pending.pop(DELETE, None)


def add_delete(pending: dict[str, str], key: str, *, force: bool = False) -> None:
    """Ask for the deletion of a key; its pending new value is dropped."""
    keys = parse_delete(pending.get(DELETE))
    keys[key] = force
    pending.pop(key, None)
    _store(pending, keys)


def drop_delete(pending: dict[str, str], key: str) -> None:
    """Take back the deletion of a key."""
    keys = parse_delete(pending.get(DELETE))
    keys.pop(key, None)
    _store(pending, keys)


def clean(current: Mapping[str, str], pending: dict[str, str]) -> None:
    """Drop pending changes that change nothing: values in force, deletions of what is not there."""
    for key in [key for key, value in pending.items() if key != DELETE and current.get(key) == value]:
        del pending[key]
    _store(pending, {key: force for key, force in parse_delete(pending.get(DELETE)).items() if key in current})
