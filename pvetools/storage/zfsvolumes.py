"""Storages whose volumes are ZFS volumes and file systems, whether their pool is on this host or on a server."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator

from pvetools.storage import names
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Snapshot, Space, Wish
from pvetools.storage.flat import FOLDER_KINDS, FlatStorage, Record
from pvetools.storage.zfs import (
    BASE_SNAPSHOT,
    FILE_SYSTEM,
    VOLUME,
    Caller,
    Pool,
    Row,
    Whole,
    is_busy,
    is_full,
    is_missing,
)
from pvetools.system import lock, task
from pvetools.system.errors import NotFound, PveError, Refused, RunError
from pvetools.system.units import MIB

FORMATS = {VOLUME: "raw", FILE_SYSTEM: "subvol"}


class ZfsStorage(FlatStorage):
    """Base of the backends; each of them says how the pool is reached and who uses a volume."""

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self.pool = Pool(definition.options.pool or "", self.caller())

    # What a backend supplies.

    @abstractmethod
    def caller(self) -> Caller:
        """What runs programs where the pool is."""

    @abstractmethod
    def user_of(self, row: Row) -> str:
        """Who uses a volume, in words; empty when nobody does."""

    def shown(self, own: str) -> None:
        """Make a volume reachable that is new or has changed its name; nothing to do where ZFS does it."""

    def hidden(self, own: str) -> None:
        """The contrary, before a volume goes or changes its name."""

    @contextlib.contextmanager
    def _away(self, own: str) -> Iterator[None]:
        """Hide a volume from those who might open it while it is changed."""
        self.hidden(own)
        try:
            yield
        finally:
            self.shown(own)

    # State and listings.

    def status(self) -> Space:
        try:
            return self.pool.space()
        except RunError as error:
            if is_missing(error):
                raise PveError(f"storage '{self.id}': there is no ZFS dataset '{self.pool.dataset}'") from None
            raise

    def verify(self) -> None:
        self.activate()
        self.status()

    def rows(self) -> Iterator[Row]:
        """Our volumes as ZFS has them."""
        for row in self.pool.rows():
            with contextlib.suppress(PveError):  # foreign names, and names of another kind than the dataset is
                parsed = self.parse(row.name)
                if parsed.name == row.name and parsed.format == FORMATS.get(row.type):
                    yield row

    def records(self) -> Iterator[Record]:
        return map(self._record, self.rows())

    def _record(self, row: Row) -> Record:
        above, _, origin = row.origin.rpartition("/")
        parent = origin if above == self.pool.dataset else row.origin
        return Record(row.name, row.size, FORMATS[row.type], row.used, row.created, parent)

    def require(self, name: str) -> Record:
        return self._record(self.row(name))

    def taken(self) -> list[str]:
        return [row.name for row in self.pool.rows()]

    def row(self, name: str) -> Row:
        """A volume that must be there. NotFound."""
        parsed = self.parse(name)
        row = self.pool.row(parsed.name)
        if row is None or FORMATS.get(row.type) != parsed.format:
            raise NotFound(f"volume '{self.id}:{name}' does not exist")
        return row

    def whole(self, name: str) -> Whole:
        """The same with all that hangs on it. NotFound."""
        parsed = self.parse(name)
        whole = self.pool.whole(parsed.name)
        if whole is None or FORMATS.get(whole.row.type) != parsed.format:
            raise NotFound(f"volume '{self.id}:{name}' does not exist")
        return whole

    def check_unused(self, name: str, row: Row) -> None:
        """Refuse a volume that somebody uses."""
        if user := self.user_of(row):
            raise self.in_use(name, user)

    # Making and removing.

    def alloc(self, wish: Wish) -> str:
        with lock.storage_lock(self.id), contextlib.ExitStack() as undo:
            own = self.choose_name(wish)
            with self._explained(own, wish.size), task.uninterrupted():
                self._make(own, wish)
                undo.callback(self._drop, own)
            self.shown(own)
            undo.pop_all()
        return own

    def _drop(self, own: str) -> None:
        """Remove a volume that was made in vain."""
        self.hidden(own)
        self.pool.destroy(own)

    def _make(self, own: str, wish: Wish) -> None:
        options = self.definition.options
        if wish.format == "subvol":
            self.pool.make_folder(own, wish.size)
        else:
            sync = "always" if options.nowritecache else ""
            size = _rounded(wish.size)
            self.pool.make_volume(own, size, options.blocksize or "", sparse=bool(options.sparse), sync=sync)

    @contextlib.contextmanager
    def _explained(self, name: str, size: int = 0) -> Iterator[None]:
        """Errors of the tools in words of storages."""
        try:
            yield
        except RunError as error:
            if is_full(error):
                raise self.full(size) from error
            if is_busy(error):
                raise self.in_use(name, "another process") from error
            raise

    def free(self, name: str) -> None:
        with lock.storage_lock(self.id):
            row, _, clones, below = self.whole(name)
            if clones:
                clone = self._short(clones[0])
                raise Refused(f"base volume '{self.id}:{name}' is still in use by linked clone '{clone}'")
            if below:
                raise Refused(f"volume '{self.id}:{name}' can't be removed: dataset '{below[0]}' lies in it")
            self.check_unused(name, row)
            self.hidden(row.name)
            with self._explained(name):
                self.pool.destroy(row.name)
            self.gone(row.name)

    def _short(self, dataset: str) -> str:
        """Volume id of a dataset, or its name when it is none of ours."""
        above, _, own = dataset.rpartition("/")
        return f"{self.id}:{own}" if above == self.pool.dataset else dataset

    def gone(self, own: str) -> None:
        """Wait until nothing is left of a removed volume; nothing to do where nothing can be."""

    def resize(self, name: str, size: int) -> None:
        with lock.storage_lock(self.id):
            row = self.row(name)
            wanted = _rounded(size) if row.type == VOLUME else size
            if row.size or row.type == VOLUME:
                self.no_shrinking(name, row.size, size)
            with self._explained(name, wanted - row.size):
                self.pool.set_size(row, wanted)
            self.grown(row.name, wanted)

    def grown(self, own: str, size: int) -> None:
        """Tell the new size to those who reach the volume; nothing to do where they see it."""

    # Snapshots.

    def snapshots(self, name: str) -> list[Snapshot]:
        return _kept(self.whole(name))

    def snapshot(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with lock.storage_lock(self.id):
            self.need_no_snapshot(name, snapshot)
            with self._explained(name):
                self.pool.snapshot(self.parse(name).name, snapshot)

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with lock.storage_lock(self.id):
            self.need_snapshot(name, snapshot)
            with self._explained(name):
                self.pool.delete_snapshot(self.parse(name).name, snapshot)

    def rollback(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with lock.storage_lock(self.id):
            whole = self.whole(name)
            kept = [found.name for found in _kept(whole)]
            if snapshot not in kept:
                raise self.no_snapshot(name, snapshot)
            if newer := kept[kept.index(snapshot) + 1 :]:
                raise Refused(
                    f"can't roll back volume '{self.id}:{name}' to snapshot '{snapshot}': it is not its most recent "
                    f"snapshot, remove the newer ones first: {', '.join(newer)}"
                )
            self.check_unused(name, whole.row)
            self._drop_unfinished(whole)
            with self._away(whole.row.name), self._explained(name):
                self.pool.rollback(whole.row.name, snapshot)

    def _drop_unfinished(self, whole: Whole) -> None:
        """Remove what a cut power has left of the making of a base."""
        own = whole.row.name
        if not self.parse(own).is_base and any(found.name == BASE_SNAPSHOT for found in whole.snapshots):
            self.pool.delete_snapshot(own, BASE_SNAPSHOT)

    # Base volumes and linked clones.

    def make_base(self, name: str) -> str:
        with lock.storage_lock(self.id):
            base = self.check_becomes_base(name)
            whole = self.whole(name)
            row = whole.row
            self.check_unused(name, row)
            self._drop_unfinished(whole)
            self.hidden(row.name)
            try:
                with self._explained(name), contextlib.ExitStack() as undo:
                    with task.uninterrupted():
                        self.pool.snapshot(row.name, BASE_SNAPSHOT)
                        undo.callback(self.pool.delete_snapshot, row.name, BASE_SNAPSHOT)
                    self.pool.rename(row.name, base)
                    undo.pop_all()
            except BaseException:
                self.shown(row.name)
                raise
            self.gone(row.name)
            self.shown(base)
        return self._full_name(self.require(base))

    def clone(self, name: str, vmid: int) -> str:
        with lock.storage_lock(self.id), contextlib.ExitStack() as undo:
            parsed = self.check_is_base(name)
            base = self.row(name)
            own = self.choose_name(Wish(vmid, base.size or MIB, parsed.format))
            with self._explained(name, base.size), task.uninterrupted():
                self.pool.clone(base, own)
                undo.callback(self._drop, own)
            self.shown(own)
            undo.pop_all()
        return f"{parsed.name}/{own}"


def _kept(whole: Whole) -> list[Snapshot]:
    """Snapshots but the one that linked clones lie on."""
    return [found for found in whole.snapshots if found.name != BASE_SNAPSHOT]


def _rounded(size: int) -> int:
    """Sizes of volumes are whole MiB, which every block size divides up to 1M."""
    return -(-size // MIB) * MIB


def is_folder(own: str) -> bool:
    """Whether a name is that of a file system."""
    return own.startswith(tuple(f"{kind}-" for kind in FOLDER_KINDS))
