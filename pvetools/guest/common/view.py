"""Showing guests' configurations: current, with pending changes, of a snapshot."""

from __future__ import annotations

from typing import Any

from pvetools.config import guest as config
from pvetools.config import pending as arithmetic
from pvetools.config.guest import GuestConfig
from pvetools.guest.common.kind import GuestKind
from pvetools.schema.core import Field
from pvetools.system.errors import NotFound, ParamErrors

SECRET = ("cipassword",)
HIDDEN = ("snapstate",)


def show(kind: GuestKind, vmid: int, *, current: bool = False, snapshot: str = "") -> dict[str, Any]:
    """A guest's configuration as data: pending changes applied unless ``current``, or that of a snapshot.

    Raises:
        NotFound: no such guest or snapshot. ParamErrors: both asked for.
    """
    found = config.load(kind.name, vmid)
    if snapshot and current:
        raise ParamErrors({"snapshot": "cannot use 'snapshot' parameter with 'current'"})
    if snapshot and snapshot not in found.snapshots:
        raise NotFound(f"snapshot '{snapshot}' does not exist")
    section = dict(found.snapshots[snapshot] if snapshot else found.current)
    if not (snapshot or current):
        for key in arithmetic.parse_delete(found.pending.get("delete")):
            section.pop(key, None)
        section.update({key: text for key, text in found.pending.items() if key != "delete"})
    shown: dict[str, Any] = {key: _value(kind, key, text) for key, text in section.items() if key not in HIDDEN}
    raw = found.snapshots[snapshot].lxc if snapshot else found.current.lxc
    if raw:
        shown["lxc"] = [list(pair) for pair in raw]
    return {**shown, "digest": found.digest}


def _value(kind: GuestKind, key: str, text: str) -> Any:
    """Numbers and booleans as JSON numbers, as Proxmox VE gives them; secrets as stars."""
    if key in SECRET:
        return "**********"
    found = kind.options.find(key)
    return typed(found[0], text) if found else text


def typed(row: Field, text: str) -> Any:
    """A stored text as the API gives it: integers, numbers and booleans as numbers."""
    if row.kind.json.get("type") not in ("integer", "number", "boolean"):
        return text
    try:
        value = row.kind.parse(text)
    except ValueError:
        return text
    return int(value) if isinstance(value, bool) or float(value).is_integer() else value


def pending(kind: GuestKind, vmid: int) -> list[dict[str, Any]]:
    """Every option with its current value and what is pending: ``key value pending delete`` (1, or 2 with force).

    Raises:
        NotFound: no such guest.
    """
    found = config.load(kind.name, vmid)
    return [_pending_row(kind, found, key) for key in sorted(_keys(found))]


def _keys(found: GuestConfig) -> set[str]:
    deletes = arithmetic.parse_delete(found.pending.get("delete"))
    return ({*found.current, *found.pending, *deletes}) - {"delete", *HIDDEN}


def _pending_row(kind: GuestKind, found: GuestConfig, key: str) -> dict[str, Any]:
    deletes = arithmetic.parse_delete(found.pending.get("delete"))
    row: dict[str, Any] = {"key": key}
    if key in found.current:
        row["value"] = _value(kind, key, found.current[key])
    if key in found.pending:
        row["pending"] = _value(kind, key, found.pending[key])
    if key in deletes:
        row["delete"] = 2 if deletes[key] else 1
    return row
