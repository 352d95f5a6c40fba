"""Backend ``zfspool``: volumes and file systems in a ZFS pool of this host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pvetools.storage import blockdev, mounts, zfs
from pvetools.storage.driver import Capabilities, Source, Stream, Wish
from pvetools.storage.names import VolumeName
from pvetools.storage.streaming import stream
from pvetools.storage.zfs import Caller, Row
from pvetools.storage.zfsvolumes import FORMATS, ZfsStorage, is_folder
from pvetools.system import lock, log, task
from pvetools.system.errors import Exists, PveError, Refused, RunError
from pvetools.system.units import MIB

DEVICES = Path("/dev/zvol")
_BOTH = frozenset({"raw", "subvol"})
# the process that receives a volume, when it started, and the volume's name
_ARRIVING = re.compile(r"pvetools-receiving-(\d+)-(\d+)-(.+)", re.ASCII)
_NEW = "new"  # what comes, below that
_NAME_REQUEST, _NAME_SIZE = 0x8100127D, 256  # asks a device of ZFS for the name of its volume
_FLUSH_REQUEST = 0x1261  # has the kernel write what it keeps of a device, and forget it
_PATIENCE = 30.0  # udev makes the links to devices in its own time


class ZfsPool(ZfsStorage):
    """One storage of type ``zfspool``."""

    info = Capabilities(
        files=False,
        alloc=_BOTH,
        resize=_BOTH,
        online_resize=_BOTH,
        snapshot=_BOTH,
        rollback_to_newest=True,
        base=_BOTH,
        limits_folders=True,
        export={"raw": ("zfs", "raw+size"), "subvol": ("zfs", "tar+size")},
        import_={"raw": ("zfs", "raw+size"), "subvol": ("zfs", "tar+size")},
    )

    def caller(self) -> Caller:
        return zfs.here

    def activate(self) -> None:
        pool = zfs.check_dataset(self.pool.dataset).partition("/")[0]
        if zfs.is_imported(pool):
            return
        with lock.storage_lock(self.id):
            try:
                zfs.import_pool(pool)
            except RunError as error:
                raise PveError(f"unable to activate storage '{self.id}' - {error}") from error

    # Places.

    @cached_property
    def _mountpoint(self) -> Path:
        """Where file systems are mounted; a pool that is not imported yet does not say so."""
        mounted = next((mount.point for mount in _mounts_of(self.pool.dataset)), "")
        given = self.definition.options.mountpoint or mounted
        if not given:
            with contextlib.suppress(PveError):
                given = self.pool.property("mountpoint")
        return Path(given if given and given.startswith("/") else f"/{self.pool.dataset}")

    def device(self, own: str, snapshot: str = "") -> Path:
        if not is_folder(own):
            return DEVICES / self.pool.of(own, snapshot)
        place = self._mountpoint / own
        return place / ".zfs/snapshot" / snapshot if snapshot else place

    def source(self, name: str) -> Source:
        own = self.parse(name).name
        place = self.device(own)
        kind, form = ("folder", "subvol") if is_folder(own) else ("block", "raw")
        if not self._at_hand(own, place):
            row = self.row(name)
            if is_folder(own):
                self._mount(name, row, place)
            else:
                self._wait_for(own, place)
        return Source(kind, place, form)

    def _at_hand(self, own: str, place: Path) -> bool:
        """Whether the kernel itself says that a volume is there and reachable."""
        if is_folder(own):
            return any(mount.point == str(place) for mount in _mounts_of(self.pool.of(own)))
        return volume_of(place) == self.pool.of(own)

    def _mount(self, name: str, row: Row, place: Path) -> None:
        if row.mountpoint != str(place):
            where = f"is mounted at '{row.mountpoint}'" if row.mountpoint else "has no mount point"
            raise PveError(
                f"volume '{self.id}:{name}' {where}, not at '{place}'; set the property or the option 'mountpoint'"
            )
        if not row.mounted:
            try:
                self.pool.mount(row.name)
            except RunError as error:
                if "already mounted" not in error.stderr:  # somebody else did it just now
                    raise

    def _wait_for(self, own: str, device: Path) -> None:
        """Wait until the link leads to this volume: one to the volume that had its name before may still be there."""
        deadline, pause = time.monotonic() + _PATIENCE, 0.01
        while volume_of(device) != self.pool.of(own):
            if time.monotonic() > deadline:
                raise PveError(f"device '{device}' of volume '{self.id}:{own}' did not appear in {_PATIENCE:g} seconds")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def gone(self, own: str) -> None:
        """Wait until the device is no longer that of the volume; its link may stay for another moment."""
        device, deadline = self.device(own), time.monotonic() + _PATIENCE
        while not is_folder(own) and volume_of(device) == self.pool.of(own):
            if time.monotonic() > deadline:
                log.warn(f"device '{device}' of a volume that was removed is still there")
                return
            time.sleep(0.02)

    # Users.

    def user_of(self, row: Row) -> str:
        if row.type == zfs.VOLUME:
            return blockdev.user_of(self.device(row.name))
        dataset, place = self.pool.of(row.name), str(self.device(row.name))
        for mount in (mount for _, there in mounts.everywhere() for mount in there):
            inside = mount.point.startswith(f"{place}/")
            if inside or (mount.source == dataset and mount.kind == "zfs" and mount.point != place):
                return f"the mount '{mount.point}'"
        return ""

    @contextlib.contextmanager
    def _away(self, own: str) -> Iterator[None]:
        """The kernel remembers what a volume held before it was rolled back, unless it is told to forget that."""
        if not is_folder(own):
            try:
                yield
            finally:
                _forget_cached(self.device(own))
        elif self.row(own).mounted:
            self.pool.unmount(own)
            try:
                yield
            finally:
                self.pool.mount(own)
        else:
            yield

    # Streams.

    def send(self, name: str, what: Stream, out: int) -> None:
        row = self.row(name)
        kept = [found.name for found in self.snapshots(name)]
        start = kept.index(what.base) + 1 if what.base else 0
        if what.between and list(what.between) != kept[start : kept.index(what.snapshot)]:
            raise Refused(f"volume '{self.id}:{name}': a stream of ZFS with snapshots holds all of them")
        raw = self.pool.property("encryption", row.name) not in ("off", "-", "")
        dataset = self.pool.of(row.name)
        stream(zfs.send_argv(dataset, what.snapshot, what.base, bool(what.between), raw=raw), stdout=out)

    def receive(self, name: str, what: Stream, source: int, *, rename: bool) -> str:
        parsed = self.parse(name)
        if what.base:
            self.need_snapshot(name, what.base)
            row = self.row(name)
            self.check_unused(name, row)
            with self._away(row.name), self._explained(name):
                stream(zfs.receive_argv(self.pool.of(row.name)), stdin=source)
                try:
                    self._check_came(row.name, parsed, what.snapshot)
                except PveError:
                    self.pool.rollback(row.name, what.base, newer=True)
                    raise
            return name
        with self._arriving(parsed, rename=rename) as (own, place):
            arriving = f"{place}/{_NEW}"
            with self._explained(own):
                stream(zfs.receive_argv(self.pool.of(arriving)), stdin=source)
            self._check_came(arriving, parsed, what.snapshot)
            with self._explained(own), task.uninterrupted():
                self.pool.rename(arriving, own)
        return own

    def _check_came(self, own: str, parsed: VolumeName, snapshot: str) -> None:
        """A stream can hold another kind of dataset, or another snapshot, than was said."""
        whole = self.pool.whole(own)
        if whole is None or FORMATS.get(whole.row.type) != parsed.format:
            raise PveError(f"the stream holds no volume of format '{parsed.format}'")
        if snapshot not in (found.name for found in whole.snapshots):
            raise PveError(f"the stream holds no snapshot '{snapshot}'")

    @contextlib.contextmanager
    def _arriving(self, parsed: VolumeName, *, rename: bool) -> Iterator[tuple[str, str]]:
        """A name that is kept for a volume, and a place for what comes, which goes with the block.

        What is complete moves from there to its name: until then there is no volume, and ZFS would put nothing
        encrypted over one.
        """
        with contextlib.ExitStack() as undo:
            with lock.storage_lock(self.id):
                own = self._free_name(parsed, rename=rename)
                place = f"pvetools-receiving-{os.getpid()}-{task.process_start(os.getpid())}-{own}"
                with self._explained(own), task.uninterrupted():
                    self.pool.make_place(place)
                    undo.callback(self._drop_place, place)
            yield own, place

    def _free_name(self, parsed: VolumeName, *, rename: bool) -> str:
        wish = Wish(parsed.vmid or 0, MIB, parsed.format, parsed.name)
        try:
            return self.choose_name(wish)
        except Exists:
            if not rename:
                raise
        return self.choose_name(replace(wish, name=""))

    def taken(self) -> list[str]:
        """With the names of what is being received; what killed commands left of that is removed."""
        names = super().taken()
        for match in [*filter(None, map(_ARRIVING.fullmatch, names))]:
            if task.process_start(int(match[1])) == int(match[2]):
                names.append(match[3])
            else:
                log.emit(f"removing '{match[0]}', left by a process that was killed")
                self._drop_place(match[0])
        return names

    def _drop_place(self, place: str) -> None:
        """Remove what has not become a volume."""
        try:
            self.pool.destroy(place)
        except RunError as error:
            log.warn(f"could not remove dataset '{self.pool.of(place)}', it stays in the pool: {error}")


def volume_of(device: Path) -> str:
    """Name of the ZFS volume behind a device; empty when there is none."""
    answer = bytearray(_NAME_SIZE)
    try:
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.ioctl(fd, _NAME_REQUEST, answer)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return answer.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _mounts_of(dataset: str) -> list[mounts.Mount]:
    """Where this host has mounted a file system of ZFS."""
    return [mount for mount in mounts.every() if (mount.kind, mount.source) == ("zfs", dataset)]


def _forget_cached(device: Path) -> None:
    """Drop what the kernel keeps of a device in its memory; programs that look into new devices leave some there."""
    with contextlib.suppress(FileNotFoundError):  # then nothing was kept
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _FLUSH_REQUEST, 0)
        finally:
            os.close(fd)
