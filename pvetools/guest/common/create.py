"""Making a guest: the id is taken first, volumes are allocated next, the finished file is written last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig, Section
from pvetools.guest.common.kind import GuestKind, Making
from pvetools.schema.core import Record
from pvetools.system import lock, task
from pvetools.system.errors import ParamErrors

Populate = Callable[[GuestConfig, ExitStack], None]


def create(
    kind: GuestKind,
    vmid: int,
    options: Record,
    *,
    defaults: Mapping[str, str] | None = None,
    lxc: list[tuple[str, str]] | None = None,
    populate: Populate | None = None,
) -> GuestConfig:
    """Make a guest from its options; nothing stays when that fails.

    While it is made its file carries ``lock: create``: a killed command leaves it visible, with its volumes.

    Args:
        kind: which kind of guest.
        vmid: its id, unused so far.
        options: checked options; other parameters of the caller among them are ignored.
        defaults: texts of options that are stored when they are not given.
        lxc: raw lines of a container.
        populate: fills new volumes (unpacks a template); called before the file is finished.

    Raises:
        Exists: the id is in use. ParamErrors: options that do not fit together. Errors of the storage.
    """
    values = {key: value for key, value in options.given.items() if kind.options.find(key)}
    plain = {key: _text(kind, key, value) for key, value in values.items() if not kind.is_volume_key(key)}
    disks = {key: value for key, value in values.items() if kind.is_volume_key(key)}
    section = Section({**(defaults or {}), **plain}, lxc)
    _check(kind, {**section, **{key: _text(kind, key, value) for key, value in disks.items()}})
    with lock.guest_lock(vmid), ExitStack() as undo:
        with task.uninterrupted():
            draft = config.create(kind.name, vmid, {**section, "lock": "create"}, lxc)
            undo.callback(config.remove, kind.name, vmid)
        for key, value in disks.items():
            making = Making(vmid, key, value, draft.current, undo, options.given)
            draft.current[key] = kind.make_volume(making)
            config.save(draft)
        if populate:
            populate(draft, undo)
        del draft.current["lock"]
        config.save(draft)
        undo.pop_all()
    return draft


def _text(kind: GuestKind, key: str, value: object) -> str:
    found = kind.options.find(key)
    if found is None:
        raise KeyError(key)
    return found[0].kind.format(value)


def _check(kind: GuestKind, section: Mapping[str, str]) -> None:
    errors = kind.rules(section)
    if errors:
        raise ParamErrors(errors)
