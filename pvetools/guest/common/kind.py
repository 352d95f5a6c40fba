"""What a kind of guest supplies to the code that virtual machines and containers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from pvetools.schema.core import Record


class Making(NamedTuple):
    """A value that may ask for a new volume: whose, at which key, the parsed value, and the undo stack.

    ``call``: all parameters of the call, also those that are no options of a guest.
    """

    vmid: int
    key: str
    value: Any
    section: Mapping[str, str]
    undo: ExitStack
    call: Mapping[str, Any] = {}


class GuestKind(NamedTuple):
    """One kind of guest, as data and functions.

    Args:
        name: ``qemu`` or ``lxc``.
        label: word in messages, ``VM`` or ``CT``.
        tool: ``qm`` or ``pct``.
        options: the declaration of its config file.
        is_running: whether the guest of that id runs now (paused counts).
        volumes: storage volumes of a config section by key, ``unusedN`` and saved RAM included, without cdroms,
            bind mounts and host paths.
        make_volume: gives the text to store for a disk value; allocates (and registers the freeing on the undo
            stack) when the value asks for a new volume, checks an existing one otherwise.
        volume_keys: whether a key holds a volume at all.
        with_size: a disk's text with another ``size=``.
        rules: cross-field checks of a whole section that is about to be written; gives wrong keys with reasons.
        apply_live: tries to bring one change (text, or None for removal) into the running guest; False leaves it
            pending.
    """

    name: str
    label: str
    tool: str
    options: type[Record]
    is_running: Callable[[int], bool]
    volumes: Callable[[Mapping[str, str]], dict[str, str]]
    make_volume: Callable[[Making], str]
    is_volume_key: Callable[[str], bool]
    with_size: Callable[[str, int], str]
    rules: Callable[[Mapping[str, str]], dict[str, str]]
    apply_live: Callable[[int, str, str | None], bool]


def used_volumes(kind: GuestKind, sections: Iterable[Mapping[str, str]]) -> set[str]:
    """Volume ids that any of the sections names."""
    return {volid for section in sections for volid in kind.volumes(section).values()}
