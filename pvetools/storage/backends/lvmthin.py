"""Backend ``lvmthin``: a thin pool in a volume group.

The snapshot NAME of ``vm-100-disk-0`` is the thin volume ``snap_vm-100-disk-0_NAME``; linked clones are snapshots of
their base. Whatever makes a volume from another one takes no time and no space.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from pvetools.storage import blockdev, names
from pvetools.storage.driver import Capabilities, Snapshot, Source, Space, Wish
from pvetools.storage.flat import Record, next_name
from pvetools.storage.volumegroups import GroupStorage, Logical, kib
from pvetools.system import log
from pvetools.system.errors import PveError, Refused, RunError

_NAME = re.compile(r"(?:vm|base)-[1-9]\d{0,9}-[a-zA-Z0-9][a-zA-Z0-9_.+-]{0,99}", re.ASCII)
_RAW = frozenset({"raw"})
_POOL_TEXT = ("reached threshold", "out of data space", "no free space", "insufficient free space")


class ThinPool(GroupStorage):
    """One storage of type ``lvmthin``."""

    info = Capabilities(files=False, alloc=_RAW, resize=_RAW, online_resize=_RAW, snapshot=_RAW, base=_RAW)
    parent_in_name = False

    # Finding.

    @property
    def pool_name(self) -> str:
        return str(self.definition.options.thinpool)

    def mine(self, found: Logical) -> bool:
        return found.kind == "V" and found.pool == self.pool_name and bool(_NAME.fullmatch(found.name))

    def blank(self, found: Logical) -> bool:
        return self.pool().zeroes

    def record(self, found: Logical) -> Record:
        parent = found.origin if found.origin.startswith("base-") else ""
        return Record(found.name, found.size, used=int(found.size * found.data / 100), ctime=found.ctime, parent=parent)

    def device(self, own: str, snapshot: str = "") -> Path:
        return Path("/dev", self.vg, _snapshot_name(own, snapshot) if snapshot else own)

    def pool(self) -> Logical:
        """The thin pool. PveError: it is not there."""
        for found in self.rows():
            if found.name == self.pool_name and found.kind == "t":
                return found
        raise PveError(f"storage '{self.id}': volume group '{self.vg}' has no thin pool '{self.pool_name}'")

    def seen(self, found: Sequence[Logical]) -> None:
        super().seen(found)
        if not self.pool().active:
            self.lvm("lvchange", "-aly", self.pool_name)

    def status(self) -> Space:
        found = self.pool()
        used = int(found.size * found.data / 100)
        return Space(found.size, used, found.size - used)

    # Making and removing.

    def _thin(self, *words: str, size: int = 0) -> None:
        """Make something in the pool, or say that it is full."""
        pool = self.pool()
        full = PveError(
            f"storage '{self.id}': thin pool '{self.vg}/{self.pool_name}' is full: {pool.data:.2f} % of its data and "
            f"{pool.metadata:.2f} % of its metadata are used; remove volumes or extend it"
        )
        if pool.data >= 100 or pool.metadata >= 100:
            raise full
        try:
            self.create(*words, size=size)
        except RunError as error:
            if any(text in error.stderr.lower() for text in _POOL_TEXT):
                raise full from None
            raise
        if not pool.zeroes:
            place = f"{self.vg}/{self.pool_name}"
            log.warn(
                f"thin pool '{place}' does not zero new blocks, so new volumes can show what removed ones held; "
                f"switch it on with: lvchange --zero y {place}"
            )

    def alloc(self, wish: Wish) -> str:
        with self.locked():
            own = self.choose_name(wish)
            self._thin(
                "lvcreate", "-aly", "-V", kib(wish.size), "-n", own,
                "-T", f"{self.vg}/{self.pool_name}", size=wish.size,
            )  # fmt: skip
            with contextlib.ExitStack() as undo:
                undo.callback(self.lvm, "lvremove", "-f", own, check=False)
                blockdev.wait_for(self.device(own))
                undo.pop_all()
        return own

    def resize(self, name: str, size: int) -> None:
        with self.locked():
            found = self.logical(name)
            self.no_shrinking(name, found.size, size)
            if size > found.size:
                self._thin("lvextend", "-L", kib(size), f"{self.vg}/{found.name}", size=size - found.size)

    def free(self, name: str) -> None:
        self.parse(name)
        with self.locked():
            rows, found = self.rows(), self.logical(name)
            for other in rows:
                if other.origin == found.name and found.name.startswith("base-") and self.mine(other):
                    raise Refused(f"base volume '{self.id}:{name}' is still in use by linked clone '{other.name}'")
            self.unused(name, found)
            # the volume goes last: its snapshots would belong to a new one of its name
            for row in [*self.kept_volumes(found.name, rows), found]:
                self.lvm("lvremove", "-f", row.name)

    def source(self, name: str) -> Source:
        found = self.logical(name)
        if found.name.startswith("base-") and found.writable:
            self._freeze(found.name)  # it became one by half
        return super().source(name)

    # Snapshots.

    def kept_volumes(self, own: str, rows: Sequence[Logical]) -> list[Logical]:
        """The volumes that are snapshots of a volume, oldest first."""
        kept = [row for row in self.named_after(own, rows) if row.kind == "V" and row.pool == self.pool_name]
        return sorted(kept, key=lambda row: (row.ctime, row.number))

    def snapshots(self, name: str) -> list[Snapshot]:
        rows, own = self.rows(), self.logical(name).name
        return [Snapshot(row.name.removeprefix(f"snap_{own}_"), row.ctime) for row in self.kept_volumes(own, rows)]

    def snapshot(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with self.locked():
            self.need_no_snapshot(name, snapshot)
            found = self.logical(name)
            self._thin("lvcreate", "-pr", "-n", _snapshot_name(found.name, snapshot), "-s", f"{self.vg}/{found.name}")

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with self.locked():
            self.need_snapshot(name, snapshot)
            self.lvm("lvremove", "-f", _snapshot_name(self.parse(name).name, snapshot))

    def rollback(self, name: str, snapshot: str) -> None:
        """A copy of the snapshot takes the volume's place; the volume goes only when the copy is there."""
        names.check_snapshot(snapshot)
        with self.locked():
            self.need_snapshot(name, snapshot)
            found = self.idle(name)
            self._thin(
                "lvcreate", "-kn", "-prw", *self.coming(found),
                "-s", f"{self.vg}/{_snapshot_name(found.name, snapshot)}",
            )  # fmt: skip
            self.lvm("lvremove", "-f", found.name)
            self.take_place(found.name)

    # Base volumes.

    def make_base(self, name: str) -> str:
        with self.locked():
            base = self.check_becomes_base(name)
            found = self.idle(name)
            self.rename(found.name, base)
            self._freeze(base)
        return base

    def _freeze(self, own: str) -> None:
        self.lvm("lvchange", "-ky", "-pr", own)

    def clone(self, name: str, vmid: int) -> str:
        with self.locked():
            base = self.check_is_base(name).name
            own = next_name(self.taken(), vmid, "raw")
            self._thin(
                "lvcreate", "-kn", "-prw", "-n", own, "-s", f"{self.vg}/{base}",
            )  # fmt: skip
        return own


def _snapshot_name(own: str, snapshot: str) -> str:
    return f"snap_{own}_{snapshot}"
