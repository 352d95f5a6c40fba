"""LVM: volume groups and logical volumes as its tools list them, and what its two kinds of storages share.

Volumes are activated when somebody asks where they are; those of a thin pool, which no other node can reach, are also
active after a boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import blockdev
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Source
from pvetools.storage.flat import FlatStorage, Record
from pvetools.system import lock, log, paths, run
from pvetools.system.errors import Exists, NotFound, PveError, Refused, RunError
from pvetools.system.units import KIB

run.PACKAGES |= dict.fromkeys(
    ("vgs", "lvs", "pvs", "lvcreate", "lvchange", "lvextend", "lvremove", "lvrename", "vgcreate", "pvcreate"), "lvm2"
)

_GROUP = "vg_name,vg_size,vg_free,vg_extent_size"
_LOGICAL = "lv_name,lv_size,lv_attr,pool_lv,origin,data_percent,metadata_percent,lv_time,lv_tags,thin_id"
_FRESH = 1.0  # seconds
TIMEOUT = 600.0  # of LVM's tools; whoever waits for one that hangs holds the lock of the group
_FULL_TEXT = ("insufficient free space", "insufficient suitable")
# What a command is at work on carries a name that is no volume's and a tag with the name of the node: (name, tag).
_DOOMED = ("del-", "pvetools-wipe-")  # a volume that is being removed
_COMING = ("coming-", "pvetools-coming-")  # what will take a volume's place


class Group(NamedTuple):
    """A volume group; sizes in bytes."""

    name: str
    size: int
    free: int
    extent: int


class Logical(NamedTuple):
    """A logical volume; size in bytes, shares of data and metadata (of thin volumes and pools) in percent."""

    name: str
    size: int
    attr: str
    pool: str = ""
    origin: str = ""
    data: float = 0
    metadata: float = 0
    ctime: int = 0
    tags: frozenset[str] = frozenset()
    number: int = 0  # of a thin volume in its pool; newer ones have higher numbers

    @property
    def kind(self) -> str:
        """LVM's letter for the type: ``V`` thin volume, ``t`` thin pool, ``-`` an ordinary one, ..."""
        return self.attr[:1]

    @property
    def writable(self) -> bool:
        return self.attr[1:2] == "w"

    @property
    def active(self) -> bool:
        return self.attr[4:5] == "a"

    @property
    def zeroes(self) -> bool:
        """Whether a thin pool hands out zeros only."""
        return self.attr[7:8] == "z"


def starts(group: str) -> list[str]:
    """What the paths of the volumes of a group begin with."""
    return [f"/dev/{group}/", f"/dev/mapper/{group.replace('-', '--')}-"]


# Listings.


def _change(*words: str | os.PathLike[str], check: bool = True) -> None:
    """Run a tool that changes something: one that is killed may leave devices suspended, and guests waiting."""
    run.run(words, check=check, timeout=TIMEOUT, whole=True)


def _report(tool: str, fields: str, *what: str) -> list[dict[str, str]]:
    """The rows of a report; NotFound when what was asked for is not there."""
    words = ["--reportformat", "json", "--units", "b", "--nosuffix", "--config", 'report{time_format="%s"}']
    try:
        told = run.run([tool, *words, "-o", fields, *what], timeout=TIMEOUT).stdout
    except RunError as error:
        if "not found" in error.stderr or "Failed to find" in error.stderr:
            raise NotFound(f"LVM: {error.stderr.splitlines()[0].strip()}") from None
        raise
    return rows(told)


def rows(text: str) -> list[dict[str, str]]:
    """The rows of one of LVM's JSON reports.

    Raises:
        PveError: it is none.
    """
    try:
        (report,) = json.loads(text)["report"]
        (found,) = report.values()
    except (ValueError, KeyError, TypeError) as error:
        raise PveError(f"LVM's report can't be read: {error}") from None
    return [dict(row) for row in found]


def group_of(row: dict[str, str]) -> Group:
    """A volume group from a row of a report."""
    return Group(row["vg_name"], int(row["vg_size"]), int(row["vg_free"]), int(row["vg_extent_size"]))


