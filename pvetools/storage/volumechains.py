"""Snapshots as chains of logical volumes: each state is a qcow2 image on one of its own, and lies on the state before.

The state NAME of ``vm-100-disk-0.qcow2`` is the logical volume ``snap_vm-100-disk-0_NAME.qcow2``. All of them are
large enough to be written completely.
"""

from __future__ import annotations

import contextlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pvetools.storage import blockdev, images, names
from pvetools.storage.driver import Snapshot, Source
from pvetools.storage.flat import Record
from pvetools.storage.volumegroups import GroupStorage, Logical, kib
from pvetools.system import run
from pvetools.system.errors import NotFound, PveError, Refused

SUFFIX = ".qcow2"


def needed(size: int) -> int:
    """Bytes that a qcow2 image takes when all of it is written."""
    told = run.run(["qemu-img", "measure", "-O", "qcow2", "--size", str(size), "--output=json"]).stdout
    return int(json.loads(told)["fully-allocated"])


def layer_name(own: str, snapshot: str) -> str:
    """The logical volume that holds a snapshot."""
    return f"snap_{own.removesuffix(SUFFIX)}_{snapshot}{SUFFIX}"


def make(path: Path, size: int, below: Path | None = None) -> None:
    """Make an empty image, which may lie on another one that need not be there yet."""
    on = ["-u", "-F", "qcow2", "-b", str(below)] if below else []
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", *on, path, str(size)])


