"""Snapshots as chains of logical volumes: each state is a qcow2 image on one of its own, and lies on the state before.

The state NAME of ``vm-100-disk-0.qcow2`` is the logical volume ``snap_vm-100-disk-0_NAME.qcow2``. Names and layout are
those of Proxmox VE; all of them are large enough to be written completely. What a header says about the image below
is believed only if that is a state of the same volume.

Whatever is interrupted leaves a volume that reads as before or as after. Removing the oldest snapshot, whose state is
overwritten with the one above it, can spoil that snapshot alone: it then only can be removed.
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
from pvetools.system import lock, log, paths, run
from pvetools.system.errors import Exists, PveError, Refused
from pvetools.system.units import MIB

SUFFIX = ".qcow2"
# As Proxmox VE makes images on others: small writes take no whole cluster from the image below.
_FORM = ("-o", "extended_l2=on,cluster_size=128k")
_SPARE = MIB  # for tables that moved when an image grew
# Tags of a snapshot whose removal is at work, and (with the name of a volume) of one that holds that volume's state.
_MERGING, _MERGED = "pvetools-merging", "pvetools-merged-"


def needed(size: int, *form: str) -> int:
    """Bytes that a qcow2 image takes when all of it is written.

    Args:
        size: what it shows to a guest.
        form: words for QEMU about its layout.
    """
    told = run.run(["qemu-img", "measure", "-O", "qcow2", *form, "--size", str(size), "--output=json"]).stdout
    return int(json.loads(told)["fully-allocated"]) + _SPARE


def layer_name(own: str, snapshot: str) -> str:
    """The logical volume that holds a snapshot."""
    return f"snap_{own.removesuffix(SUFFIX)}_{snapshot}{SUFFIX}"


def make(path: Path, size: int, below: str = "") -> None:
    """Make an empty image, which may lie on another one that need not be there yet."""
    on = [*_FORM, "-u", "-F", "qcow2", "-b", below] if below else []
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", *on, path, str(size)])
    blockdev.sync(path)


class ChainStorage(GroupStorage):
    """Base of a storage whose qcow2 volumes are such chains; raw ones lie on one logical volume."""

    @abstractmethod
    def discard(self, name: str, rows: Sequence[Logical]) -> contextlib.AbstractContextManager[None]:
        """Take logical volumes of a volume away: at once under their names, with all that they hold after the block.

        The caller holds the storage's lock in the block.
        """

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Held while a chain changes, which may take long; the storage's lock is taken besides, for each step."""
        own = self.parse(name)
        if own.format != "qcow2":
            yield
            return
        place = paths.lock_dir() / f"storage-{self.id}-chains-{own.vmid}.lock"
        what = f"a chain of guest {own.vmid} on storage '{self.id}'"
        with lock.locked(place, 60.0, what=what, in_turn=True):
            yield

    # Finding.

    def layers(self, own: str, rows: Sequence[Logical]) -> list[Logical]:
        """Of the group's volumes, all with the name of a snapshot of a volume, whether it lies on them or not."""
        if not own.endswith(SUFFIX):
            return []
        return [row for row in self.named_after(own.removesuffix(SUFFIX), rows) if row.name.endswith(SUFFIX)]

    def device(self, own: str, snapshot: str = "") -> Path:
        return super().device(layer_name(own, snapshot) if snapshot else own)

    @contextlib.contextmanager
    def opened(self, rows: Sequence[Logical]) -> Iterator[None]:
        """Logical volumes, active during the block; in a shared group only then."""
        with contextlib.ExitStack() as after:
            for row in rows:
                if not self._is_open(row):
                    self.reach(row.name)
                    after.callback(self.let_go, row.name)
            yield

    def _is_open(self, row: Logical) -> bool:
        # a device of that name can be another volume, if another node has renamed some
        return blockdev.is_device(self.device(row.name)) and (row.active or not self.definition.shared)

    def image(self, found: Logical) -> images.ImageInfo:
        """What the header of an image says. PveError: it is none, or one that QEMU would read other files for."""
        with self.opened([found]):
            try:
                info = images.inspect(self.device(found.name), "qcow2")
            except OSError as error:
                raise PveError(f"can't read '{self.device(found.name)}': {error.strerror}") from None
        if info.external:
            raise PveError(f"storage '{self.id}': the image on '{found.name}' keeps its data elsewhere")
        return info

    def chain(self, found: Logical) -> list[Logical]:
        """A volume and what it lies on, the newest first. PveError: that is not all there, or not its own."""
        below = {row.name: row for row in self.layers(found.name, self.rows())}
        chain = [found]
        while backing := self.image(chain[-1]).backing:
            place = Path(backing)
            row = below.pop(place.name, None) if place.parent in (Path(), Path("/dev", self.vg)) else None
            if row is None:
                raise PveError(f"volume '{self.id}:{found.name}' lies on '{backing}', which is no snapshot of it")
            chain.append(row)
        return chain

    def record(self, found: Logical) -> Record:
        size = found.size
        if not found.name.endswith(SUFFIX):
            return Record(found.name, size, used=size, ctime=found.ctime)
        # lists do not make volumes of other nodes active: what they take is told there, as Proxmox VE does
        if found.active or not self.definition.shared:
            with contextlib.suppress(PveError):  # without a header that says more
                size = self.image(found).size
        return Record(found.name, size, "qcow2", used=found.size, ctime=found.ctime)

    def require(self, name: str) -> Record:
        record = super().require(name)
        if record.format != "qcow2" or not self.definition.shared:
            return record
        with self.locked():
            return record._replace(size=self.image(self.logical(name)).size)

    def source(self, name: str) -> Source:
        if self.parse(name).format != "qcow2":
            return super().source(name)
        # in a shared group somebody else may be about to make inactive what he has read
        with self.locked() if self.definition.shared else contextlib.nullcontext():
            found = self.logical(name)
            for row in self.layers(found.name, self.rows()):
                if row.active and not blockdev.is_device(self.device(row.name)):
                    self.reach(row.name)  # another node has renamed it, and this kernel knows it as the volume itself
            for row in self.chain(found):
                if not self._is_open(row):
                    self.reach(row.name)
                elif self.definition.shared:
                    self.lvm("lvchange", "--refresh", row.name)
        return Source("block", self.device(found.name), "qcow2")

    # Snapshots.

    def snapshots(self, name: str) -> list[Snapshot]:
        if not self.definition.shared:
            return self._snapshots(self.logical(name))
        with self.locked():
            return self._snapshots(self.logical(name))

    def _snapshots(self, found: Logical) -> list[Snapshot]:
        start = len(layer_name(found.name, "")) - len(SUFFIX)
        # the state was kept in the moment in which the volume above it was made
        chain = pairwise(self.chain(found))
        return [Snapshot(below.name[start:].removesuffix(SUFFIX), above.ctime) for above, below in chain][::-1]

    def snapshot(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with self.changing(name), self.locked():
            found = self.logical(name)
            layer, size = layer_name(found.name, snapshot), self.image(found).size
            if any(row.name == layer for row in self.chain(found)):
                raise Exists(f"volume '{self.id}:{name}' has a snapshot '{snapshot}' already")
            if any(row.name == layer for row in self.rows()):
                raise Exists(
                    f"the removal of snapshot '{snapshot}' of volume '{self.id}:{name}' was interrupted, "
                    "remove it first"
                )
            with self._replaced(self.idle(name), size, layer):
                self.rename(found.name, layer)

    @contextlib.contextmanager
    def _replaced(self, found: Logical, size: int, below: str) -> Iterator[None]:
        """Make an empty image on another one, which takes the place of a volume that the block takes away.

        Whatever happens: where the block had no effect, it is dropped; else it takes the place.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.settle)
            self._empty(found, size, below)
            yield
            self.take_place(found.name)
            undo.pop_all()
        self.let_go(found.name)

    def _empty(self, found: Logical, size: int, below: str) -> None:
        words = [*self.NEW, "-L", kib(needed(size, *_FORM)), *self.coming(found), self.vg]
        path = self.device(words[words.index("-n") + 1])
        self.create("lvcreate", *words, size=size)
        blockdev.wait_for(path)
        make(path, size, below)

    def rollback(self, name: str, snapshot: str) -> None:
        """An empty image on the snapshot takes the volume's place."""
        names.check_snapshot(snapshot)
        with contextlib.ExitStack() as rest, self.changing(name), self.locked():
            found = self.logical(name)
            kept = [row.name for row in self._snapshots(found)]
            if snapshot not in kept:
                raise self.no_snapshot(name, snapshot)
            if newer := kept[kept.index(snapshot) + 1 :]:
                raise Refused(
                    f"can't roll back volume '{self.id}:{name}' to '{snapshot}': it is not its most recent snapshot, "
                    f"remove the newer ones first: {', '.join(newer)}"
                )
            layer = self._row(layer_name(found.name, snapshot))
            if _MERGING in layer.tags:
                raise Refused(
                    f"can't roll back volume '{self.id}:{name}' to '{snapshot}': the removal of that snapshot was "
                    "interrupted, so its state is lost; remove it again"
                )
            size = self.image(layer).size
            with self._replaced(self.idle(name), size, layer.name):
                rest.enter_context(self.discard(name, [found]))

    def _row(self, own: str) -> Logical:
        return next(row for row in self.rows() if row.name == own)

    # Removing snapshots.

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """The state above the snapshot's must not need it any more; of the two volumes one is left."""
        names.check_snapshot(snapshot)
        with contextlib.ExitStack() as rest, self.changing(name):
            with self.locked():
                above, layer, below = self._around(name, snapshot)
            # merging may take long: others need not wait
            if above and below:
                self._pull_up([above, layer, *below])
            elif above:
                self._push_down(above, layer)
            with self.locked():
                if above and not below:
                    self.lvm("lvchange", "--addtag", f"{_MERGED}{paths.node()}/{above.name}", layer.name)
                    rest.enter_context(self.discard(name, [above]))
                    self._inherit(layer, above.name)
                    return
                if any(row.name == layer.name for row in self.chain(self.logical(name))):
                    raise PveError(f"snapshot '{snapshot}' of volume '{self.id}:{name}' is needed again, so it stays")
                rest.enter_context(self.discard(name, [layer]))

    def _around(self, name: str, snapshot: str) -> tuple[Logical | None, Logical, list[Logical]]:
        """What lies on a snapshot, its own volume, and all that it lies on; nobody may use them.

        What an interrupted removal has left may have nothing around it any more.
        """
        found = self.logical(name)
        self.unused(name, found)
        wanted = layer_name(found.name, snapshot)
        chain = self.chain(found)
        for place, (above, row) in enumerate(pairwise(chain)):
            if row.name == wanted:
                self.unused(name, above)
                self.unused(name, row)
                return above, row, chain[place + 2 :]
        for row in self.layers(found.name, self.rows()):
            if row.name == wanted:
                return None, row, []
        raise self.no_snapshot(name, snapshot)

    def _pull_up(self, chain: Sequence[Logical]) -> None:
        """What the second state of a chain alone holds goes into the first, which then lies on the third."""
        with self.opened(chain):
            path = self.device(chain[0].name)
            run.run(["qemu-img", "rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b", chain[2].name, path])
            blockdev.sync(path)

    def _push_down(self, above: Logical, layer: Logical) -> None:
        """The oldest snapshot, which may hold nearly all there is, is overwritten with the state above it."""
        with self.locked():
            self.lvm("lvchange", "--addtag", _MERGING, layer.name)
            for tag in layer.tags:
                if tag.startswith(_MERGED):
                    self.lvm("lvchange", "--deltag", tag, layer.name)
            size = self.image(above).size
            if size > self.image(layer).size and (least := needed(size)) > layer.size:
                self.create("lvextend", "-L", kib(least), f"{self.vg}/{layer.name}", size=least - layer.size)
        with self.opened([above, layer]):
            # -d: the image above goes anyway, so it need not be emptied
            run.run(["qemu-img", "commit", "-q", "-d", "-f", "qcow2", self.device(above.name)])
            blockdev.sync(self.device(layer.name))

    def _inherit(self, layer: Logical, own: str) -> None:
        """Give the snapshot's volume the name of the one whose state it holds now."""
        self.rename(layer.name, own)
        self._unmark(self._row(own))
        self.let_go(own)

    def _unmark(self, row: Logical) -> None:
        tags = sorted(tag for tag in row.tags if tag == _MERGING or tag.startswith(_MERGED))
        self.lvm("lvchange", *(word for tag in tags for word in ("--deltag", tag)), row.name)

    def settle(self) -> None:
        """Finish removals of snapshots too that were interrupted between two renamings."""
        super().settle()
        rows = [*self.rows()]
        for row in rows:
            own = self._inherits(row)
            if own == row.name:
                self._unmark(row)
            elif own in {other.name for other in rows}:
                self.lvm("lvchange", "--deltag", f"{_MERGED}{paths.node()}/{own}", row.name)  # it can be removed again
            elif own:
                log.emit(f"storage '{self.id}': going on with the interrupted removal of '{row.name}'")
                self._inherit(row, own)

    def unsettled(self, found: Sequence[Logical]) -> bool:
        return super().unsettled(found) or any(map(self._inherits, found))

    def _inherits(self, row: Logical) -> str:
        """The name that a removal on this node, which was interrupted, was to give a snapshot's volume."""
        start = f"{_MERGED}{paths.node()}/"
        found = [tag.removeprefix(start) for tag in row.tags if tag.startswith(start)]
        return found[0] if found and (row.name.startswith("snap_") or row.name == found[0]) else ""

    # Growing.

    def make_room(self, name: str, size: int) -> None:
        if self.parse(name).format == "qcow2":
            with self.changing(name), self.locked():
                found = self.logical(name)
                self._extend(found, self.image(found), size)

    def _extend(self, found: Logical, info: images.ImageInfo, size: int) -> None:
        """Give a logical volume the space that an image of that size may need."""
        least = needed(size, *(_FORM if info.backing else ()))
        if least > found.size:
            self.create("lvextend", "-L", kib(least), f"{self.vg}/{found.name}", size=least - found.size)

    def grow_image(self, name: str, size: int) -> None:
        """Grow a qcow2 volume that nobody uses."""
        with self.changing(name), self.locked():
            found = self.logical(name)
            info = self.image(found)
            self.no_shrinking(name, info.size, size)
            self._extend(found, info, size)
            if size == info.size:
                return
            self.idle(name)
            with self.opened(self.chain(self.logical(name))):
                run.run(["qemu-img", "resize", "-q", "-f", "qcow2", self.device(found.name), str(size)])