def logical_of(row: dict[str, str]) -> Logical:
    """A logical volume from a row of a report; what does not apply is empty there."""
    return Logical(
        row["lv_name"], int(row["lv_size"]), row["lv_attr"], row["pool_lv"], row["origin"],
        float(row["data_percent"] or 0), float(row["metadata_percent"] or 0), int(row["lv_time"] or 0),
        frozenset(filter(None, row["lv_tags"].split(","))), int(row["thin_id"] or 0),
    )  # fmt: skip


def groups() -> list[Group]:
    """All volume groups of this host."""
    return [group_of(row) for row in _report("vgs", _GROUP)]


def group(name: str) -> Group:
    """One volume group. NotFound."""
    return group_of(_report("vgs", _GROUP, name)[0])


def logicals(group: str) -> list[Logical]:
    """The logical volumes of a group, without LVM's hidden ones. NotFound: there is no such group."""
    found = {row["lv_name"]: logical_of(row) for row in _report("lvs", _LOGICAL, group)}  # a row for each segment
    return [*found.values()]


def group_on(device: Path) -> str | None:
    """The volume group that lies on a device; empty for a prepared one without a group, None for others."""
    return groups_by_device().get(os.path.realpath(device))


def groups_by_device() -> dict[str, str]:
    """The devices that LVM knows, with the volume group on each; empty for prepared ones without a group."""
    # asked about one device that is none of them, such as a partitioned one, pvs fails in ever other words
    return {os.path.realpath(row["pv_name"]): row["vg_name"] for row in _report("pvs", "pv_name,vg_name")}


def kib(size: int) -> str:
    """A size as LVM's tools take it, rounded up to whole KiB."""
    return f"{-(-size // KIB)}k"


# Storages.