class ChainStorage(GroupStorage):
    """Base of a storage whose qcow2 volumes are such chains; raw ones lie on one logical volume."""

    @abstractmethod
    def discard(self, name: str, rows: Sequence[Logical]) -> contextlib.AbstractContextManager[None]:
        """Take logical volumes of a volume away: at once under their names, with all that they hold after the block.

        The caller holds the storage's lock in the block.
        """

    # Finding.

    def layers(self, own: str, rows: Sequence[Logical]) -> list[Logical]:
        """Of the group's volumes, all with the name of a snapshot of a volume."""
        if not own.endswith(SUFFIX):
            return []
        return [row for row in self.named_after(own.removesuffix(SUFFIX), rows) if row.name.endswith(SUFFIX)]

    @contextlib.contextmanager
    def opened(self, rows: Sequence[Logical]) -> Iterator[None]:
        """Logical volumes, active during the block; in a shared group only then."""
        with contextlib.ExitStack() as after:
            for row in rows:
                if not (row.active and blockdev.is_device(self.device(row.name))):
                    self.reach(row.name)
                    after.callback(self.let_go, row.name)
            yield

    def image(self, found: Logical) -> images.ImageInfo:
        """What the header of an image says."""
        with self.opened([found]):
            return images.inspect(self.device(found.name), "qcow2")

    def chain(self, found: Logical) -> list[Logical]:
        """A volume and what it lies on, the newest first."""
        by_name, chain = {row.name: row for row in self.rows()}, [found]
        while backing := self.image(chain[-1]).backing:
            below = by_name.get(Path(backing).name)
            if below is None or below in chain or Path(backing) != self.device(below.name):
                raise PveError(f"volume '{self.id}:{found.name}' lies on '{backing}', which is not in its volume group")
            chain.append(below)
        return chain

    def record(self, found: Logical) -> Record:
        size = found.size
        if found.name.endswith(SUFFIX):
            with contextlib.suppress(PveError):  # without a header that says more
                size = self.image(found).size
            return Record(found.name, size, "qcow2", used=found.size, ctime=found.ctime)
        return Record(found.name, size, used=size, ctime=found.ctime)

    def source(self, name: str) -> Source:
        found = super().source(name)
        if not found.path.name.endswith(SUFFIX):
            return found
        for row in self.chain(self.logical(name)):
            self.reach(row.name)
        return found._replace(format="qcow2")

    # Snapshots.

    def snapshots(self, name: str) -> list[Snapshot]:
        chain = self.chain(self.logical(name))
        start = len(layer_name(chain[0].name, "")) - len(SUFFIX)
        # the state was kept in the moment in which the volume above it was made
        found = [Snapshot(below.name[start:].removesuffix(SUFFIX), above.ctime) for above, below in pairwise(chain)]
        return found[::-1]

    def snapshot(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with self.locked():
            self.need_no_snapshot(name, snapshot)
            size = self.image(self.logical(name)).size
            found = self.idle(name)
            layer = layer_name(found.name, snapshot)
            with contextlib.ExitStack() as undo:
                self._empty(found, size, layer, undo)
                self.rename(found.name, layer)
                undo.pop_all()
                self.take_place(found.name)
            self.let_go(found.name)

    def _empty(self, found: Logical, size: int, below: str, undo: contextlib.ExitStack) -> None:
        """Make an empty image on another one, which will take a volume's place."""
        words = [*self.NEW, "-L", kib(needed(size)), *self.coming(found), self.vg]
        own = words[words.index("-n") + 1]
        self.create("lvcreate", *words, size=size)
        undo.callback(self.lvm, "lvremove", "-f", own, check=False)
        blockdev.wait_for(self.device(own))
        make(self.device(own), size, self.device(below))

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """What the snapshot alone holds goes into the state above it."""
        names.check_snapshot(snapshot)
        with self.locked():
            above, layer, below = self._around(name, snapshot)
        # the rest may take long: others need not wait
        with self.opened([row for row in (above, layer, below) if row]):
            on = ["-F", "qcow2", "-b", str(self.device(below.name))] if below else ["-b", ""]
            run.run(["qemu-img", "rebase", "-q", "-f", "qcow2", *on, self.device(above.name)])
        with contextlib.ExitStack() as rest, self.locked():
            rest.enter_context(self.discard(name, [layer]))

    def _around(self, name: str, snapshot: str) -> tuple[Logical, Logical, Logical | None]:
        """What lies on a snapshot that nobody uses, its own volume, and what it lies on."""
        found = self.logical(name)
        chain: list[Logical | None] = [*self.chain(found), None]
        wanted = layer_name(found.name, snapshot)
        self.unused(name, found)
        for above, row, below in zip(chain, chain[1:], chain[2:], strict=False):
            if above and row and row.name == wanted:
                return above, row, below
        raise NotFound(f"volume '{self.id}:{name}' has no snapshot '{snapshot}'")

    def rollback(self, name: str, snapshot: str) -> None:
        """An empty image on the snapshot takes the volume's place."""
        names.check_snapshot(snapshot)
        with contextlib.ExitStack() as rest, self.locked():
            kept = [found.name for found in self.snapshots(name)]
            self.need_snapshot(name, snapshot)
            if snapshot != kept[-1]:
                newer = ", ".join(kept[kept.index(snapshot) + 1 :])
                raise Refused(
                    f"can't roll back volume '{self.id}:{name}' to '{snapshot}': it is not its most recent snapshot, "
                    f"remove the newer ones first: {newer}"
                )
            found, layer = self.idle(name), layer_name(self.parse(name).name, snapshot)
            size = next(self.image(row).size for row in self.rows() if row.name == layer)
            with contextlib.ExitStack() as undo:
                self._empty(found, size, layer, undo)
                rest.enter_context(self.discard(name, [found]))
                undo.pop_all()
                self.take_place(found.name)
            self.let_go(found.name)

    # Growing.

    def grow_image(self, name: str, size: int) -> None:
        """Grow a qcow2 volume that nobody uses; the caller holds the storage's lock."""
        found = self.logical(name)
        now = self.image(found).size
        self.no_shrinking(name, now, size)
        if size == now:
            return
        self.idle(name)
        if needed(size) > found.size:
            self.create("lvextend", "-L", kib(needed(size)), f"{self.vg}/{found.name}", size=size - now)
        with self.opened(self.chain(self.logical(name))):
            run.run(["qemu-img", "resize", "-q", "-f", "qcow2", self.device(found.name), str(size)])
