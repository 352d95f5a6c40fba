"""Storages and their volumes as callers use them. Sizes are bytes; a volume id is ``STORAGE:NAME``."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pvetools.config import datacenter
from pvetools.options.storage import BandwidthLimits
from pvetools.storage import access, definition, names, probe, registry
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Confined, Driver, Snapshot, Source, Space, Volume, Wish
from pvetools.storage.imported import Guest, ImportSource
from pvetools.storage.remote import Remote
from pvetools.system import log, paths
from pvetools.system.errors import Forbidden, NotFound, PveError, Refused

GUEST_CONTENT = ("images", "rootdir")


# Storages.


def storages() -> dict[str, Definition]:
    """All defined storages by id, disabled ones and those of other nodes included; damaged ones give a warning."""
    found, damaged = definition.every()
    for sentence in damaged:
        log.warn(sentence)
    return found


def get(storage: str) -> Definition:
    """The definition of one storage.

    Raises:
        NotFound: there is none. ConfigError: it is damaged.
    """
    return definition.get(storage)


def usable(storage: str, content: str = "") -> Driver:
    """The backend of a storage, activated, which may be used for a content type on this node.

    Raises:
        NotFound: no such storage. Refused: disabled, not on this node, without that content type, of a type that is
            not served. PveError: it cannot be activated.
    """
    found = definition.get(storage)
    if not found.enabled:
        raise Refused(f"storage '{storage}' is disabled")
    if not found.on_node(paths.node()):
        raise Refused(f"storage '{storage}' is not available on node '{paths.node()}'")
    if content and content not in found.content:
        allowed = ", ".join(sorted(found.content)) or "nothing"
        raise Refused(f"storage '{storage}' does not support content type '{content}', only: {allowed}")
    driver = registry.driver(found)
    probe.refuse_hanging(found)
    driver.activate()
    return driver


def content_dir(storage: str, content: str) -> Path:
    """Folder of a content type on a storage that may be used for it; it exists.

    Raises:
        As ``usable``; Refused: the storage keeps no files.
    """
    driver = usable(storage, content)
    if not driver.info.files:
        raise Refused(f"storage '{storage}' keeps no files")
    folder = driver.directory(content)
    if not folder.is_dir():
        raise PveError(f"storage '{storage}': directory '{folder}' for content type '{content}' does not exist")
    return folder


@dataclass(frozen=True, slots=True)
class Status:
    """A storage and its space on this node; inactive ones have none, ``reason`` says why.

    ``enabled``: it is not disabled, and meant for this node.
    """

    definition: Definition
    enabled: bool
    space: Space | None = None
    reason: str = ""

    @property
    def active(self) -> bool:
        return self.space is not None


def status(storage: str = "", contents: Collection[str] = (), *, enabled: bool = False) -> list[Status]:
    """Space of all storages, or of one, or of the enabled ones that may hold one of the content types.

    Raises:
        NotFound: no such storage.
    """
    chosen = {storage: get(storage)} if storage else storages()
    rows: list[Status] = []
    for _, found in sorted(chosen.items()):
        on = found.enabled and found.on_node(paths.node())
        holds = found.content or {"none"}
        if (on or not (enabled or contents)) and (not contents or holds & {*contents}):
            rows.append(Status(found, on, reason="" if on else "disabled"))
    answers = probe.ask([row.definition for row in rows if row.enabled], probe.space, probe.STATUS_TIMEOUT)
    return [_answered(row, answers.get(row.definition.id)) for row in rows]


def _answered(row: Status, answer: Space | PveError | None) -> Status:
    if isinstance(answer, PveError):
        return replace(row, reason=str(answer))
    return row if answer is None else replace(row, space=answer)


# Single volumes.


def located(volid: str) -> tuple[Driver, str]:
    """Backend and volume name, without activation."""
    storage, name = names.split(volid)
    return registry.driver(definition.get(storage)), name


def ready(volid: str) -> tuple[Driver, str]:
    """Backend, activated, and volume name; the name is checked first."""
    driver, name = located(volid)
    driver.parse(name)
    return usable(driver.definition.id), name


def parse(volid: str) -> names.VolumeName:
    """What a volume id says about content, owner, format and base.

    Raises:
        PveError: malformed. NotFound: no such storage.
    """
    driver, name = located(volid)
    return driver.parse(name)


def owner(volid: str) -> int | None:
    """Id of the guest that a volume belongs to by its name; None for ISO images and the like.

    Raises:
        As ``parse``.
    """
    return parse(volid).vmid


def path(volid: str) -> Path:
    """Where a volume lies; it need not exist, and its storage need not be active.

    Raises:
        PveError: malformed. NotFound: no such storage.
    """
    driver, name = located(volid)
    return driver.path(name)


def address(volid: str) -> str:
    """What QEMU's tools open: a path, which need not exist, or for volumes on servers the words that lead there.

    Raises:
        As ``path``; of volumes on servers as ``source``.
    """
    found = path(volid)
    return str(found) if found.is_absolute() else source(volid).image


def locate(text: str) -> Path:
    """Path behind a volume id, or an absolute path as it is."""
    return Path(text) if text.startswith("/") else path(text)


def volume_id(file: Path) -> str | None:
    """The volume id of a file on one of the storages that this node may use for it; None for foreign files."""
    for storage, found in storages().items():
        if not registry.serves(found.type) or not found.enabled or not found.on_node(paths.node()):
            continue
        driver = registry.driver(found)
        name = driver.name_of(file) if driver.info.files else None
        if name and driver.parse(name).content in found.content:
            return f"{storage}:{name}"
    return None


def source(volid: str) -> Source:
    """How to reach an existing volume: kind (``file`` or ``folder``), path and format.

    Raises:
        NotFound: no such volume or storage. As ``usable``.
    """
    driver, name = ready(volid)
    return driver.source(name)


def described(volid: str) -> Source:
    """How a volume would be reached; it need not exist, and nothing is activated for it.

    Only where a server alone knows that it is asked, if it answers.

    Raises:
        As ``path``.
    """
    driver, name = located(volid)
    if isinstance(driver, Remote):
        return driver.told(name)
    place = driver.path(name)
    if not place.is_absolute():
        with contextlib.suppress(PveError):
            return source(volid)
    return Source("block" if place.is_relative_to("/dev") else "file", place, driver.parse(name).format)


def mountable(volid: str) -> Source:
    """The same for somebody who mounts the volume: a file, a block device or a folder.

    Raises:
        Refused: only QEMU can reach it. As ``source``.
    """
    driver, name = ready(volid)
    found = driver.mountable(name)
    if found.kind == "network":
        raise Refused(
            f"volume '{volid}' can't be mounted: only QEMU can reach what lies on storage '{driver.definition.id}'"
        )
    return found


def info(volid: str) -> Volume:
    """One volume: virtual size, space used, format, owner, parent, notes (first line), protection.

    Raises:
        NotFound: no such volume or storage. As ``usable``.
    """
    driver, name = ready(volid)
    return driver.volume(name)


def guest(volid: str) -> Guest:
    """What a volume of content type ``import`` says about the guest that it describes.

    Raises:
        NotFound. Refused: it describes none. PveError: it is damaged. As ``usable``.
    """
    driver, name = ready(volid)
    if not isinstance(driver, ImportSource):
        raise Refused(f"storage '{driver.definition.id}' holds no guests to import")
    return driver.guest(name)


@contextlib.contextmanager
def importable(volid: str, working: str = "") -> Iterator[Source]:
    """A disk of content type ``import`` in the reach of QEMU's tools, as long as the block lasts.

    Args:
        volid: the disk.
        working: storage of files for what has to be unpacked; default: the disk's own.

    Raises:
        NotFound. Refused: it is no disk. PveError: it can't be unpacked or fetched. As ``usable``.
    """
    driver, name = ready(volid)
    if not isinstance(driver, ImportSource):
        raise Refused(f"storage '{driver.definition.id}' holds no disks to import")
    with driver.importable(name, content_dir(working, "images") if working else None) as found:
        yield found


def exists(volid: str) -> bool:
    """Whether a volume is there.

    Raises:
        As ``usable``.
    """
    driver, name = ready(volid)
    try:
        driver.source(name)
    except NotFound:
        return False
    return True


def list_volumes(storage: str, contents: Collection[str] = (), vmid: int | None = None) -> list[Volume]:
    """Volumes of a storage, sorted by volume id without regard to case.

    Args:
        storage: its id.
        contents: content types; default: all that the storage may hold.
        vmid: of images and backups, only those of this guest.

    Raises:
        As ``usable``.
    """
    driver = usable(storage)
    wanted = set(contents) & driver.definition.content if contents else driver.definition.content
    if driver.info.foreign and not contents:
        wanted = wanted or {"images"}  # content none: others build on these volumes, who have to see them
    return sorted(driver.volumes(wanted, vmid), key=lambda volume: (volume.volid.lower(), volume.volid))


def owned_by(vmid: int) -> list[str]:
    """Volume ids of all images and folders of a guest on this node's enabled storages, sorted.

    Storages that cannot be read give a warning.
    """
    active: list[Definition] = []
    for row in status(contents=GUEST_CONTENT):
        if row.active:
            active.append(row.definition)
        else:
            log.warn(f"storage '{row.definition.id}' is skipped: {row.reason}")

    def owned(driver: Driver) -> list[str]:
        return [volume.volid for volume in driver.volumes(GUEST_CONTENT, vmid)]

    found: list[str] = []
    for storage, answer in probe.ask(active, owned, probe.LIST_TIMEOUT).items():
        if isinstance(answer, PveError):
            log.warn(f"storage '{storage}' is skipped: {answer}")
        else:
            found += answer
    return sorted(found)


def default_format(storage: str) -> str:
    """Image format of a storage when nobody asks for one.

    Raises:
        NotFound: no such storage.
    """
    return definition.get(storage).default_format


def alloc(storage: str, vmid: int, size: int, *, format: str = "", name: str = "", content: str = "images") -> str:
    """Make a volume; nothing is left behind when that fails.

    Args:
        storage: id of the storage.
        vmid: guest that will own it.
        size: bytes, rounded up to whole KiB; 0 for folders (format ``subvol``).
        format: raw, qcow2, vmdk or subvol; default: that of the name, else of the storage.
        name: file name; default: the next free ``vm-ID-disk-N``.
        content: what it is for: ``images`` or ``rootdir``.

    Returns:
        Its volume id.

    Raises:
        As ``usable``; Exists: the name is used. PveError: the storage is full, the format is not possible.
    """
    driver = usable(storage, content)
    extension = name.rpartition(".")[2] if "." in name else ""
    form = format or (extension if extension in names.IMAGE_FORMATS else default_format(storage))
    return f"{storage}:{driver.alloc(Wish(vmid, size, form, name))}"


def free(volid: str, *, missing_ok: bool = False) -> None:
    """Remove a volume; archives go with their log and notes.

    Raises:
        NotFound: no such volume. Refused: it is protected, in use, or others lie on it. As ``usable``.
    """
    driver, name = ready(volid)
    for other in definition.every()[0].values():
        if other.options.base == volid:
            raise Refused(f"volume '{volid}' is in use: the volume group of storage '{other.id}' lies on it")
    try:
        driver.free(name)
    except NotFound:
        if not missing_ok:
            raise


def discard(volid: str) -> None:
    """Remove a volume that was made in vain, while other things are undone; one that stays is told in a warning."""
    try:
        free(volid, missing_ok=True)
    except PveError as error:
        log.warn(f"could not remove volume '{volid}', it stays on the storage: {error}")


def resize(volid: str, size: int) -> None:
    """Grow a volume to ``size`` bytes; file systems inside, and telling a running guest, are the caller's.

    Raises:
        NotFound. Refused: it would shrink, is in use, or has a format without that. PveError: the storage is full.
    """
    driver, name = ready(volid)
    driver.resize(name, size)


def make_room(volid: str, size: int) -> None:
    """Before QEMU itself grows an image that it uses to ``size`` bytes: see that the image has the space.

    Raises:
        NotFound. PveError: the storage is full.
    """
    driver, name = ready(volid)
    if isinstance(driver, Confined):
        driver.make_room(name, size)


# Snapshots, base volumes and linked clones.


def clones_of(volid: str) -> list[str]:
    """The linked clones of a base volume, as far as the list of its storage tells; of other volumes there are none.

    Raises:
        As ``list_volumes``.
    """
    parsed = parse(volid)
    if not parsed.is_base:
        return []
    storage, own = names.split(volid)[0], parsed.name
    found = [row for row in list_volumes(storage, GUEST_CONTENT) if row.volid != volid]
    return [
        row.volid
        for row in found
        if own in (*names.split(row.volid)[1].split("/")[:-1], *row.parent.replace("@", "/").split("/"))
    ]


def can(volid: str, what: str) -> bool:
    """Whether a volume's storage offers ``snapshot``, ``base``, ``resize`` or ``online_resize`` for its format.

    Raises:
        As ``parse``.
    """
    driver, name = located(volid)
    return driver.parse(name).format in getattr(driver.info, what)


def _offering(volid: str, what: str, words: str) -> tuple[Driver, str]:
    driver, name = ready(volid)
    form = driver.parse(name).format
    if form not in getattr(driver.info, what):
        raise Refused(f"storage '{driver.definition.id}' has no {words} of volumes of format '{form}' ('{volid}')")
    return driver, name


def snapshots(volid: str) -> list[Snapshot]:
    """Snapshots of a volume, oldest first.

    Raises:
        NotFound. Refused: the storage has none for this format. As ``usable``.
    """
    driver, name = _offering(volid, "snapshot", "snapshots")
    return driver.snapshots(name)


def snapshot(volid: str, name: str) -> None:
    """Keep the state that a volume has now; that a running guest has written all of it is the caller's.

    Raises:
        NotFound. Exists: the name is used. As ``snapshots``.
    """
    driver, volume = _offering(volid, "snapshot", "snapshots")
    driver.snapshot(volume, name)


def delete_snapshot(volid: str, name: str) -> None:
    """Forget a snapshot; the volume and the other snapshots stay as they are.

    Raises:
        NotFound: no such volume or snapshot. As ``snapshots``.
    """
    driver, volume = _offering(volid, "snapshot", "snapshots")
    driver.delete_snapshot(volume, name)


def rollback(volid: str, name: str) -> None:
    """Give a volume that nobody uses the state of a snapshot; the snapshot stays.

    Raises:
        NotFound: no such volume or snapshot. Refused: in use, or newer snapshots are in the way. As ``snapshots``.
    """
    driver, volume = _offering(volid, "snapshot", "snapshots")
    driver.rollback(volume, name)


def make_base(volid: str) -> str:
    """Make a volume the base of linked clones; nobody may write to it from now on. Gives its new volume id.

    Raises:
        NotFound. Refused: in use, a base already, or not possible there. As ``usable``.
    """
    driver, name = _offering(volid, "base", "base volumes")
    return f"{driver.definition.id}:{driver.make_base(name)}"


def clone(volid: str, vmid: int) -> str:
    """Make a linked clone of a base volume for a guest; gives its volume id.

    Raises:
        NotFound. Refused: not a base volume. As ``usable``.
    """
    driver, name = _offering(volid, "base", "linked clones")
    return f"{driver.definition.id}:{driver.clone(name, vmid)}"


# Attributes.


def notes(volid: str) -> str:
    """All notes of a backup.

    Raises:
        NotFound. Refused: not a backup.
    """
    driver, name = ready(volid)
    return driver.notes(name)


def set_notes(volid: str, text: str) -> None:
    """Replace the notes of a backup; empty ones are removed.

    Raises:
        NotFound. Refused: not a backup.
    """
    driver, name = ready(volid)
    driver.set_notes(name, text)


def protect(volid: str, on: bool) -> None:
    """Guard a backup against removal, or lift that.

    Raises:
        NotFound. Refused: not a backup, or too many are protected.
    """
    driver, name = ready(volid)
    driver.protect(name, on)


def bwlimit(
    operation: str,
    used: Collection[str | None],
    override: float | None = None,
    privileges: access.Privileges = access.ROOT,
) -> int:
    """Limit in KiB per second for an operation (clone, migration, move, restore); 0 is unlimited.

    The lowest limit of the storages that take part counts, else that of the datacenter; a user who may change the
    limits may ask for another one, others only for a lower one.

    Raises:
        NotFound: no such storage. PveError: ``bwlimit`` of ``datacenter.cfg`` is malformed.
    """
    storages = {storage: _limits(definition.get(storage).options.bwlimit) for storage in used if storage}
    return access.bandwidth(operation, storages, _general_limits(), override, privileges)


def _limits(given: BandwidthLimits | None) -> access.Limits:
    return access.Limits(given.given if given else {})


def _general_limits() -> access.Limits:
    text = datacenter.option("bwlimit")
    try:
        return _limits(BandwidthLimits.parse(text) if text else None)
    except ValueError as error:
        raise PveError(f"bwlimit in datacenter.cfg: {error}") from None


def check_access(privileges: access.Privileges, volid: str, vmid: int | None = None, content: str = "") -> None:
    """Refuse a volume to a user who may not use it for a guest, or as a content type; paths are for root.

    Raises:
        Forbidden. Refused: another content type. As ``parse``.
    """
    if volid.startswith("/"):
        if not privileges.everything:
            raise Forbidden(f"only root can use the path '{volid}'")
        return
    access.check_volume(privileges, names.split(volid)[0], parse(volid), vmid, content)