class GroupStorage(FlatStorage):
    """Base of the storages in a volume group."""

    # new logical volumes: old signatures go, and at boot they stay as they are
    NEW = ("-aly", "-Wy", "-Zy", "--setautoactivation", "n")

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self.vg = str(definition.options.vgname)
        self.remnants: list[Logical] = []  # of interrupted commands, seen at activation
        self._rows: list[Logical] | None = None
        self._until = 0.0

    # What a backend supplies.

    @abstractmethod
    def mine(self, found: Logical) -> bool:
        """Whether a logical volume is a volume of this storage."""

    @abstractmethod
    def record(self, found: Logical) -> Record:
        """A volume as it is listed."""

    @abstractmethod
    def blank(self, found: Logical) -> bool:
        """Whether a raw volume, which is active, read as zeros everywhere when it was new."""

    # Finding.

    def rows(self) -> list[Logical]:
        """The group's volumes; read again after a change, and only once in a second or while the lock is held."""
        if self._rows is None or time.monotonic() > self._until:
            self._rows = logicals(self.vg)
            self._until = max(self._until, time.monotonic() + _FRESH)
        return self._rows

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the volume group."""
        with lock.group_lock(self.vg):
            self._rows, self._until = None, float("inf")
            try:
                yield
            finally:
                self._rows, self._until = None, 0.0

    def records(self) -> Iterable[Record]:
        return [self.record(found) for found in self.rows() if self.mine(found)]

    def taken(self) -> Iterable[str]:
        """All names; also those of volumes whose snapshots are there alone, which a new volume must not inherit."""
        for found in self.rows():
            yield found.name
            if found.name.startswith("snap_"):
                words = found.name.split("_")[1:]
                for count in range(1, len(words)):
                    yield from ("_".join(words[:count]) + suffix for suffix in ("", ".qcow2"))

    def named_after(self, stem: str, rows: Sequence[Logical]) -> list[Logical]:
        """Logical volumes with the name of a snapshot of a volume; ``vm-100-a_b`` may be there besides ``vm-100-a``."""
        own = [row.name.removesuffix(".qcow2") for row in rows if self.mine(row)]
        longer = tuple(f"snap_{name}_" for name in own if name.startswith(f"{stem}_"))
        found = [row for row in rows if row.name.startswith(f"snap_{stem}_")]
        return [row for row in found if not row.name.startswith(longer)]

    def device(self, own: str, snapshot: str = "") -> Path:
        return Path("/dev", self.vg, own)

    def logical(self, name: str) -> Logical:
        """The logical volume of a volume that must be there. NotFound."""
        own = self.parse(name).name
        for found in self.rows():
            if found.name == own and self.mine(found):
                return found
        raise NotFound(f"volume '{self.id}:{name}' does not exist")

    def activate(self) -> None:
        """The group must be there. What interrupted commands have left is noted on the way."""
        try:
            found = self.rows()
        except NotFound:
            found = self._appeared()
        self.seen(found)

    def seen(self, found: Sequence[Logical]) -> None:
        """Called at activation with all volumes of the group."""
        self.remnants = [row for row in found if self.is_remnant(row)]
        if self.unsettled(found):
            with self.locked():
                self.settle()

    def unsettled(self, found: Sequence[Logical]) -> bool:
        """Whether there is something to settle."""
        return any(self.is_remnant(row, _COMING) or self._stale(row) for row in found)

    def _stale(self, found: Logical) -> list[str]:
        """Tags of a change on this node that was interrupted before it took place, or after: the name is a volume's."""
        if found.name.startswith((_COMING[0], _DOOMED[0])):
            return []
        return [tag for _, mark in (_DOOMED, _COMING) if (tag := mark + paths.node()) in found.tags]

    def settle(self) -> None:
        """Finish what was to take a volume's place when a command was interrupted; drop it if the volume is there.

        The caller holds the group's lock.
        """
        found = {row.name: row for row in self.rows()}
        for row in found.values():
            own = row.name.removeprefix(_COMING[0])
            for tag in self._stale(row):
                self.lvm("lvchange", "--deltag", tag, own)
            if not self.is_remnant(row, _COMING):
                continue
            elif own in found:
                log.emit(f"storage '{self.id}': a change of '{own}' was interrupted before it took place")
                self.lvm("lvremove", "-f", row.name)
            else:
                log.emit(f"storage '{self.id}': going on with the interrupted change of '{own}'")
                self.take_place(own)

    def _appeared(self) -> list[Logical]:
        """The group's volumes, once the LUN below it is there."""
        try:
            if self.definition.options.base:
                self._base()
            return self.rows()
        except NotFound as error:
            raise PveError(f"storage '{self.id}': volume group '{self.vg}' does not exist ({error})") from None

    def _base(self) -> Path:
        """The device below the group, a volume of another storage."""
        from pvetools.storage import volumes

        base = str(self.definition.options.base)
        found = volumes.source(base)
        if found.kind != "block":
            raise Refused(f"volume '{base}' is no block device of this host, so no volume group can lie on it")
        return found.path

    def prepare(self) -> None:
        """Make the group on its base if it is not there; a device that holds anything else is refused."""
        base = self.definition.options.base
        if not base:
            return
        device = self._base()
        lies = group_on(device)
        if lies == self.vg:
            return
        if lies:
            raise Refused(f"volume '{base}' holds the volume group '{lies}', not '{self.vg}'")
        if any(found.name == self.vg for found in groups()):
            raise Refused(f"there is a volume group '{self.vg}' already, and it does not lie on volume '{base}'")
        if user := blockdev.user_of(device):
            raise Refused(f"volume '{base}' is in use by {user}")
        if lies is None:
            if kind := blockdev.signature(device):
                raise Refused(f"volume '{base}' is not empty, it holds {kind}; to lose that: wipefs --all {device}")
            _change("pvcreate", "-qq", device)
        _change("vgcreate", "-qq", self.vg, device)

    def is_remnant(self, found: Logical, kind: tuple[str, str] = _DOOMED) -> bool:
        """Whether a removal that did not come to its end has left this; one on another node may still be at work."""
        start, mark = kind
        marks = [tag for tag in found.tags if tag.startswith(mark)]
        ours = not self.definition.shared or mark + paths.node() in marks
        return bool(marks) and ours and found.name.startswith(start)

    def deactivate(self) -> None:
        """Volumes that nobody uses become inactive; the group's other volumes stay as they are."""
        try:
            active = [found.name for found in self.rows() if self.mine(found) and found.active]
        except NotFound:
            return
        for own in active:
            if not blockdev.user_of(self.device(own)):
                self.lvm("lvchange", "-aln", own, check=False)

    # Changing.

    def lvm(self, tool: str, *words: str, check: bool = True) -> None:
        """Run one of LVM's tools; the last word is a logical volume of the group."""
        *options, own = words
        self._rows = None
        _change(tool, "-qq", "--yes", *options, f"{self.vg}/{own}", check=check)

    def reach(self, own: str) -> Path:
        """Activate a logical volume; gives its device."""
        self.lvm("lvchange", "-aly", "-K", own)
        path = self.device(own)
        blockdev.wait_for(path)
        return path

    def source(self, name: str) -> Source:
        found = self.logical(name)
        path = self.device(found.name)
        known = blockdev.is_device(path)
        if not (found.active and known):
            self.reach(found.name)
        if self.definition.shared and known:  # another node may have resized it; LVM is not sure then that it is active
            self.lvm("lvchange", "--refresh", found.name)
        return Source("block", path, "raw", blank=self.blank(found))

    def idle(self, name: str) -> Logical:
        """A volume that nobody uses, made inactive to be sure; the caller holds the group's lock. Refused."""
        found = self.logical(name)
        self.still(name, found)
        return found

    def unused(self, name: str, found: Logical) -> None:
        """Refuse a volume that somebody uses."""
        if user := blockdev.user_of(self.device(found.name)):
            raise self.in_use(name, user)

    def still(self, name: str, found: Logical) -> None:
        """Make a logical volume of a volume inactive, which nobody may use. Refused."""
        self.unused(name, found)
        if found.active or blockdev.is_device(self.device(found.name)):
            try:
                _change("lvchange", "-qq", "-aln", f"{self.vg}/{found.name}")
            except RunError as error:
                raise self.in_use(name, f"somebody: {error.stderr or error}") from None

    def let_go(self, own: str) -> None:
        """A logical volume of a shared group is active only where a guest uses it."""
        if self.definition.shared:
            self.lvm("lvchange", "-aln", own, check=False)

    def create(self, *words: str, size: int) -> None:
        """Run lvcreate or lvextend, with its usual failures in the project's words."""
        self._rows = None
        try:
            _change(*words[:1], "-qq", "--yes", *words[1:])
        except RunError as error:
            if any(text in error.stderr.lower() for text in _FULL_TEXT):
                raise self.full(size) from None
            if "already exists" in error.stderr:
                raise Exists(f"storage '{self.id}': {error.stderr.splitlines()[0].strip()}") from None
            raise

    def resize(self, name: str, size: int) -> None:
        with self.locked():
            found = self.logical(name)
            self.no_shrinking(name, found.size, size)
            if size == found.size:
                return
            self.create("lvextend", "-L", kib(size), f"{self.vg}/{found.name}", size=size - found.size)
        self.grown(found)

    def grown(self, before: Logical) -> None:
        """Called after a volume has grown."""

    def doom(self, found: Logical) -> str:
        """Give a volume a name that says that it is being removed; gives that name."""
        taken, name = {*self.taken()}, f"del-{found.name}"
        while name in taken:
            name += "+"
        self.lvm("lvchange", "--addtag", _DOOMED[1] + paths.node(), found.name)
        self.rename(found.name, name)
        return name

    def coming(self, found: Logical) -> list[str]:
        """Words for lvcreate: name and tags of what will take the place of a volume."""
        tags = sorted({_COMING[1] + paths.node(), *found.tags} - {_DOOMED[1] + paths.node()})
        return ["-n", _COMING[0] + found.name, *(word for tag in tags for word in ("--addtag", tag))]

    def take_place(self, own: str) -> None:
        """Put what has been made in the place of a volume that is gone."""
        self.rename(_COMING[0] + own, own)
        self.lvm("lvchange", "--deltag", _COMING[1] + paths.node(), own)

    def rename(self, own: str, new: str) -> None:
        self._rows = None
        _change("lvrename", "-qq", self.vg, own, new)
