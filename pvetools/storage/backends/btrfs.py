"""Backend ``btrfs``: every volume is a subvolume, so that snapshots and clones cost nothing.

A raw image lies in a subvolume of its own (``images/100/vm-100-disk-0/disk.raw`` is volume ``100/vm-100-disk-0.raw``),
a folder is one (``subvol-100-disk-0.subvol``), and their snapshots lie beside them (``vm-100-disk-0@NAME``). Clones of
a base share its blocks but do not need it. Images of other formats are plain files, as in a directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from pvetools.storage import folders, names, subvolumes
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Snapshot, Stream, Volume, Wish
from pvetools.storage.folders import FolderStorage
from pvetools.storage.names import VolumeName
from pvetools.storage.streaming import stream
from pvetools.system import files, lock
from pvetools.system.errors import Exists, NotFound, PveError, Refused, RunError
from pvetools.system.units import human_size

_OWN = frozenset({"raw", "subvol"})
_DISK = "disk.raw"
_RECEIVING = ".receive-"
_PLAIN_EXTENSIONS = tuple(f".{form}" for form in names.IMAGE_FORMATS)


class Btrfs(FolderStorage):
    """One storage of type ``btrfs``."""

    info = FolderStorage.info._replace(
        alloc=_OWN,
        resize=frozenset({"raw", "qcow2"}),
        snapshot=frozenset({"raw", "subvol", "qcow2"}),
        base=frozenset({"raw", "subvol", "qcow2"}),
        cache="writeback",  # writes past the page cache may change while their checksum is made
        export={"raw": ("btrfs", "raw+size"), "subvol": ("btrfs", "tar+size")},
        import_={"raw": ("btrfs", "raw+size"), "subvol": ("btrfs", "tar+size")},
    )

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self._quotas: dict[int, subvolumes.Quota] = {}
        if definition.options.nocow:
            self.info = self.info._replace(cache="none")
        if subvolumes.quotas_on(Path(self.base)):
            limited = frozenset({"subvol"})
            self.info = self.info._replace(
                resize=self.info.resize | limited, online_resize=limited, limits_folders=True
            )

    def attach(self) -> None:
        self.check_mount_point()
        place = Path(self.base)
        while not place.exists():  # it may be made later
            place = place.parent
        try:
            found = subvolumes.filesystem(place)
        except OSError as error:  # such as: it is a file
            raise PveError(f"unable to activate storage '{self.id}' - '{place}': {error.strerror}") from None
        if not found:
            raise PveError(f"unable to activate storage '{self.id}' - '{self.base}' is not on a btrfs file system")

    # Names and places.

    def parse(self, name: str) -> VolumeName:
        parsed = names.parse(name)
        if parsed.content == "images":
            raw = parsed.name.removesuffix(".raw")
            if "@" in name or (parsed.format == "raw" and raw.endswith(_PLAIN_EXTENSIONS)):
                raise PveError(f"unable to parse volume name '{name}': no such names on storages of type 'btrfs'")
        return parsed

    def path(self, name: str, snapshot: str = "") -> Path:
        parsed = self.parse(name)
        if parsed.content != "images" or parsed.format not in _OWN:
            return super().path(name, snapshot)
        if snapshot:
            names.check_snapshot(snapshot)
        own = parsed.name.removesuffix(".raw") + (f"@{snapshot}" if snapshot else "")
        place = self.directory("images") / str(parsed.vmid) / own
        return place / _DISK if parsed.format == "raw" else place

    def name_of(self, path: Path) -> str | None:
        if path.name != _DISK:
            return super().name_of(path)
        place = path.parent
        name = f"{place.parent.name}/{place.name}.raw"
        with contextlib.suppress(PveError):
            return name if self.path(name) == path else None
        return None

    def _owned(self, name: str) -> bool:
        """Whether a volume is a subvolume."""
        parsed = self.parse(name)
        return parsed.content == "images" and parsed.format in _OWN

    # Listings.

    def volumes(self, contents: Collection[str], vmid: int | None) -> Iterator[Volume]:
        self._quotas = subvolumes.quotas(Path(self.base)) if self.info.limits_folders else {}
        yield from super().volumes(contents, vmid)

    def _image(self, entry: os.DirEntry[str], owner: int, kinds: dict[int, str]) -> Volume | None:
        if "@" in entry.name:
            return None
        if entry.name.endswith(".subvol"):
            return self._folder(super()._image(entry, owner, kinds), Path(entry.path))
        if entry.name.endswith(_PLAIN_EXTENSIONS):
            return None if entry.name.endswith(".raw") else super()._image(entry, owner, kinds)
        try:
            name = f"{owner}/{entry.name}.raw"
            found = self.path(name).stat(follow_symlinks=False)
        except (PveError, OSError):
            return None
        content = "rootdir" if kinds.get(owner) == "lxc" else "images"
        return Volume(
            f"{self.id}:{name}", content, "raw", found.st_size, found.st_blocks * 512, owner, int(found.st_ctime)
        )

    def _folder(self, volume: Volume | None, path: Path) -> Volume | None:
        """A folder with its quota, where there is one."""
        from dataclasses import replace

        if volume is None or not self._quotas or not subvolumes.is_one(path):
            return volume
        quota = self._quotas.get(subvolumes.info(path).id, subvolumes.Quota(0, 0))
        return replace(volume, size=quota.limit, used=quota.used)

    # Making and removing.

    def _check_wish(self, wish: Wish) -> None:
        if wish.format == "subvol" and wish.size > 0 and not self.info.limits_folders:
            raise Refused(
                f"storage '{self.id}' can't limit the size of folders (subvol) because its file system has no quotas: "
                f"give size 0, or switch quotas on with: btrfs quota enable {self.base}"
            )
        super()._check_wish(wish)

    def _take(self, path: Path, form: str) -> None:
        """A subvolume appears when all of it is there: under its name, there is no half of one."""
        if form not in _OWN:
            super()._take(path, form)
            return
        place = _place(path)
        if os.path.lexists(place):
            raise FileExistsError(place)
        fresh = _scratch(place)
        subvolumes.create(fresh)
        try:
            if form == "raw":
                super()._take(fresh / _DISK, form)
                if self.definition.options.nocow:
                    subvolumes.switch_off_cow(fresh / _DISK)
            fresh.rename(place)
        except BaseException:
            subvolumes.delete([fresh])
            raise

    def _fill(self, path: Path, wish: Wish) -> None:
        super()._fill(path, wish)
        if wish.format == "subvol" and wish.size:
            subvolumes.limit(path, wish.size)
        files.sync_folder(_place(path).parent)

    def _unlink(self, path: Path) -> None:
        place = _place(path)
        if not subvolumes.is_one(place):
            super()._unlink(path)
            return
        subvolumes.delete([*(beside for _, beside in _snapshots(place)), place])
        self._drop_empty(place.parent)

    def _drop_empty(self, folder: Path) -> None:
        _sweep(folder)
        super()._drop_empty(folder)

    def _drop_empty_locked(self, folder: Path) -> None:
        with lock.storage_lock(self.id):
            self._drop_empty(folder)

    def resize(self, name: str, size: int) -> None:
        if self.parse(name).format != "subvol" or not self.info.limits_folders:
            super().resize(name, size)
            return
        path = self.path(name)
        self._require(name, path)
        now = self.volume(name).size
        if not now:
            raise Refused(f"can't resize volume '{self.id}:{name}': it is a folder without a limit of its size")
        if size < now:
            raise Refused(f"can't shrink volume '{self.id}:{name}' from {human_size(now)} to {human_size(size)}")
        subvolumes.limit(path, size)

    # Snapshots, base volumes and clones.

    def snapshots(self, name: str) -> list[Snapshot]:
        if not self._owned(name):
            return super().snapshots(name)
        path = self.path(name)
        self._require(name, path)
        return [snapshot for snapshot, _ in _snapshots(_place(path))]

    def snapshot(self, name: str, snapshot: str) -> None:
        if not self._owned(name):
            super().snapshot(name, snapshot)
            return
        with lock.storage_lock(self.id):
            if self._kept(name, snapshot):
                raise Exists(f"volume '{self.id}:{name}' has a snapshot '{snapshot}' already")
            self._copy(_place(self.path(name)), _place(self.path(name, snapshot)), read_only=True)

    def _copy(self, place: Path, target: Path, *, read_only: bool = False) -> None:
        try:
            subvolumes.snapshot(place, target, read_only=read_only)
            files.sync_folder(target.parent)
        except (OSError, RunError) as error:
            raise self._explained(error, 0) from error

    def _change_snapshot(self, name: str, action: str, snapshot: str) -> None:
        if not self._owned(name):
            super()._change_snapshot(name, action, snapshot)
            return
        if not self._kept(name, snapshot):
            raise NotFound(f"volume '{self.id}:{name}' has no snapshot '{snapshot}'")
        kept = _place(self.path(name, snapshot))
        if action == "-d":
            subvolumes.delete([kept])
        else:
            self._return_to(kept, _place(self._idle_image(name)))

    def _return_to(self, kept: Path, place: Path) -> None:
        """Put a copy of a snapshot in a volume's place in one step, then remove what it replaced."""
        fresh = _scratch(place)
        self._copy(kept, fresh)
        try:
            self._keep_limit(place, fresh)
            subvolumes.exchange(fresh, place)
        finally:
            subvolumes.delete([fresh])  # what was in its place; the copy itself when that failed
        files.sync_folder(place.parent)

    def _keep_limit(self, place: Path, target: Path) -> None:
        """Give a copy of a folder the limit of its origin."""
        if self.info.limits_folders and place.suffix == ".subvol":
            quota = subvolumes.quotas(place).get(subvolumes.info(place).id)
            if quota and quota.limit:
                subvolumes.limit(target, quota.limit)

    def make_base(self, name: str) -> str:
        parsed = self.parse(name)
        if not self._owned(name):
            return super().make_base(name)
        if parsed.is_base:
            raise Refused(f"volume '{self.id}:{name}' is a base volume already")
        with lock.storage_lock(self.id):
            place = _place(self._idle_image(name))
            if kept := self.snapshots(name):
                raise Refused(f"volume '{self.id}:{name}' can't become a base: it has the snapshot '{kept[0].name}'")
            own = re.sub(r"^(vm|subvol)-", "base-", parsed.name)
            base = _place(self.path(f"{parsed.vmid}/{own}"))
            if base == place or base.exists():
                raise Exists(f"disk image '{base}' already exists")
            # in this order: a volume that is none yet must stay one that can be written
            with contextlib.ExitStack() as undo:
                place.rename(base)
                undo.callback(base.rename, place)
                subvolumes.set_read_only(base, True)
                undo.pop_all()
            files.sync_folder(base.parent)
        return f"{parsed.vmid}/{own}"

    def clone(self, name: str, vmid: int) -> str:
        if not self._owned(name):
            return super().clone(name, vmid)
        parsed, path = self.parse(name), self.path(name)
        if not parsed.is_base:
            raise Refused(f"volume '{self.id}:{name}' is not a base volume, so it can't have linked clones")
        self._require(name, path)
        with lock.storage_lock(self.id):
            folder = self.directory("images") / str(vmid)
            folder.mkdir(parents=True, exist_ok=True)
            own = folders.next_name(folder, vmid, parsed.format)
            target = _place(self.path(f"{vmid}/{own}"))
            with contextlib.ExitStack() as undo:
                undo.callback(self._drop_empty, folder)
                self._copy(_place(path), target)
                undo.callback(subvolumes.delete, [target])
                self._keep_limit(_place(path), target)
                undo.pop_all()
        return f"{vmid}/{own}"

    # Streams.

    def send(self, name: str, what: Stream, out: int) -> None:
        kept = [_place(self.path(name, snapshot)) for snapshot in (*what.between, what.snapshot)]
        parent: list[str | Path] = ["-p", _place(self.path(name, what.base))] if what.base else []
        stream(["btrfs", "-q", "send", "-e", *parent, "--", *kept], stdout=out)

    def receive(self, name: str, what: Stream, source: int, *, rename: bool) -> str:
        if not what.snapshot:
            raise Refused(f"volume '{self.id}:{name}': a stream of btrfs holds snapshots, so one has to be named")
        parsed = self.parse(name)
        if what.base and not self._kept(name, what.base):
            raise NotFound(f"volume '{self.id}:{name}' has no snapshot '{what.base}'")
        folder = self.directory("images") / str(parsed.vmid)
        with contextlib.ExitStack() as undo:
            undo.callback(self._drop_empty_locked, folder)
            place = undo.enter_context(self._receiving(folder))
            # A foreign stream may hold a link and then write to what is behind it, as root: only inside of the place.
            # What builds on another snapshot can't be confined: that one lies outside, and is looked for by the
            # kernel's paths, which mean nothing there. Its sender is one whose whole stream came before.
            confined = [] if what.base else ["-C"]
            stream(["btrfs", "-q", "receive", "-e", *confined, "--", place], stdin=source)
            came = _came(place, what.snapshot, parsed.format)
            with lock.storage_lock(self.id):
                own = parsed.name if what.base else self._free_name(folder, parsed, rename=rename)
                self._settle(came, what.snapshot, f"{parsed.vmid}/{own}", replace=bool(what.base))
        return f"{parsed.vmid}/{own}"

    @contextlib.contextmanager
    def _receiving(self, folder: Path) -> Iterator[Path]:
        """A folder for what comes, which goes with the block."""
        with contextlib.ExitStack() as undo:
            with lock.storage_lock(self.id):
                folder.mkdir(parents=True, exist_ok=True)
                place = Path(tempfile.mkdtemp(prefix=_RECEIVING, suffix=".tmp", dir=folder))
                undo.callback(_remove_received, place)
                held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, held)
                fcntl.flock(held, fcntl.LOCK_EX)  # nobody takes it for a leftover
            yield place

    def _free_name(self, folder: Path, parsed: VolumeName, *, rename: bool) -> str:
        place = _place(self.path(f"{parsed.vmid}/{parsed.name}"))
        if not place.exists():
            return parsed.name
        if not rename:
            raise Exists(f"disk image '{place}' already exists")
        return folders.next_name(folder, parsed.vmid or 0, parsed.format)

    def _settle(self, came: dict[str, Path], last: str, name: str, *, replace: bool) -> None:
        """Give snapshots that were received their places, and a volume the state of the last one."""
        place = _place(self.path(name))
        with contextlib.ExitStack() as undo:
            if not replace:  # first: snapshots without a volume would be seen by nobody
                self._copy(came[last], place)
                undo.callback(subvolumes.delete, [place])
            for snapshot, path in came.items():
                target = _place(self.path(name, snapshot))
                if target.exists():
                    raise Exists(f"volume '{self.id}:{name}' has a snapshot '{snapshot}' already")
                # a copy still counts as received, so that later streams can build on it; moving would end that
                self._copy(path, target, read_only=True)
                undo.callback(subvolumes.delete, [target])
            if replace:
                self._return_to(came[last], _place(self._idle_image(name)))
            undo.pop_all()


