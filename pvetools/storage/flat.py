"""Storages whose volumes lie side by side in one place, such as ``vm-100-disk-0`` in a volume group or a pool.

The names are those of Proxmox VE: ``vm-ID-NAME``, ``base-ID-NAME`` for the bases of linked clones, ``subvol-ID-NAME``
and ``basevol-ID-NAME`` for folders; a linked clone may name its base before itself: ``base-100-disk-0/vm-101-disk-0``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pvetools.config import guest
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Capabilities, Snapshot, Source, Space, Volume, Wish
from pvetools.storage.names import VolumeName
from pvetools.system.errors import Exists, NotFound, PveError, Refused
from pvetools.system.units import human_size

_OWN = r"(vm|base|subvol|basevol)-([1-9]\d{0,9})-([a-zA-Z0-9][a-zA-Z0-9_.+-]{0,99})"
_NAME = re.compile(rf"(?:((?:base|basevol)-([1-9]\d{{0,9}})-[a-zA-Z0-9][a-zA-Z0-9_.+-]{{0,99}})/)?({_OWN})", re.ASCII)
_DISK = re.compile(r"(?:vm|base|subvol|basevol)-([1-9]\d{0,9})-disk-(\d+)(?:\.\w+)?", re.ASCII)
FOLDER_KINDS = ("subvol", "basevol")


class Record(NamedTuple):
    """A volume as the backend's tools list it: its own name (without base), sizes in bytes, seconds since the epoch."""

    name: str
    size: int
    format: str = "raw"
    used: int = 0
    ctime: int = 0
    parent: str = ""  # BASE or BASE@SNAPSHOT of a linked clone


