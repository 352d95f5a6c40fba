"""Backend ``rbd``: images in a pool of Ceph.

QEMU reaches them by Ceph's library; with the option ``krbd``, and for containers, the kernel shows them as devices.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pvetools.storage import ceph, krbd, names
from pvetools.storage.ceph import Cluster
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Capabilities, Network, Snapshot, Source, Space, Wish
from pvetools.storage.flat import FlatStorage, Record
from pvetools.storage.krbd import Image
from pvetools.system import lock, log, task
from pvetools.system.errors import Exists, NotFound, PveError, Refused, RunError

POOL = "rbd"
BASE_SNAPSHOT = "__base__"
_RAW = frozenset({"raw"})
_INFO = Capabilities(files=False, alloc=_RAW, resize=_RAW, online_resize=_RAW, snapshot=_RAW, base=_RAW)
_MISSING, _EXISTS = 2, 17  # exit statuses of `rbd`
_TRIES = 20  # names that other nodes may have taken meanwhile
_TAKEN_AGAIN = "another node took the name"


class Rbd(FlatStorage):
    """One storage of type ``rbd``."""

    info = _INFO

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        if definition.options.krbd:
            self.info = _INFO._replace(io_uring="direct")

    # The cluster and its pool.

    @cached_property
    def cluster(self) -> Cluster:
        return ceph.cluster(self.definition)

    @cached_property
    def pool(self) -> str:
        return ceph.check_name(self.id, "pool", self.definition.options.pool or POOL)

    @cached_property
    def namespace(self) -> str:
        given = self.definition.options.namespace
        return ceph.check_name(self.id, "namespace", given) if given else ""

    @cached_property
    def data_pool(self) -> str:
        given = self.definition.options.data_pool
        return ceph.check_name(self.id, "data-pool", given) if given else ""

    def image(self, own: str) -> Image:
        """A volume as an image of the pool."""
        return Image(self.pool, self.namespace, own)

    def _spec(self, own: str, snapshot: str = "") -> str:
        return self.image(own).spec + (f"@{snapshot}" if snapshot else "")

    def _rbd(self, *words: str) -> None:
        """Change something, however long it takes: a rollback that is ended half-way leaves neither state."""
        self.cluster.run("rbd", *words, within=None)

    def _told(self, *words: str) -> Any:
        return json.loads(self.cluster.run("rbd", *words, "--format", "json").stdout)

    def activate(self) -> None:
        """There is nothing to do; what has no configuration can't be used."""
        _ = self.cluster, self.pool, self.namespace, self.data_pool

    def deactivate(self) -> None:
        for name in krbd.mapped(self.pool, self.namespace):
            if self._is_ours(name):
                krbd.unmap(self.cluster, self.image(name))  # what is used stays

    def prepare(self) -> None:
        self.verify()

    def verify(self) -> None:
        with self._reached():
            self.taken()

    def status(self) -> Space:
        with self._reached():
            told = json.loads(self.cluster.run("ceph", "df", "--format", "json").stdout)
        pool = self.data_pool or self.pool
        stats = next((row["stats"] for row in told["pools"] if row["name"] == pool), None)
        if stats is None:
            why = f"the cluster tells nothing of pool '{pool}': it does not exist, or is new"
            raise PveError(f"storage '{self.id}': {why}")
        used, avail = stats.get("stored", stats["bytes_used"]), stats["max_avail"]
        return Space(used + avail, used, avail)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Ask nothing of a cluster without a sign of life, and say what is wrong with the pool."""
        try:
            ceph.reach(self.cluster)
            yield
        except RunError as error:
            raise PveError(f"storage '{self.id}': can't use pool '{self.pool}': {error.stderr}") from error
        except PveError as error:
            raise PveError(f"storage '{self.id}': {error}") from None

    # Places.

    def device(self, own: str, snapshot: str = "") -> Path:
        if self.definition.options.krbd:
            place = krbd.link(self.image(own))
            return place.with_name(f"{place.name}@{snapshot}") if snapshot else place
        return Path(self._url(own, snapshot))

    def _url(self, own: str, snapshot: str = "") -> str:
        """What QEMU's tools open."""
        image = "/".join(_escaped(part) for part in self.image(own) if part)
        settings = (f"{key}={_escaped(value)}" for key, value in self.cluster.settings())
        return ":".join(["rbd", image + (f"@{_escaped(snapshot)}" if snapshot else ""), *settings])

    def source(self, name: str) -> Source:
        if self.definition.options.krbd:
            return self.mountable(name)
        cluster = self.cluster
        self.require(name)
        if cluster.keyring is None and cluster.user != ceph.ADMIN and not cluster.monitors:
            raise PveError(f"storage '{self.id}': there is no keyring with the key of user 'client.{cluster.user}'")
        return self.told(name)

    def told(self, name: str) -> Source:
        own, cluster = self.parse(name).name, self.cluster
        if self.definition.options.krbd:
            return Source("block", self.device(own), "raw")
        network = Network(
            "rbd",
            self._spec(own),
            tuple((place.host, place.port) for place in cluster.portals),
            cluster.user if cluster.keyring else "",
            cluster.keyring,
            cluster.config,
        )
        return Source("network", self.device(own), "raw", self._url(own), network)

    def mountable(self, name: str) -> Source:
        image = self.image(self.parse(name).name)
        if krbd.find(self.cluster, image) is None:  # what is mapped is there: Ceph removes no image that is used
            self.require(name)
        return Source("block", krbd.map_(self.cluster, image), "raw")

    # Listings.

    def records(self) -> Iterator[Record]:
        for row in self._told("ls", "--long", *self._place()):
            if "snapshot" not in row and self._is_ours(row["image"]):
                yield Record(row["image"], row["size"], parent=self._parent(row))

    def _is_ours(self, own: str) -> bool:
        """Whether a name is that of a volume, and not a foreign one."""
        try:
            return self.parse(own).name == own
        except PveError:
            return False

    def _place(self) -> list[str]:
        return ["--pool", self.pool, *(["--namespace", self.namespace] if self.namespace else [])]

    def _parent(self, row: dict[str, Any]) -> str:
        """BASE@SNAPSHOT of a linked clone, with its pool where that is another one."""
        parent = row.get("parent")
        if not parent:
            return ""
        image = Image(parent["pool"], parent.get("pool_namespace", ""), parent["image"])
        spec = image.name if image == self.image(image.name) else image.spec
        return f"{spec}@{parent['snapshot']}"

    def taken(self) -> Iterable[str]:
        found: list[str] = self._told("ls", *self._place())
        return found

    def require(self, name: str) -> Record:
        row = self._info(name)
        return Record(row["name"], row["size"], parent=self._parent(row))  # lists don't tell times, so nothing does

    def _info(self, name: str) -> dict[str, Any]:
        """What Ceph knows of a volume. NotFound."""
        return dict(self._told_of(name, "info"), name=self.parse(name).name)

    def _told_of(self, name: str, *words: str) -> Any:
        """What ``rbd`` tells of a volume. NotFound."""
        try:
            return self._told(*words, self._spec(self.parse(name).name))
        except RunError as error:
            if error.code != _MISSING:
                raise
            raise NotFound(f"volume '{self.id}:{name}' does not exist") from None

    # Who uses a volume.

    def _unused(self, name: str) -> str:
        """A volume that must be there and that nobody uses; gives its own name."""
        own = self.require(name).name
        self._check_unused(name, own)
        return own

    def _check_unused(self, name: str, own: str) -> None:
        """Refuse a volume that is used, in this host's kernel or elsewhere."""
        if user := krbd.unmap(self.cluster, self.image(own)):
            raise self.in_use(name, user)
        watchers = self._told("status", self._spec(own)).get("watchers", [])
        if watchers:
            raise self.in_use(name, f"a client at {watchers[0]['address'].split('/')[0]}")

    # Making and removing.

    def alloc(self, wish: Wish) -> str:
        def make(own: str) -> None:
            self._rbd("create", "--size", _size(wish.size), *self._data(), self._spec(own))

        return self._make(wish, make)

    def _data(self) -> list[str]:
        return ["--data-pool", self.data_pool] if self.data_pool else []

    def _make(self, wish: Wish, make: Any) -> str:
        """Choose a name and make an image of that name; other nodes may do the same now."""
        with lock.storage_lock(self.id):
            for _ in range(_TRIES):
                own = self.choose_name(wish)
                try:
                    make(own)
                except RunError as error:
                    if error.code != _EXISTS:
                        raise
                    log.emit(f"{self.id}:{own}: {_TAKEN_AGAIN}")
                else:
                    return own
        raise Exists(f"storage '{self.id}': no free name for a volume of guest {wish.vmid} after {_TRIES} attempts")

    def free(self, name: str) -> None:
        with lock.storage_lock(self.id):
            own = self.parse(name).name
            try:
                row = self._info(name)
            except NotFound:
                if own not in self.taken():
                    raise
                row = {"snapshot_count": 0}  # a removal that was cut off has left the name
            else:
                self._check_children(name, row)
                self._check_unused(name, own)
            if row.get("snapshot_count", 1):
                for kept in self._kept(name):
                    self._unprotect(own, kept)
                self._rbd("snap", "purge", "--no-progress", self._spec(own))
            self._rbd("rm", "--no-progress", self._spec(own))

    def _check_children(self, name: str, row: dict[str, Any]) -> None:
        """Refuse a volume that linked clones lie on: on one of its snapshots, that is."""
        if row.get("snapshot_count", 1) and (children := self._told("children", self._spec(row["name"]))):
            child = "/".join(children[0][part] for part in ("pool", "pool_namespace", "image") if children[0][part])
            raise Refused(f"base volume '{self.id}:{name}' is still in use by linked clone '{child}'")

    def _kept(self, name: str) -> list[dict[str, Any]]:
        """All snapshots of a volume, those of bases included, the oldest first. NotFound."""
        return sorted(self._told_of(name, "snap", "ls"), key=lambda row: int(row["id"]))

    def _unprotect(self, own: str, row: dict[str, Any]) -> None:
        if str(row["protected"]) == "true":
            self._rbd("snap", "unprotect", self._spec(own, row["name"]))

    def resize(self, name: str, size: int) -> None:
        with lock.storage_lock(self.id):
            record = self.require(name)
            self.no_shrinking(name, record.size, size)
            self._rbd("resize", "--no-progress", "--size", _size(size), self._spec(record.name))
            krbd.await_size(self.cluster, self.image(record.name), size)

    # Snapshots.

    def snapshots(self, name: str) -> list[Snapshot]:
        rows = self._kept(name)
        return [Snapshot(row["name"], _seconds(row["timestamp"])) for row in rows if row["name"] != BASE_SNAPSHOT]

    def snapshot(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with lock.storage_lock(self.id):
            self.need_no_snapshot(name, snapshot)
            self._rbd("snap", "create", "--no-progress", self._spec(self.parse(name).name, snapshot))

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with lock.storage_lock(self.id):
            self.need_snapshot(name, snapshot)
            self._rbd("snap", "rm", "--no-progress", self._spec(self.parse(name).name, snapshot))

    def rollback(self, name: str, snapshot: str) -> None:
        names.check_snapshot(snapshot)
        with lock.storage_lock(self.id):
            self.need_snapshot(name, snapshot)
            self._rbd("snap", "rollback", "--no-progress", self._spec(self._unused(name), snapshot))

    # Base volumes and linked clones.

    def make_base(self, name: str) -> str:
        with lock.storage_lock(self.id), contextlib.ExitStack() as undo:
            base = self.check_becomes_base(name)
            own = self._unused(name)
            self._drop_unfinished(own)
            with task.uninterrupted():
                self._rbd("snap", "create", "--no-progress", self._spec(own, BASE_SNAPSHOT))
                undo.callback(self._drop_unfinished, own)
            self._rbd("snap", "protect", self._spec(own, BASE_SNAPSHOT))
            self._rbd("rename", self._spec(own), self._spec(base))  # the last step: from now on it is a base
            undo.pop_all()
        return self._full_name(self.require(base))

    def _drop_unfinished(self, own: str) -> None:
        """Remove what a cut power has left of the making of a base."""
        for row in self._kept(own):
            if row["name"] == BASE_SNAPSHOT:
                self._unprotect(own, row)
                self._rbd("snap", "rm", "--no-progress", self._spec(own, BASE_SNAPSHOT))

    def clone(self, name: str, vmid: int) -> str:
        parsed = self.check_is_base(name)

        def make(own: str) -> None:
            self._rbd("clone", *self._data(), self._spec(parsed.name, BASE_SNAPSHOT), self._spec(own))

        return f"{parsed.name}/{self._make(Wish(vmid, 1, 'raw'), make)}"


def _escaped(text: str) -> str:
    """For QEMU's names of images, where some signs separate."""
    return "".join(f"\\{sign}" if sign in ":@=\\" else sign for sign in text)


def _size(size: int) -> str:
    """Whole KiB, in the words of ``rbd``."""
    return f"{-(-size // 1024)}K"


def _seconds(text: str) -> int:
    """The time that ``rbd`` writes in its own way; 0 when it does not."""
    try:
        return int(time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y")))
    except ValueError:
        return 0