def _place(path: Path) -> Path:
    """The subvolume of a volume, where it is one."""
    return path.parent if path.name == _DISK else path


def _snapshots(place: Path) -> list[tuple[Snapshot, Path]]:
    """Snapshots of a subvolume, oldest first, and where they lie."""
    found: list[tuple[tuple[int, int], str, Path]] = []
    for beside in place.parent.glob(f"{glob.escape(place.name)}@*"):
        if subvolumes.is_one(beside):
            found.append((subvolumes.info(beside).created, beside.name.partition("@")[2], beside))
    return [(Snapshot(name, created[0]), beside) for created, name, beside in sorted(found)]


def _scratch(place: Path) -> Path:
    """A place beside for what is not complete; the caller holds the storage's lock."""
    path = place.with_name(f".{place.name}.tmp")
    if os.path.lexists(path):
        subvolumes.delete([path])  # of a process that was killed
    return path


def _sweep(folder: Path) -> None:
    """Remove what killed processes left in a guest's folder; the caller holds the storage's lock."""
    for left in folder.glob(".*.tmp"):
        if subvolumes.is_one(left):
            subvolumes.delete([left])
        elif left.name.startswith(_RECEIVING) and not _is_held(left):
            _remove_received(left)


def _is_held(place: Path) -> bool:
    """Whether something is still being received there."""
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False


def _remove_received(place: Path) -> None:
    subvolumes.delete(path for path in place.iterdir() if subvolumes.is_one(path))
    shutil.rmtree(place)


def _came(place: Path, wanted: str, form: str) -> dict[str, Path]:
    """Snapshots that a stream brought, in its order; what is no volume with snapshots is refused."""
    for path in place.iterdir():
        names.check_snapshot(path.name.partition("@")[2])
        disk = path / _DISK
        if not subvolumes.is_one(path) or (form == "raw" and (disk.is_symlink() or not disk.is_file())):
            raise PveError(f"the stream holds no volume of format '{form}'")
    ordered = sorted(place.iterdir(), key=lambda path: subvolumes.info(path).created)
    came = {path.name.partition("@")[2]: path for path in ordered}
    if wanted not in came:
        raise PveError(f"the stream holds no snapshot '{wanted}', only: {', '.join(came) or 'nothing'}")
    return came