def parse(name: str, formats: Collection[str] = ("raw", "subvol")) -> VolumeName:
    """Take a volume's name apart. ``.qcow2`` at its end is a format where the storage has that format.

    Raises:
        PveError: malformed, or a name that is not ours.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise PveError(f"unable to parse volume name '{name}', expected (vm|base|subvol|basevol)-ID-NAME")
    base, base_vmid, own, kind, vmid = match[1], match[2], match[3], match[4], int(match[5])
    form = "subvol" if kind in FOLDER_KINDS else "raw"
    if form == "raw" and own.endswith(".qcow2") and "qcow2" in formats:
        form = "qcow2"
    if form not in formats:
        raise PveError(f"unable to parse volume name '{name}': there are no volumes of format '{form}' here")
    return VolumeName("images", own, form, vmid, base or "", int(base_vmid) if base else None, kind.startswith("base"))


def next_name(taken: Iterable[str], vmid: int, form: str) -> str:
    """The next free name ``vm-ID-disk-N`` for a guest."""
    used = {int(match[2]) for name in taken if (match := _DISK.fullmatch(name)) and int(match[1]) == vmid}
    number = next(number for number in range(len(used) + 1) if number not in used)
    suffix = ".qcow2" if form == "qcow2" else ""
    return f"{'subvol' if form == 'subvol' else 'vm'}-{vmid}-disk-{number}{suffix}"


def base_name(own: str) -> str:
    """The name that a volume gets as a base."""
    return re.sub(r"^(vm|subvol)-", lambda match: {"vm": "base-", "subvol": "basevol-"}[match[1]], own)


class FlatStorage(ABC):
    """Base of these backends: names, listings and refusals, which are the same everywhere."""

    info: Capabilities
    parent_in_name = True  # a linked clone's volume name begins with its base

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.id = definition.id

    # What a backend supplies.

    @abstractmethod
    def records(self) -> Iterable[Record]:
        """All volumes with names that ``parse`` takes, and no foreign ones."""

    @abstractmethod
    def device(self, own: str, snapshot: str = "") -> Path:
        """Where a volume (its own name, without base) lies."""

    # Names and places.

    def parse(self, name: str) -> VolumeName:
        return parse(name, self.info.alloc)

    def path(self, name: str, snapshot: str = "") -> Path:
        return self.device(self.parse(name).name, snapshot)

    def directory(self, content: str) -> Path:
        raise Refused(f"storage '{self.id}' keeps no files, so it has no directory for content type '{content}'")

    def name_of(self, path: Path) -> str | None:
        for record in self.records():
            if self.device(record.name) == path:
                return self._full_name(record)
        return None

    def _full_name(self, record: Record) -> str:
        base = record.parent.partition("@")[0] if self.parent_in_name else ""
        return f"{base}/{record.name}" if base.startswith(("base-", "basevol-")) else record.name

    def require(self, name: str) -> Record:
        """The record of a volume that must be there. NotFound."""
        own = self.parse(name).name
        for record in self.records():
            if record.name == own:
                return record
        raise NotFound(f"volume '{self.id}:{name}' does not exist")

    def taken(self) -> Iterable[str]:
        """All names in the same place, also those that are no volumes of this storage."""
        return [record.name for record in self.records()]

    # Listings.

    def volumes(self, contents: Collection[str], vmid: int | None) -> Iterator[Volume]:
        kinds = {number: kind for number, (_, kind) in guest.cluster_guests().items()}
        for record in self.records():
            volume = self._volume(record, kinds)
            if volume.content in contents and vmid in (None, volume.vmid):
                yield volume

    def _volume(self, record: Record, kinds: dict[int, str]) -> Volume:
        owner = self.parse(record.name).vmid
        content = "rootdir" if owner is not None and kinds.get(owner) == "lxc" else "images"
        return Volume(
            f"{self.id}:{self._full_name(record)}", content, record.format, record.size,
            record.used, owner, record.ctime, record.parent,
        )  # fmt: skip

    def volume(self, name: str) -> Volume:
        record = self.require(name)
        kinds = {number: kind for number, (_, kind) in guest.cluster_guests().items()}
        return self._volume(record, kinds)

    # Checks and sentences.

    def choose_name(self, wish: Wish) -> str:
        """Check a wish and choose the new volume's name; the caller holds the storage's lock.

        Raises:
            PveError: format, size or name are not possible. Exists: the name is used.
        """
        if wish.format not in self.info.alloc:
            allowed = ", ".join(sorted(self.info.alloc)) or "none"
            raise PveError(f"storage '{self.id}' can't make images of format '{wish.format}', only: {allowed}")
        wish.check_size()
        taken = [*self.taken()]
        if not wish.name:
            return next_name(taken, wish.vmid, wish.format)
        parsed = self.parse(wish.name)
        if parsed.base or parsed.is_base:
            raise PveError(f"illegal name '{wish.name}' - new volumes can't be base volumes or lie on one")
        if parsed.vmid != wish.vmid:
            raise PveError(f"illegal name '{wish.name}' - it does not belong to guest {wish.vmid}")
        if parsed.format != wish.format:
            raise PveError(f"illegal name '{wish.name}' - wrong name for format '{wish.format}'")
        if wish.name in taken:
            raise Exists(f"volume '{self.id}:{wish.name}' already exists")
        return wish.name

    def full(self, size: int) -> PveError:
        """The error of a storage without room."""
        return PveError(
            f"storage '{self.id}' is full: no space for a volume of {human_size(size)}, "
            f"{human_size(self.status().avail)} are free"
        )

    def in_use(self, name: str, user: str) -> Refused:
        """The error about a volume that somebody uses."""
        return Refused(f"volume '{self.id}:{name}' is in use by {user}")

    def no_shrinking(self, name: str, now: int, size: int) -> None:
        """Refuse to make a volume smaller."""
        if size < now:
            raise Refused(f"can't shrink volume '{self.id}:{name}' from {human_size(now)} to {human_size(size)}")

    def kept(self, name: str, snapshot: str) -> bool:
        """Whether a volume has a snapshot."""
        return any(found.name == snapshot for found in self.snapshots(name))

    def need_snapshot(self, name: str, snapshot: str) -> None:
        """The snapshot must be there. NotFound."""
        if not self.kept(name, snapshot):
            raise self.no_snapshot(name, snapshot)

    def no_snapshot(self, name: str, snapshot: str) -> NotFound:
        """The error about a snapshot that is not there."""
        return NotFound(f"volume '{self.id}:{name}' has no snapshot '{snapshot}'")

    def need_no_snapshot(self, name: str, snapshot: str) -> None:
        """The name must be free. Exists."""
        if self.kept(name, snapshot):
            raise Exists(f"volume '{self.id}:{name}' has a snapshot '{snapshot}' already")

    def check_becomes_base(self, name: str) -> str:
        """Whether a volume can become a base; gives the name that it gets. Refused."""
        parsed = self.parse(name)
        if parsed.is_base:
            raise Refused(f"volume '{self.id}:{name}' is a base volume already")
        self.require(name)
        kept = self.snapshots(name) if parsed.format in self.info.snapshot else []
        if kept:
            raise Refused(f"volume '{self.id}:{name}' can't become a base: it has the snapshot '{kept[0].name}'")
        base = base_name(parsed.name)
        if any(record.name == base for record in self.records()):
            raise Exists(f"volume '{self.id}:{base}' already exists")
        return base

    def check_is_base(self, name: str) -> VolumeName:
        """The volume must be a base that is there. Refused, NotFound."""
        parsed = self.parse(name)
        if not parsed.is_base:
            raise Refused(f"volume '{self.id}:{name}' is not a base volume, so it can't have linked clones")
        self.require(name)
        return parsed

    def mountable(self, name: str) -> Source:
        return self.source(name)

    # What a backend without these capabilities inherits; callers ask ``info`` before.

    @abstractmethod
    def activate(self) -> None: ...

    def verify(self) -> None:
        self.activate()

    def prepare(self) -> None:  # noqa: B027 - nothing to make is the usual case
        """Nothing to make."""

    def deactivate(self) -> None:  # noqa: B027 - nothing to undo is the usual case
        """Nothing to undo."""

    def snapshots(self, name: str) -> list[Snapshot]:
        raise self._no("snapshots")

    def snapshot(self, name: str, snapshot: str) -> None:
        raise self._no("snapshots")

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        raise self._no("snapshots")

    def rollback(self, name: str, snapshot: str) -> None:
        raise self._no("snapshots")

    def make_base(self, name: str) -> str:
        raise self._no("base volumes")

    def clone(self, name: str, vmid: int) -> str:
        raise self._no("linked clones")

    def notes(self, name: str) -> str:
        raise self._no("notes")

    def set_notes(self, name: str, text: str) -> None:
        raise self._no("notes")

    def protect(self, name: str, on: bool) -> None:
        raise self._no("protected volumes")

    def _no(self, what: str) -> Refused:
        return Refused(f"storage '{self.id}' of type '{self.definition.type}' has no {what}")

    @abstractmethod
    def status(self) -> Space: ...

    @abstractmethod
    def source(self, name: str) -> Source: ...
