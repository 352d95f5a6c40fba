"""Storages whose volumes are files and folders below one directory, laid out as Proxmox VE does it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pvetools.config import guest
from pvetools.storage import images, inuse, names
from pvetools.storage.definition import FOLDERS, Definition
from pvetools.storage.driver import Capabilities, Snapshot, Source, Space, Volume, Wish
from pvetools.storage.imported import Guest
from pvetools.storage.names import VolumeName
from pvetools.system import files, lock, log, run
from pvetools.system.errors import Exists, NotFound, PveError, Refused, RunError
from pvetools.system.units import human_size

_FULL = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.ENOENT, errno.ESTALE)
_FULL_TEXT = ("No space left on device", "Disk quota exceeded")


class FolderStorage:
    """Base of the backends; each of them says how its directory comes to be there."""

    info = Capabilities(
        files=True,
        alloc=frozenset({"raw", "qcow2", "vmdk", "subvol"}),
        resize=frozenset({"raw", "qcow2"}),
        snapshot=frozenset({"qcow2"}),
        base=frozenset({"raw", "qcow2"}),
    )

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.id = definition.id

    @property
    def base(self) -> str:
        path = self.definition.options.path
        if not path:
            raise PveError("storage definition has no path")
        return path

    # State of the storage.

    def check_mount_point(self) -> None:
        """Refuse a directory that option ``is_mountpoint`` expects to be mounted, and is not."""
        wanted = self.definition.options.is_mountpoint
        if wanted.lower() in ("no", "0", "off", "false"):
            return
        point = Path(self.base if wanted.lower() in ("yes", "1", "on", "true") else wanted)
        if not inuse.is_mount_point(point):
            raise PveError(
                f"unable to activate storage '{self.id}' - directory is expected to be a mount point but is not "
                f"mounted: '{point}'"
            )

    def attach(self) -> None:
        """Make the directory reachable, or say why it is not: nothing to do for one that is simply there."""

    def prepare(self) -> None:
        """Nothing to make: ``activate`` makes folders."""

    def deactivate(self) -> None:
        """Nothing to undo for a directory that is simply there."""

    def verify(self) -> None:
        self.activate()

    def activate(self) -> None:
        options = self.definition.options
        if conflict := self.definition.folder_conflict:
            raise PveError(f"unable to activate storage '{self.id}' - content-dirs: {conflict}")
        self.attach()
        path, create = Path(self.base), options.given.get("create-base-path", options.mkdir)
        try:
            if create:
                path.mkdir(parents=True, exist_ok=True)
            if not path.is_dir():
                raise NotADirectoryError
            if options.given.get("create-subdirs", options.mkdir):
                for content in self.definition.content - {"rootdir"}:
                    self.directory(content).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.filename and Path(error.filename) not in (path, *path.parents):
                raise PveError(
                    f"unable to activate storage '{self.id}' - can't make '{error.filename}': {error.strerror}"
                ) from None
            why = f" ({error.strerror})" if error.strerror else ""
            raise PveError(
                f"unable to activate storage '{self.id}' - directory '{path}' does not exist or is unreachable{why}"
            ) from None

    def status(self) -> Space:
        found = os.statvfs(self.base)
        unit = found.f_frsize
        return Space(found.f_blocks * unit, (found.f_blocks - found.f_bfree) * unit, found.f_bavail * unit)

    # Names and places.

    def directory(self, content: str) -> Path:
        return Path(f"{self.base}/{self.definition.folder(content)}")

    def parse(self, name: str) -> VolumeName:
        return names.parse(name)

    def named(self, name: str) -> VolumeName | None:
        """A volume's name taken apart; None for a file whose name can be no volume's."""
        with contextlib.suppress(PveError):
            return self.parse(name)
        return None

    def path(self, name: str, snapshot: str = "") -> Path:
        parsed = self.parse(name)
        if snapshot and parsed.format != "qcow2":
            raise PveError("can't snapshot this image format")
        folder = self.directory(parsed.content)
        return folder / str(parsed.vmid) / parsed.name if parsed.content == "images" else folder / parsed.name

    def name_of(self, path: Path) -> str | None:
        if path.parent.parent == self.directory("images") and names.is_vmid(path.parent.name):
            return self._image_name(path)
        for content in FOLDERS:
            if content != "images" and path.parent == self.directory(content):
                name = f"{content}/{path.name}"
                with contextlib.suppress(PveError):
                    self.parse(name)
                    return name
        return None

    def header(self, path: Path, form: str) -> images.ImageInfo:
        """What the header of an image says."""
        return images.inspect(path, form)

    def _image_name(self, path: Path) -> str | None:
        name = f"{path.parent.name}/{path.name}"
        try:
            form = self.parse(name).format
            backing = "" if path.is_dir() else self.header(path, form).backing
        except (PveError, OSError):
            return None
        return self._linked(backing) + name

    def _linked(self, backing: str) -> str:
        """First part of a linked clone's name."""
        match = re.fullmatch(r"\.\./(\d+/[^/]+)", backing, re.ASCII)
        if not match:
            return ""
        with contextlib.suppress(PveError):
            self.parse(match[1])
            return match[1] + "/"
        return ""

    def source(self, name: str) -> Source:
        path = self.path(name)
        self._require(name, path)
        return Source("folder" if path.is_dir() else "file", path, self.parse(name).format)

    def mountable(self, name: str) -> Source:
        return self.source(name)

    def _require(self, name: str, path: Path) -> None:
        if not os.path.lexists(path):
            raise NotFound(f"volume '{self.id}:{name}' does not exist")

    # Listings.

    def volumes(self, contents: Collection[str], vmid: int | None) -> Iterator[Volume]:
        if "images" in contents or "rootdir" in contents:
            yield from (volume for volume in self._images(vmid) if volume.content in contents)
        for content, lister in _LISTERS.items():
            if content in contents:
                yield from lister(self, self.directory(content), vmid)

    def _images(self, vmid: int | None) -> Iterator[Volume]:
        kinds = {number: kind for number, (_, kind) in guest.cluster_guests().items()}
        for entry in _scan(self.directory("images")):
            if names.is_vmid(entry.name) and entry.is_dir() and vmid in (None, int(entry.name)):
                for image in _scan(Path(entry.path)):
                    volume = self._image(image, int(entry.name), kinds)
                    if volume:
                        yield volume

    def _image(self, entry: os.DirEntry[str], owner: int, kinds: dict[int, str]) -> Volume | None:
        try:
            form = self.parse(f"{owner}/{entry.name}").format
            stat = entry.stat()
        except (PveError, OSError):
            return None
        if entry.is_dir() != (form == "subvol"):
            return None
        found = images.ImageInfo(0)
        if form != "subvol":
            try:
                found = self.header(Path(entry.path), form)
            except FileNotFoundError:
                return None  # removed just now
            except PveError as error:
                log.warn(str(error))
        name = f"{self._linked(found.backing)}{owner}/{entry.name}"
        content = "rootdir" if kinds.get(owner) == "lxc" else "images"
        used = 0 if form == "subvol" else stat.st_blocks * 512
        return Volume(
            f"{self.id}:{name}", content, form, found.size, used, owner, int(stat.st_ctime), parent=found.backing
        )

    def volume(self, name: str) -> Volume:
        parsed, path = self.parse(name), self.path(name)
        self._require(name, path)
        wanted = {"images": {"images", "rootdir"}}.get(parsed.content, {parsed.content})
        for found in self.volumes(wanted, parsed.vmid):
            if self.path(names.split(found.volid)[1]) == path:
                return found
        raise PveError(f"'{path}' is not a volume of storage '{self.id}'")

    def children(self, name: str) -> list[str]:
        """Volumes that are linked clones of an image."""
        path = os.path.realpath(self.path(name))
        found: list[str] = []
        for volume in self._images(None):
            if volume.parent:
                own = self.path(names.split(volume.volid)[1])
                if os.path.realpath(own.parent / volume.parent) == path != os.path.realpath(own):
                    found.append(volume.volid)
        return found

    # Making and removing.

    def alloc(self, wish: Wish) -> str:
        self._check_wish(wish)
        with contextlib.ExitStack() as undo:
            with lock.storage_lock(self.id):
                own, path = self._reserve(wish)
                undo.callback(self._take_back, path)
            try:
                self._fill(path, wish)
                files.sync_folder(path.parent)
            except (OSError, RunError) as error:
                raise self._explained(error, wish.size) from error
            undo.pop_all()
        return f"{wish.vmid}/{own}"

    def _check_wish(self, wish: Wish) -> None:
        if wish.format not in self.info.alloc:
            allowed = ", ".join(sorted(self.info.alloc))
            raise PveError(f"storage '{self.id}' can't make images of format '{wish.format}', only: {allowed}")
        if wish.format == "subvol" and wish.size and not self.info.limits_folders:
            raise PveError(f"storage '{self.id}' can't limit the size of folders (subvol): give size 0")
        wish.check_size()
        if wish.name:
            form, is_base = names.parse_image(wish.name)
            if form != wish.format:
                raise PveError(f"illegal name '{wish.name}' - wrong extension for format '{wish.format}'")
            if is_base:
                raise PveError(f"illegal name '{wish.name}' - new volumes can't be base volumes")

    def _reserve(self, wish: Wish) -> tuple[str, Path]:
        """Choose a file name and take it; gives its path as well. The caller holds the storage's lock."""
        folder = self.directory("images") / str(wish.vmid)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise PveError(f"storage '{self.id}': '{folder}' is no folder") from None
        except OSError as error:
            raise self._explained(error, wish.size) from error
        try:
            own = wish.name or next_name(folder, wish.vmid, wish.format)
            path = self.path(f"{wish.vmid}/{own}")
            self._take(path, wish.format)
        except FileExistsError:
            raise Exists(f"disk image '{path}' already exists") from None
        except (OSError, RunError) as error:
            self._drop_empty(folder)
            raise self._explained(error, wish.size) from error
        return own, path

    def _take_back(self, path: Path) -> None:
        """Give up an image that was reserved."""
        with lock.storage_lock(self.id):
            self._unlink(path)

    def _take(self, path: Path, form: str) -> None:
        """Make an empty file or folder there; FileExistsError."""
        if form == "subvol":
            path.mkdir(0o755)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o640))

    def _fill(self, path: Path, wish: Wish) -> None:
        mode = self.definition.options.preallocation
        size = -(-wish.size // 1024) * 1024
        if wish.format == "raw" and mode in ("off", "metadata"):
            os.truncate(path, size)
        elif wish.format != "subvol":
            if wish.format == "vmdk":
                mode = "off"  # qemu-img knows no preallocation for it
            extra = () if mode == "off" else ("-o", f"preallocation={mode}")
            run.run(["qemu-img", "create", "-q", "-f", wish.format, *extra, path, str(size)])

    def _explained(self, error: OSError | RunError, size: int) -> PveError:
        """The error in words that name the storage; what is not about space stays as it is."""
        full = error.errno in _FULL if isinstance(error, OSError) else any(text in str(error) for text in _FULL_TEXT)
        if full:
            free = human_size(self.status().avail)
            return PveError(
                f"storage '{self.id}' is full: no space for a volume of {human_size(size)}, {free} are free"
            )
        if isinstance(error, OSError):
            return PveError(f"storage '{self.id}': {error.strerror}: '{error.filename or self.base}'")
        return error

    def _unlink(self, path: Path) -> None:
        """Remove an image, and the guest's folder with its last one. The caller holds the storage's lock."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self._drop_empty(path.parent)

    def _drop_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            folder.rmdir()

    def free(self, name: str) -> None:
        try:
            self._free(name)
        except OSError as error:
            raise self._explained(error, 0) from error

    def _free(self, name: str) -> None:
        parsed, path = self.parse(name), self.path(name)
        if "+" in parsed.format:
            raise Refused(f"'{self.id}:{name}' is a part of an archive and can't be removed alone")
        if parsed.content == "images" and not os.path.lexists(path):
            with lock.storage_lock(self.id):
                self._drop_empty(path.parent)  # a removal that was killed may have left it
        self._require(name, path)
        if parsed.content == "backup":
            self._free_backup(name, path)
        elif parsed.content == "images":
            with lock.storage_lock(self.id):  # nobody makes a linked clone in between
                self._require(name, path)
                self._check_unused(name, path)
                if parsed.is_base:
                    with contextlib.suppress(OSError):  # Proxmox VE has made it immutable where that can be done
                        files.set_flag(path, files.IMMUTABLE, on=False)
                if parsed.format != "subvol" and path.is_dir() and not path.is_symlink():
                    raise Refused(f"'{path}' is a folder, not a volume")
                self._unlink(path)
        elif path.is_dir() and not path.is_symlink():
            raise Refused(f"'{path}' is a folder, not a volume")
        else:
            files.remove(path)

    def _check_unused(self, name: str, path: Path) -> None:
        if path.is_symlink():
            return  # only the link goes
        if children := self.children(name):
            raise Refused(f"base volume '{self.id}:{name}' is still in use by linked clone '{children[0]}'")
        if user := inuse.user_of(path):
            raise Refused(f"volume '{self.id}:{name}' is in use by {user}")

    def _free_backup(self, name: str, path: Path) -> None:
        if _mark(path).exists():
            raise Refused(f"can't remove protected backup '{self.id}:{name}'")
        files.remove(path)
        archive = names.archive(path.name)
        for beside in filter(None, (archive.log, archive.notes) if archive else (f"{path.name}.notes",)):
            try:
                files.remove(path.with_name(beside))
            except OSError as error:
                log.warn(f"can't remove '{beside}' of backup '{self.id}:{name}': {error.strerror}")

    def resize(self, name: str, size: int) -> None:
        parsed, path = self.parse(name), self.path(name)
        self._require(name, path)
        if parsed.format not in self.info.resize:
            raise Refused(f"can't resize volume '{self.id}:{name}': format '{parsed.format}' does not allow it")
        now = images.inspect(path, parsed.format).size
        if size < now:
            raise Refused(f"can't shrink volume '{self.id}:{name}' from {human_size(now)} to {human_size(size)}")
        if user := inuse.user_of(path):
            raise Refused(f"volume '{self.id}:{name}' is in use by {user}")
        try:
            run.run(["qemu-img", "resize", "-q", "-f", parsed.format, path, str(size)])
        except RunError as error:
            raise self._explained(error, size - now) from error

    # Snapshots (QEMU's own, inside of the image), base volumes and linked clones (images that lie on a base).

    def _idle_image(self, name: str) -> Path:
        """The image of a volume that nobody uses."""
        path = self.path(name)
        self._require(name, path)
        if user := inuse.user_of(path):
            raise Refused(f"volume '{self.id}:{name}' is in use by {user}")
        return path

    def snapshots(self, name: str) -> list[Snapshot]:
        path = self.path(name)
        self._require(name, path)
        told = json.loads(run.run(["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path]).stdout)
        found = [Snapshot(row["name"], row["date-sec"]) for row in told.get("snapshots", ())]
        return sorted(found, key=lambda snapshot: snapshot.ctime)

    def _kept(self, name: str, snapshot: str) -> bool:
        """Whether there is such a snapshot; refuses names that could mean something else to the tools."""
        names.check_snapshot(snapshot)
        return any(found.name == snapshot for found in self.snapshots(name))

    def _change_snapshot(self, name: str, action: str, snapshot: str) -> None:
        if not self._kept(name, snapshot):
            raise NotFound(f"volume '{self.id}:{name}' has no snapshot '{snapshot}'")
        run.run(["qemu-img", "snapshot", "-q", action, snapshot, self._idle_image(name)])

    def snapshot(self, name: str, snapshot: str) -> None:
        with lock.storage_lock(self.id):
            if self._kept(name, snapshot):
                raise Exists(f"volume '{self.id}:{name}' has a snapshot '{snapshot}' already")
            try:
                run.run(["qemu-img", "snapshot", "-q", "-c", snapshot, self._idle_image(name)])
            except RunError as error:
                raise self._explained(error, 0) from error

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        with lock.storage_lock(self.id):
            self._change_snapshot(name, "-d", snapshot)

    def rollback(self, name: str, snapshot: str) -> None:
        with lock.storage_lock(self.id):
            self._change_snapshot(name, "-a", snapshot)

    def make_base(self, name: str) -> str:
        parsed = self.parse(name)
        if parsed.is_base:
            raise Refused(f"volume '{self.id}:{name}' is a base volume already")
        if parsed.base:
            raise Refused(f"volume '{self.id}:{name}' is a linked clone, so it can't be a base")
        with lock.storage_lock(self.id):
            path = self._idle_image(name)
            if parsed.format in self.info.snapshot and (kept := self.snapshots(name)):
                raise Refused(f"volume '{self.id}:{name}' can't become a base: it has the snapshot '{kept[0].name}'")
            base = path.with_name(re.sub(r"^vm-", "base-", path.name))
            if base == path or base.exists():
                raise Exists(f"disk image '{base}' already exists")
            path.chmod(0o440)
            path.rename(base)
            files.sync_folder(base.parent)
        return f"{parsed.vmid}/{base.name}"

    def clone(self, name: str, vmid: int) -> str:
        parsed, base = self.parse(name), self.path(name)
        if not parsed.is_base:
            raise Refused(f"volume '{self.id}:{name}' is not a base volume, so it can't have linked clones")
        with lock.storage_lock(self.id), contextlib.ExitStack() as undo:
            self._require(name, base)
            wish = Wish(vmid, images.inspect(base, parsed.format).size, "qcow2")
            own, path = self._reserve(wish)
            undo.callback(self._unlink, path)
            below = f"../{parsed.vmid}/{base.name}"
            try:
                run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", parsed.format, "-b", below, path])
                files.sync_folder(path.parent)
            except (OSError, RunError) as error:
                raise self._explained(error, wish.size) from error
            undo.pop_all()
        return f"{parsed.vmid}/{base.name}/{vmid}/{own}"

    # Guests from elsewhere.

    def guest(self, name: str) -> Guest:
        from pvetools.storage import ova, ovf

        parsed, path = self.parse(name), self.path(name)
        self._require(name, path)
        if parsed.content == "import" and parsed.format == "ova":
            return ova.guest(path, f"{name}/")
        if parsed.content == "import" and parsed.format == "ovf":
            with files.open_regular(path) as file:
                return ovf.parse(file.read(), ovf.beside(path, "import/"))
        raise Refused(f"volume '{self.id}:{name}' describes no guest: an OVA archive or an OVF descriptor is expected")

    @contextlib.contextmanager
    def importable(self, name: str, folder: Path | None = None) -> Iterator[Source]:
        from pvetools.storage import incoming, ova

        parsed, home = self.parse(name), self.directory("import")
        archive, slash, disk = parsed.name.partition("/")
        if parsed.format in ("ova", "ovf"):
            raise Refused(f"volume '{self.id}:{name}' is no disk; name one of its disks, as import-metadata shows them")
        if not slash:
            yield self.source(name)
            return
        with incoming.part(folder or home) as temporary:
            ova.extract(home / archive, disk, temporary)
            yield Source("file", temporary, parsed.format.removeprefix("ova+"))

    # Attributes.

    def notes(self, name: str) -> str:
        return _noted(self._notes_file(name))

    def set_notes(self, name: str, text: str) -> None:
        beside = self._notes_file(name)
        if text:
            files.write_atomic(beside, text, 0o644)
        else:
            files.remove(beside)

    def _notes_file(self, name: str) -> Path:
        path = self._attributed(name, "notes")
        return path.with_name(f"{path.name}.notes")

    def protect(self, name: str, on: bool) -> None:
        path = self._attributed(name, "protected")
        if on:
            self._check_protected_limit(path)
            files.write_atomic(_mark(path), "", 0o644)
        else:
            files.remove(_mark(path))

    def _check_protected_limit(self, path: Path) -> None:
        most, archive = self.definition.options.max_protected_backups, names.archive(path.name)
        if most is None or most < 0 or _mark(path).exists() or archive is None or archive.vmid is None:
            return
        protected = [volume for volume in self.volumes({"backup"}, archive.vmid) if volume.protected]
        if sum(volume.subtype == archive.kind for volume in protected) >= most:
            raise Refused(f"the number of protected backups per guest is limited to {most} on storage '{self.id}'")

    def _attributed(self, name: str, attribute: str) -> Path:
        content, path = self.parse(name).content, self.path(name)
        if content != "backup":
            raise Refused(f"attribute '{attribute}' is for backups only, not for content type '{content}'")
        self._require(name, path)
        return path


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.protected")


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """State of a file; None for what is none, or was removed just now."""
    try:
        return entry.stat() if entry.is_file() else None
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _used(stat: os.stat_result) -> int:
    return stat.st_blocks * 512


def next_name(folder: Path, vmid: int, form: str) -> str:
    """The next free file name for an image of a guest in its folder."""
    # also by what an interrupted snapshot has left: files that the image lies on, or one that was to take its place
    taken = re.compile(rf"(?:snap-.*-|\.(?=.*\.new$))?(?:vm|base|subvol|basevol)-{vmid}-disk-(\d+)(?:\.|$)", re.ASCII)
    used = {int(match[1]) for entry in _scan(folder) if (match := taken.match(entry.name))}
    number = next(number for number in range(len(used) + 1) if number not in used)
    return f"{'subvol' if form == 'subvol' else 'vm'}-{vmid}-disk-{number}.{form}"


Lister = Callable[[FolderStorage, Path, int | None], Iterator[Volume]]


def _lister(
    content: str, pattern: re.Pattern[str], form: Callable[[re.Match[str]], str], *, of_guests: bool = True
) -> Lister:
    """Volumes that belong to no guest; of some types nobody who looks for those of one guest sees any."""

    def listed(storage: FolderStorage, folder: Path, vmid: int | None) -> Iterator[Volume]:
        for entry in _scan(folder) if of_guests or vmid is None else ():
            match = pattern.fullmatch(entry.name)
            if match and storage.named(f"{content}/{entry.name}") and (stat := _stat(entry)):
                volid = f"{storage.id}:{content}/{entry.name}"
                yield Volume(volid, content, form(match), stat.st_size, _used(stat), ctime=int(stat.st_ctime))

    return listed


def _backups(storage: FolderStorage, folder: Path, vmid: int | None) -> Iterator[Volume]:
    entries = _scan(folder)
    present = {entry.name for entry in entries}
    for entry in entries:
        match, archive = names.BACKUP.fullmatch(entry.name), names.archive(entry.name)
        owners = names.owners_of_backup(entry.name)
        if not match or not storage.named(f"backup/{entry.name}") or vmid not in (None, *owners):
            continue
        if not (stat := _stat(entry)):
            continue
        yield Volume(
            f"{storage.id}:backup/{entry.name}",
            "backup",
            match[1],
            stat.st_size,
            _used(stat),
            vmid=vmid or next(iter(owners), None),
            ctime=archive.ctime if archive and archive.ctime is not None else int(stat.st_ctime),
            subtype=archive.kind if archive else "unknown",
            notes=_first_line(folder / f"{entry.name}.notes") if f"{entry.name}.notes" in present else "",
            protected=f"{entry.name}.protected" in present,
        )


def _first_line(path: Path) -> str:
    with contextlib.suppress(OSError, PveError):  # a list does not fail because of notes
        return _noted(path).partition("\n")[0]
    return ""


def _noted(path: Path) -> str:
    """The text of a file of notes; empty when there is none, or a link to somewhere else."""
    if not os.path.lexists(path) or path.is_symlink():
        return ""
    with files.open_regular(path) as file:
        return file.read().decode("utf-8", "surrogateescape")


_LISTERS: dict[str, Lister] = {
    "backup": _backups,
    "import": _lister("import", names.IMPORT, lambda match: match[1]),
    "iso": _lister("iso", names.ISO, lambda _: "iso", of_guests=False),
    "snippets": _lister("snippets", names.SNIPPET, lambda _: "snippet"),
    "vztmpl": _lister(
        "vztmpl", names.TEMPLATE, lambda match: f"t{match[1].lower()}" if match[1] else "tar", of_guests=False
    ),
}
