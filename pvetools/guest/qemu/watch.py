"""Which options does the code that builds a domain honour? Exactly those that it reads: the reads are recorded.

A guest may carry options that no code understands yet. They must never be ignored in silence, and a hand-kept list
of honoured options would drift from the code. So the builder gets its options through a watch, and what was given
but never read is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pvetools.schema.core import Field, PropertyString, Record

R = TypeVar("R", bound=Record)

# Options that other parts of the program honour, or that are only data about the guest: never a reason to refuse.
ELSEWHERE = frozenset(
    {
        # data that other commands, the boot of the host and backups use
        "autostart", "description", "hookscript", "lock", "meta", "name", "onboot", "protection", "startup", "tags",
        "unused", "agent.freeze-fs", "agent.fstrim_cloned_disks", "drive.backup", "drive.replicate", "drive.shared",
        "drive.size",
        # a card is filtered only while a firewall is in force, and then the start is refused (network.firewall)
        "net.firewall",
        # limits of what a running guest may be asked later: every change of a running guest waits for its next start
        "hotplug", "migrate_downtime", "migrate_speed",
        # kept by snapshots
        "parent", "snaptime", "vmstate", "vmstatestorage", "runningmachine", "runningcpu", "running-nets-host-mtu",
    }
)  # fmt: skip
_UNLIMITED = frozenset({"net.rate"})  # where 0 says that there is no limit
_DRIVES = frozenset({"ide", "sata", "scsi", "virtio", "efidisk0", "tpmstate0", "cdrom"})


class _Watched:
    """Stands in for a record; every value that is asked for is noted under its full name."""

    def __init__(self, record: Record, seen: set[str], prefix: str = "") -> None:
        self._record, self._seen, self._prefix = record, seen, prefix

    def __getattr__(self, attr: str) -> Any:
        row = getattr(type(self._record), attr, None)
        value = getattr(self._record, attr)
        if not isinstance(row, Field):
            return value
        if row.count:
            return {index: self._wrap(f"{row.name}{index}", item) for index, item in value.items()}
        return self._wrap(row.name, value)

    def _wrap(self, name: str, value: Any) -> Any:
        self._seen.add(self._prefix + name)
        if isinstance(value, PropertyString):
            return _Watched(value, self._seen, f"{self._prefix}{name}.")
        return value


def watch(record: R) -> tuple[R, set[str]]:
    """A stand-in for a record, and the set of names (``cores``, ``scsi3.cache``) that fills as it is read."""
    seen: set[str] = set()
    return cast("R", _Watched(record, seen)), seen


def unread(record: Record, seen: set[str], prefix: str = "", family: str = "") -> list[str]:
    """Names of given options that nobody read and that ask for something other than what happens anyway."""
    found: list[str] = []
    for key, value in record.given.items():
        row, _ = _row(record, key)
        general = f"{family}.{row.name}" if family else row.name
        if general in ELSEWHERE:
            continue
        if prefix + key not in seen:
            found += [] if _is_neutral(row, value) or (general in _UNLIMITED and value == 0) else [prefix + key]
        elif isinstance(value, PropertyString):
            found += unread(value, seen, f"{prefix}{key}.", "drive" if row.name in _DRIVES else row.name)
    return found


def _row(record: Record, key: str) -> tuple[Field, int | None]:
    found = record.find(key)
    if found is None:
        raise KeyError(key)
    return found


def _is_neutral(row: Field, value: object) -> bool:
    """Whether a value says what holds without it."""
    return value == row.default or (row.default is None and value is False)


def describe(names: list[str], values: Mapping[str, str]) -> str:
    """``net0.tag, usb1`` with the values of whole options, for messages."""
    return ", ".join(f"{name}: {values[name]}" if name in values else name for name in names)
