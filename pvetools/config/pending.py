"""Arithmetic of pending changes: what is asked for but not yet in force, and what is to be deleted.

The part of pending changes holds new values by key, and under ``delete`` the keys to be deleted: ``cpu,!mp0``,
where ``!`` asks to delete the volume behind the key as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pvetools.config.guest import GuestConfig
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


def put(config: GuestConfig, key: str, value: str) -> None:
    """Ask for a new value; a pending deletion of the key is dropped. The value in force is no change."""
    drop_delete(config.pending, key)
    if config.current.get(key) == value:
        config.pending.pop(key, None)
    else:
        config.pending[key] = value


def revert(config: GuestConfig, keys: Iterable[str]) -> None:
    """Forget the pending changes of some keys (``qm set --revert``)."""
    for key in keys:
        drop_delete(config.pending, key)
        config.pending.pop(key, None)


def clean(current: Mapping[str, str], pending: dict[str, str]) -> None:
    """Drop pending changes that change nothing: values in force, deletions of what is not there."""
    for key in [key for key, value in pending.items() if key != DELETE and current.get(key) == value]:
        del pending[key]
    _store(pending, {key: force for key, force in parse_delete(pending.get(DELETE)).items() if key in current})


def merged(config: GuestConfig) -> dict[str, str]:
    """The configuration as it will be once all pending changes are in force."""
    gone = parse_delete(config.pending.get(DELETE))
    result = {key: value for key, value in config.current.items() if key not in gone}
    result.update({key: value for key, value in config.pending.items() if key != DELETE})
    return result


def apply(config: GuestConfig, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, bool]:
    """Put pending changes in force; ``wanted`` chooses keys.

    Returns:
        The deleted keys, each with whether its volume is to be deleted as well; what that means is the caller's.
    """
    deletions = {key: force for key, force in parse_delete(config.pending.get(DELETE)).items() if wanted(key)}
    for key in deletions:
        config.current.pop(key, None)
        drop_delete(config.pending, key)
    for key in [key for key in config.pending if key != DELETE and wanted(key)]:
        value = config.pending.pop(key)
        if key == "description" and not value.strip("\n"):
            config.current.pop(key, None)
        else:
            config.current[key] = value
    return deletions


class Change(NamedTuple):
    """One row of ``qm pending``; ``delete`` is 0, 1, or 2 when the volume goes as well."""

    key: str
    value: str | None
    pending: str | None
    delete: int


def overview(config: GuestConfig) -> list[Change]:
    """All keys in force or pending, in alphabetical order."""
    gone = parse_delete(config.pending.get(DELETE))
    keys = (config.current.keys() | config.pending.keys() | gone.keys()) - {DELETE}
    rows: list[Change] = []
    for key in sorted(keys):
        value, new = config.current.get(key), config.pending.get(key)
        rows.append(Change(key, value, new if new != value else None, 1 + gone[key] if key in gone else 0))
    return rows
