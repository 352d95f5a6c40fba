"""Disks of existing virtual machines: grow, import, detach, find."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig
from pvetools.guest.common import edit
from pvetools.guest.common import rescan as common
from pvetools.guest.common.edit import Change
from pvetools.guest.qemu import attach, buses, hypervisor
from pvetools.guest.qemu.kind import QEMU
from pvetools.guest.qemu.texts import volume_in, with_size
from pvetools.options.qemu import QemuOptions
from pvetools.schema.core import NestedErrors
from pvetools.storage import volumes
from pvetools.system import lock, log
from pvetools.system.errors import NotFound, ParamErrors, Refused
from pvetools.system.units import format_size, parse_size


class Resize(NamedTuple):
    """What a resize asks for: the disk, and its new size or, with ``+``, what is added."""

    disk: str
    size: str
    digest: str = ""
    skip_lock: bool = False


def resize(vmid: int, wanted: Resize) -> None:
    """Grow a disk, also of a running guest.

    Raises:
        ParamErrors: no such disk, or one that cannot be resized. Refused: it would shrink. Locked, DigestMismatch.
    """
    with lock.guest_lock(vmid):
        current = config.load("qemu", vmid)
        config.check_digest(current, wanted.digest)
        if not wanted.skip_lock:
            config.check_lock(current)
        volid = _resizable(current, wanted.disk)
        before = volumes.info(volid).size
        after = _new_size(before, wanted.size)
        if after < before:
            raise Refused(
                f"{wanted.disk}: shrinking disks is not supported ({format_size(before)} to {format_size(after)})"
            )
        if after > before:
            after = _grow(vmid, wanted.disk, volid, after)
        current.current[wanted.disk] = with_size(current.current[wanted.disk], after)
        config.save(current)


def _grow(vmid: int, disk: str, volid: str, size: int) -> int:
    """Grow a volume, by QEMU where the storage cannot do that while it is used; gives its size afterwards."""
    running = hypervisor.running_pid(vmid)
    if not running or volumes.can(volid, "online_resize"):
        volumes.resize(volid, size)
        size = volumes.info(volid).size  # some storages round up
    elif not volumes.can(volid, "resize"):
        raise Refused(f"{disk}: volume '{volid}' can't be resized on its storage")
    else:
        volumes.make_room(volid, size)
    if running:
        hypervisor.block_resize(vmid, buses.target(disk), size)
    return size


def _new_size(before: int, text: str) -> int:
    """Bytes after a resize."""
    size = parse_size(text.removeprefix("+")) + (before if text.startswith("+") else 0)
    return attach.whole_blocks(size)


def _resizable(current: GuestConfig, disk: str) -> str:
    text = current.current.get(disk)
    if text is None:
        raise ParamErrors({"disk": f"disk '{disk}' does not exist"})
    volid = QEMU.volumes({disk: text}).get(disk)
    if volid is None or not buses.split(disk):
        raise ParamErrors({"disk": f"'{disk}' ({volume_in(text)}) is not a volume that can be resized"})
    return volid


class Import(NamedTuple):
    """What an import asks for: an image, a storage, a format (empty: the storage's), a disk to attach it as."""

    source: str
    storage: str
    format: str = ""
    target: str = ""


def import_disk(vmid: int, wanted: Import) -> str:
    """Copy an image into a new volume of the guest, attached as ``target`` or kept as ``unusedN``.

    Returns:
        The option under which it stands now.

    Raises:
        PveError: nothing is kept then.
    """
    config.check_lock(config.load("qemu", vmid))
    log.emit(f"importing disk '{wanted.source}' to VM {vmid} ...")
    source = _absolute(wanted.source)
    if wanted.target and not wanted.target.startswith("unused"):
        _import_attached(vmid, wanted._replace(source=source))
        return wanted.target
    with lock.guest_lock(vmid), ExitStack() as undo:
        current = config.load("qemu", vmid)
        config.check_lock(current)
        if wanted.target and wanted.target in current.current:
            raise ParamErrors({"target-disk": f"'{wanted.target}' is in use"})
        volid, _ = attach.import_image(vmid, source, wanted.storage, undo, form=wanted.format or None)
        key = wanted.target or edit.add_unused(current.current, volid)
        current.current[key] = volid
        config.save(current)
        undo.pop_all()
    log.emit(f"{key}: successfully imported disk '{volid}'")
    return key


def _absolute(source: str) -> str:
    """A source as path or volume id; relative paths are the caller's."""
    from pathlib import Path

    if source.startswith("/") or (":" in source and not Path(source).exists()):
        return source
    path = Path(source).absolute()
    if not path.exists():
        raise NotFound(f"no such image: '{source}'")
    return str(path)


def _import_attached(vmid: int, wanted: Import) -> None:
    if not buses.split(wanted.target):
        raise Refused(f"target-disk: importing as {wanted.target} is not supported yet")
    text = f"{wanted.storage}:0,import-from={wanted.source}" + (f",format={wanted.format}" if wanted.format else "")
    try:
        options = QemuOptions.check({wanted.target: text})
    except NestedErrors as error:
        raise ParamErrors(error.errors) from None
    edit.apply(QEMU, vmid, Change(options=options))


def unlink(vmid: int, keys: list[str], *, force: bool = False) -> None:
    """Detach disks; their volumes become unused, or are removed with ``force`` or when they are unused already.

    Raises:
        ParamErrors: something that is not a disk.
    """
    wrong = [key for key in keys if not QEMU.is_volume_key(key)]
    if wrong:
        raise ParamErrors({"idlist": f"'{', '.join(wrong)}': not a disk"})
    edit.apply(QEMU, vmid, Change(delete=keys, force=force))


def rescan(vmid: int | None, *, dry_run: bool = False) -> None:
    """Bring sizes and unused volumes of one guest, or of all, in line with the storages."""
    vmids = [vmid] if vmid is not None else [found for found, kind in config.all_guests().items() if kind == "qemu"]
    common.rescan(QEMU, vmids, dry_run=dry_run)
