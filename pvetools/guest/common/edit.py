"""Changing a guest's configuration: set, delete, revert; directly for stopped guests, pending for running ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from pvetools.config import guest as config
from pvetools.config import pending as arithmetic
from pvetools.config.guest import GuestConfig, Section
from pvetools.guest.common.kind import GuestKind, Making, used_volumes
from pvetools.schema.core import Record
from pvetools.system import lock
from pvetools.system.errors import ParamErrors, PveError, Refused

# keys that no user sets or deletes by hand
RESERVED = ("parent", "snaptime", "digest", "vmstate", "runningmachine", "runningcpu", "snapstate", "snapshots")
MAX_UNUSED = 256


class Change(NamedTuple):
    """What a caller wants changed."""

    options: Record | None = None
    delete: Sequence[str] = ()
    revert: Sequence[str] = ()
    digest: str = ""
    force: bool = False
    skip_lock: bool = False


def apply(kind: GuestKind, vmid: int, change: Change) -> None:
    """Change a guest's configuration, all of it or nothing.

    Raises:
        ParamErrors: a key that cannot be set or deleted. Locked, DigestMismatch, NotFound.
    """
    with lock.guest_lock(vmid), ExitStack() as undo:
        current = config.load(kind.name, vmid)
        config.check_digest(current, change.digest)
        if not change.skip_lock:
            config.check_lock(current)
        values = _wanted(kind, change)
        _check_delete(kind, current, change, values)
        running = kind.is_running(vmid)
        texts = _made(kind, current, change, values, undo)
        freed = _delete(kind, current, change, running=running)
        _set(kind, current, texts, running=running)
        _revert(kind, current, change.revert)
        arithmetic.clean(current.current, current.pending)
        _check_rules(kind, current)
        config.save(current)
        undo.pop_all()
        _free_all(current, freed)


def _wanted(kind: GuestKind, change: Change) -> dict[str, object]:
    """The parsed values of those parameters that are options of the guest."""
    given = change.options.given if change.options else {}
    return {key: value for key, value in given.items() if kind.options.find(key)}


def _check_delete(kind: GuestKind, current: GuestConfig, change: Change, values: Mapping[str, object]) -> None:
    errors: dict[str, str] = {}
    for key in (*change.delete, *change.revert):
        if key in RESERVED or (not kind.options.find(key) and key not in current.current):
            errors[key] = "unknown option, or one that can not be deleted"
        elif key in values:
            errors[key] = "can't set and delete or revert the same option in one call"
    if errors:
        raise ParamErrors({"delete": "; ".join(f"'{key}': {why}" for key, why in errors.items())})
    if "protection" not in change.delete and config.is_on(current.current, "protection"):
        touched = [key for key in change.delete if key in kind.volumes(current.current)]
        if touched:
            raise Refused(f"can't remove disk '{touched[0]}' - protection mode is enabled for guest {current.vmid}")


def _made(
    kind: GuestKind, current: GuestConfig, change: Change, values: Mapping[str, object], undo: ExitStack
) -> dict[str, str]:
    """Texts to store; new volumes are allocated now and freed again if anything fails."""
    texts: dict[str, str] = {}
    call = change.options.given if change.options else {}
    for key, value in values.items():
        found = kind.options.find(key)
        if found is None:
            continue
        if kind.is_volume_key(key):
            texts[key] = kind.make_volume(Making(current.vmid, key, value, current.current, undo, call))
        else:
            texts[key] = found[0].kind.format(value)
    return texts


def _delete(kind: GuestKind, current: GuestConfig, change: Change, *, running: bool) -> list[str]:
    """Remove keys now or mark them pending; gives the volumes that are to be freed once the file is written."""
    freed: list[str] = []
    for key in change.delete:
        _drop_pending(kind, current, key)
        if key not in current.current:
            continue
        if running and not _is_immediate(kind, current.vmid, key, None):
            arithmetic.add_delete(current.pending, key, force=change.force)
        else:
            freed += _drop(kind, current, key, force=change.force)
    return freed


def _drop(kind: GuestKind, current: GuestConfig, key: str, *, force: bool) -> list[str]:
    """Take a key out of the current section; its volume becomes unused, or is freed (``unusedN`` and ``force``)."""
    volid = kind.volumes(current.current).get(key)
    del current.current[key]
    if volid is None or volid in used_volumes(kind, (current.current, *current.snapshots.values())):
        return []
    owned = owns(current.vmid, volid)
    if force or key.startswith("unused"):
        return [volid] if owned else []
    if owned is not False:
        add_unused(current.current, volid)
    return []


def add_unused(section: Section, volid: str) -> str:
    """Keep a volume that no disk uses any more as the first free ``unusedN``."""
    for index in range(MAX_UNUSED):
        key = f"unused{index}"
        if section.get(key) == volid:
            return key
        if key not in section:
            section[key] = volid
            return key
    raise PveError(f"no free 'unused' entry for volume '{volid}' (at most {MAX_UNUSED})")


def owns(vmid: int, volid: str) -> bool | None:
    """Whether a volume belongs to a guest; None where nobody knows, as its storage is gone."""
    from pvetools.storage import volumes

    try:
        return volumes.owner(volid) == vmid
    except PveError:
        return None


def _set(kind: GuestKind, current: GuestConfig, texts: Mapping[str, str], *, running: bool) -> None:
    for key, text in texts.items():
        if current.current.get(key) == text:
            current.pending.pop(key, None)
        elif running and not _is_immediate(kind, current.vmid, key, text):
            replace_value(kind, current, current.pending, key, text)
            arithmetic.drop_delete(current.pending, key)
            continue
        else:
            replace_value(kind, current, current.current, key, text)
            current.pending.pop(key, None)
        arithmetic.drop_delete(current.pending, key)


def _is_immediate(kind: GuestKind, vmid: int, key: str, text: str | None) -> bool:
    found = kind.options.find(key)
    if found is None or found[0].apply in ("fast", "config-only", "internal"):
        return True
    return kind.apply_live(vmid, key, text)


def replace_value(kind: GuestKind, current: GuestConfig, section: Section, key: str, text: str) -> None:
    """Set a key; a volume that it held before and that nothing else names becomes unused."""
    before = kind.volumes(section).get(key)
    section[key] = text
    still = used_volumes(kind, (current.current, current.pending, *current.snapshots.values()))
    if before and before not in still and owns(current.vmid, before) is not False:
        add_unused(current.current, before)
    now = kind.volumes(section).get(key)
    for name in [name for name in current.current if name.startswith("unused") and current.current[name] == now]:
        del current.current[name]


def _revert(kind: GuestKind, current: GuestConfig, keys: Sequence[str]) -> None:
    for key in keys:
        _drop_pending(kind, current, key)
        arithmetic.drop_delete(current.pending, key)


def _drop_pending(kind: GuestKind, current: GuestConfig, key: str) -> None:
    """Forget a pending value; a volume that only it names becomes unused."""
    volid = kind.volumes(current.pending).get(key)
    current.pending.pop(key, None)
    still = used_volumes(kind, (current.current, current.pending, *current.snapshots.values()))
    if volid and volid not in still and owns(current.vmid, volid):
        add_unused(current.current, volid)


def _check_rules(kind: GuestKind, current: GuestConfig) -> None:
    gone = arithmetic.parse_delete(current.pending.get(arithmetic.DELETE))
    kept = {key: text for key, text in current.current.items() if key not in gone}
    errors = kind.rules({**kept, **{key: text for key, text in current.pending.items() if key != arithmetic.DELETE}})
    if errors:
        raise ParamErrors(errors)


def _free_all(current: GuestConfig, volids: Sequence[str]) -> None:
    """Free volumes that the file names no more; those that can't be freed get their entry back."""
    if volids:
        from pvetools.guest.common import references

        if left := references.free_all(volids):
            _keep(current, left)


def _keep(current: GuestConfig, volids: Sequence[str]) -> None:
    for volid in volids:
        add_unused(current.current, volid)
    config.save(current)


def free_replaced(kind: GuestKind, vmid: int, volids: Collection[str]) -> None:
    """Free what a guest had before it was replaced; that may take long, so the guest can be used meanwhile."""
    from pvetools.guest.common import references

    if left := references.free_all(volids):
        with lock.guest_lock(vmid):
            current = config.load(kind.name, vmid)
            _keep(current, left)


def apply_pending(kind: GuestKind, current: GuestConfig) -> bool:
    """Make pending changes current, before a start; the caller holds the lock. True when something changed.

    Volumes that drop out become unused, or are freed where the user asked for that.
    """
    if not current.pending:
        return False
    deletes = arithmetic.parse_delete(current.pending.get("delete"))
    freed: list[str] = []
    for key, force in deletes.items():
        if key in current.current:
            freed += _drop(kind, current, key, force=force)
    wanted = {key: text for key, text in current.pending.items() if key != "delete"}
    current.pending.clear()
    for key, text in wanted.items():
        replace_value(kind, current, current.current, key, text)
    config.save(current)
    _free_all(current, freed)
    return True
