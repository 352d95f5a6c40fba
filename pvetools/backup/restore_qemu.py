"""Restore of a virtual machine from a VMA archive.

The disks are written into new volumes first. An existing machine that is to be replaced keeps its own until the new
data are complete and checked, as long as the storages have room for both.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pvetools.backup import extract, signals, vma, vmconf
from pvetools.backup.vma_format import Device
from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig
from pvetools.guest.common import edit, rescan
from pvetools.guest.common.kind import used_volumes
from pvetools.guest.qemu.kind import QEMU
from pvetools.network import mac
from pvetools.storage import inuse, volumes
from pvetools.system import compress, files, lock, log, nbd, paths, task
from pvetools.system.errors import Exists, NotFound, ParamErrors, PveError, Refused
from pvetools.system.streams import FileTarget, Target

STDIN = "-"
FALLBACK_STORAGE = "local"
CLOUDINIT_SIZE = 4 << 20


class Request(NamedTuple):
    """What is to be restored.

    ``bwlimit`` in KiB a second (None: the storages' limits); ``overrides`` are texts of options that replace those of
    the archive.
    """

    archive: str
    vmid: int
    storage: str = ""
    force: bool = False
    unique: bool = False
    start: bool = False
    bwlimit: int | None = None
    overrides: Mapping[str, str] = {}


class Slot(NamedTuple):
    """A device of the archive and what it becomes."""

    key: str
    device: str
    size: int
    storage: str
    format: str


def restore(request: Request) -> None:
    """Restore a virtual machine.

    Raises:
        Exists: the id is in use and not to be replaced. Refused, Locked: it cannot be replaced now.
        PveError: the archive is foreign or damaged, a storage cannot take the disks; nothing was changed then.
    """
    _check_overrides(request.overrides)
    replaced = _check_target(request)
    with _stream(request.archive) as fd:
        reader = vma.Reader(fd)
        if vmconf.NAME not in reader.configs:
            raise NotFound(f"'{request.archive}' holds no configuration '{vmconf.NAME}': not a guest's backup")
        text = reader.configs[vmconf.NAME].decode("utf-8", "surrogateescape")
        slots = plan(text, reader.devices, request.storage)
        _Restore(request, reader, text, slots, replaced).run()
    _afterwards(request)


@contextlib.contextmanager
def _stream(archive: str) -> Iterator[int]:
    """The archive's uncompressed bytes."""
    if archive == STDIN:
        log.emit("restore vma archive from standard input")
        yield 0
        return
    path = extract.locate(archive)
    info = extract.checked_info(path, "qemu")
    log.emit(f"restore vma archive '{path}'")
    with compress.reading(path, info.compression) as fd:
        yield fd


def _check_overrides(overrides: Mapping[str, str]) -> None:
    disks = [key for key in overrides if QEMU.is_volume_key(key)]
    if disks:
        raise ParamErrors({key: "disks come from the archive and cannot be given" for key in disks})


def _check_target(request: Request) -> bool:
    """Whether an existing machine is replaced.

    Raises:
        Exists, Refused, Locked: it must not be.
    """
    vmid = request.vmid
    kind = config.kind_of(vmid)
    if kind is None:
        config.check_unused(vmid)
        return False
    if kind != "qemu":
        raise Exists(f"unable to restore VM {vmid}: guest {vmid} is a container")
    if not request.force:
        raise Exists(f"unable to restore VM {vmid} - VM {vmid} already exists; replace it with --force")
    current = config.load("qemu", vmid)
    config.check_lock(current)
    _require_stopped(vmid)
    if config.is_on(current.current, "protection"):
        raise Refused(f"unable to restore VM {vmid} - protection mode enabled")
    return True


def _require_stopped(vmid: int) -> None:
    if QEMU.is_running(vmid):
        raise Refused(f"unable to restore VM {vmid} - VM is running; stop it with: qm stop {vmid}")


def plan(text: str, devices: Sequence[Device], storage: str) -> list[Slot]:
    """Find a place for every device of the archive.

    Raises:
        PveError: a device without a disk or a disk without a device; a storage that cannot take it.
    """
    sizes = {device.name: device.size for device in devices}
    slots: list[Slot] = []
    for line in vmconf.maps(text):
        if line.device not in sizes:
            raise PveError(f"archive does not contain data for drive '{line.key}' (device '{line.device}')")
        place = storage or line.storage or FALLBACK_STORAGE
        slots.append(Slot(line.key, line.device, sizes.pop(line.device), place, _format(place, line.format)))
    if sizes:
        raise PveError(f"the archive's configuration does not say which disk is device '{next(iter(sizes))}'")
    return slots


def _format(storage: str, wanted: str) -> str:
    driver = volumes.usable(storage, "images")
    wanted = wanted or "raw"
    return wanted if wanted in driver.info.alloc else volumes.default_format(storage)


class _Restore:
    """One restore under way."""

    def __init__(self, request: Request, reader: vma.Reader, text: str, slots: Sequence[Slot], replaced: bool) -> None:
        self.request, self.reader, self.text, self.slots, self.replaced = request, reader, text, slots, replaced
        self.made: dict[str, str] = {}

    def run(self) -> None:
        """Write the disks, then the configuration."""
        vmid = self.request.vmid
        with signals.undo_stack() as undo:
            if self.replaced:
                with task.uninterrupted():
                    config.set_lock("qemu", vmid, "create")
                    undo.callback(config.clear_lock, "qemu", vmid, "create")
                _require_stopped(vmid)  # it may have been starting when it was looked at first
                if self._needs_room():
                    log.warn("no room for the old and the new disks at the same time: the old ones are removed first")
                    self._free_old()
            else:
                with lock.guest_lock(vmid), task.uninterrupted():
                    config.create("qemu", vmid, {"lock": "create", "memory": "128"})
                    undo.callback(self._forget_new)
            self._allocate(undo)
            with contextlib.ExitStack() as stack:
                targets: dict[str, Target | None] = {slot.device: self._open(slot, stack) for slot in self.slots}
                limit = volumes.bwlimit("restore", {slot.storage for slot in self.slots}, self.request.bwlimit)
                self.reader.copy(targets, limit=limit * 1024, progress=Progress(self.reader.devices))
            with signals.Shield().up():  # from here on there is no way back, only forward
                old = self._take_over()
                undo.pop_all()
                edit.free_replaced(QEMU, vmid, old)

    def _forget_new(self) -> None:
        with lock.guest_lock(self.request.vmid):
            config.remove("qemu", self.request.vmid)

    # -- disks -----------------------------------------------------------------------------------------------------

    def _needs_room(self) -> bool:
        """Whether the new disks, even if they have no holes, fit only where the old ones were."""
        needed: dict[str, int] = {}
        for slot in self.slots:
            needed[slot.storage] = needed.get(slot.storage, 0) + slot.size
        current = config.load("qemu", self.request.vmid)
        return gives_room(needed, _to_free(current, {slot.key for slot in self.slots}))

    def _free_old(self) -> None:
        """Remove what will be replaced before there is a replacement."""
        vmid = self.request.vmid
        with lock.guest_lock(vmid):
            current = config.load("qemu", vmid)
            old = _to_free(current, {slot.key for slot in self.slots})
            for key in {slot.key for slot in self.slots}:
                current.current.pop(key, None)
                current.pending.pop(key, None)
            current.snapshots.clear()
            current.current.pop("parent", None)
            config.save(current)
        edit.free_replaced(QEMU, vmid, old)

    def _allocate(self, undo: contextlib.ExitStack) -> None:
        vmid = self.request.vmid
        for slot in self.slots:
            volid = volumes.alloc(slot.storage, vmid, slot.size, format=slot.format)
            undo.callback(volumes.discard, volid)
            log.emit(f"new volume ID is '{volid}'")
            self.made[slot.key] = volid
        for key in vmconf.cloudinit_keys(self.text):
            self.made[key] = self._cloudinit(self.request.storage or _storage_of(self.text, key), undo)

    def _cloudinit(self, storage: str, undo: contextlib.ExitStack) -> str:
        """The drive for what cloud-init gets, which is generated: that of the replaced machine can stay."""
        vmid, form = self.request.vmid, _format(storage, "qcow2")
        extension = f".{form}" if form != "raw" or volumes.usable(storage).info.files else ""
        name = f"vm-{vmid}-cloudinit{extension}"
        for found in volumes.list_volumes(storage, ("images",), vmid):
            if volumes.parse(found.volid).name == name:
                return found.volid
        volid = volumes.alloc(storage, vmid, CLOUDINIT_SIZE, format=form, name=name)
        undo.callback(volumes.discard, volid)
        return volid

    def _open(self, slot: Slot, stack: contextlib.ExitStack) -> Target:
        """The new volume, to be written."""
        found = volumes.source(self.made[slot.key])
        log.emit(f"map '{slot.device}' to '{found.path}' (write zeros = {0 if found.blank else 1})")
        if found.format != "raw" or found.kind == "network":
            place = found.url or found.path
            image = nbd.image(place, found.format, read_only=False, known_zero=found.blank, options=found.options)
            return stack.enter_context(image)
        fd = os.open(found.path, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        stack.enter_context(inuse.filling(found.path))
        return FileTarget(fd, name=str(found.path), known_zero=found.blank)

    # -- configuration ---------------------------------------------------------------------------------------------

    def _take_over(self) -> set[str]:
        """Write the restored configuration; gives the volumes of the replaced machine that are to be freed."""
        vmid = self.request.vmid
        fresh = self._configuration()
        old: set[str] = set()
        with lock.guest_lock(vmid):
            current = config.load("qemu", vmid)
            if self.replaced:
                old = _to_free(current, set(self.made)) - set(self.made.values())
                for volid in sorted(_owned(vmid, current) - old - used_volumes(QEMU, [fresh.current])):
                    edit.add_unused(fresh.current, volid)
            current.current, current.pending = fresh.current, fresh.pending
            current.snapshots, current.special, current.unknown = {}, {}, {}
            current.problems = []
            firewall = self.reader.configs.get(vmconf.FIREWALL_NAME)
            if firewall is not None:
                paths.firewall_config(vmid).parent.mkdir(parents=True, exist_ok=True)
                files.write_atomic(paths.firewall_config(vmid), firewall)
            config.save(current)  # last: with it there is no way back
        return old

    def _configuration(self) -> GuestConfig:
        """The archive's configuration as this machine's."""
        how = vmconf.Rewrite(self.made, self.request.unique, mac.generate)
        fresh = config.parse("qemu", self.request.vmid, vmconf.rewritten(self.text, how))
        for warning in config.verify(fresh, strict=False):
            log.warn(warning)
        fresh.snapshots.clear()
        fresh.pending.clear()
        fresh.current.update(self.request.overrides)
        if config.is_on(fresh.current, "template"):
            log.warn("the backup is that of a template; it is restored as an ordinary virtual machine")
        fresh.current.pop("template", None)
        return fresh


def _storage_of(text: str, key: str) -> str:
    """Storage of the cloud-init drive at a key, in the archive's configuration."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip().removeprefix("file=").partition(":")[0]
    return FALLBACK_STORAGE


def _owned(vmid: int, current: GuestConfig) -> set[str]:
    """Volumes that belong to the machine, as far as that is known, and that its configuration names."""
    named = used_volumes(QEMU, (current.current, current.pending, *current.snapshots.values()))
    return {volid for volid in named if edit.owns(vmid, volid) is not False}


def _to_free(current: GuestConfig, keys: set[str]) -> set[str]:
    """Volumes of the disks that are replaced, and RAM states."""
    found = QEMU.volumes(current.current)
    old = {volid for key, volid in found.items() if key in keys or key == "vmstate"}
    states = {part["vmstate"] for part in current.snapshots.values() if "vmstate" in part}
    return {volid for volid in old | states if edit.owns(current.vmid, volid)}


def gives_room(needed: Mapping[str, float], old: Iterable[str]) -> bool:
    """Whether storages have the space that is needed only when some volumes are gone. They stay where that is no help.

    Args:
        needed: bytes by storage.
        old: volume ids.
    """
    freed: dict[str, int] = {}
    for volid in old:
        with contextlib.suppress(PveError):
            found = volumes.info(volid)
            storage = volid.partition(":")[0]
            freed[storage] = freed.get(storage, 0) + (found.used or found.size)
    short = False
    for storage, size in needed.items():
        space = volumes.status(storage)[0].space
        avail = space.avail if space else 0
        if avail + freed.get(storage, 0) < size:
            return False
        short = short or avail < size
    return short


class Progress:
    """One line for each percent, in the words that ``vma extract`` uses."""

    def __init__(self, devices: Sequence[Device], clock: Callable[[], float] = time.monotonic) -> None:
        self._total = sum(device.size for device in devices)
        self._done: dict[str, tuple[int, int]] = {}
        self._percent = 0
        self._clock, self._start = clock, clock()

    def __call__(self, name: str, done: int, zero: int) -> None:
        """A device has come to ``done`` bytes, ``zero`` of which are zeros."""
        self._done[name] = (done, zero)
        whole = sum(count for count, _ in self._done.values())
        percent = whole * 100 // self._total
        log.progress("restore", whole, self._total)
        if percent == self._percent:
            return
        self._percent = percent
        log.emit(f"progress {percent}% (read {whole} bytes, duration {int(self._clock() - self._start)} sec)")
        if whole == self._total:
            sparse = sum(count for _, count in self._done.values())
            share = sparse * 100 / whole
            log.emit(f"total bytes read {whole}, sparse bytes {sparse} ({share:.3g}%)")


def _afterwards(request: Request) -> None:
    rescan.rescan(QEMU, [request.vmid])
    if request.start:
        from pvetools.guest.qemu import lifecycle

        lifecycle.start(request.vmid)


def refuse_without_effect(*, pool: str | None = None, ha_managed: bool = False, live_restore: bool = False) -> None:
    """Refuse options of restore that this version cannot serve.

    Raises:
        Refused: naming the option.
    """
    if pool:
        raise Refused(f"option 'pool': there are no pools yet (pool '{pool}')")
    if ha_managed:
        raise Refused("option 'ha-managed': high availability is not available")
    if live_restore:
        raise Refused("option 'live-restore': only backups on a Proxmox Backup Server could be restored live")
