"""Values of disk options: new volumes are allocated, imported ones filled, existing ones checked."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pvetools.guest.common.kind import Making
from pvetools.guest.qemu import buses, host
from pvetools.guest.qemu.disks import is_cdrom
from pvetools.storage import volumes
from pvetools.storage.convert import Image, convert, foreign
from pvetools.system import log
from pvetools.system.errors import NotFound, ParamErrors, PveError, Refused, RunError
from pvetools.system.units import GIB, format_size

_NEW = re.compile(r"([a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]):([0-9]+(?:\.[0-9]+)?)")
_BLOCK = 4096  # QEMU can't write around the page cache to images that end within a block
_CLOUD_INIT = re.compile(r"[^:]+:cloudinit")


def whole_blocks(size: int) -> int:
    """Bytes of an image that holds ``size`` bytes."""
    return -(-size // _BLOCK) * _BLOCK


def make_volume(making: Making) -> str:
    """The text to store for a disk option.

    Raises:
        PveError: what is missing or cannot be done, naming the option.
    """
    try:
        return _made(making)
    except (ParamErrors, RunError):
        raise
    except NotFound as error:
        raise NotFound(_named(making.key, error)) from None
    except PveError as error:
        raise PveError(_named(making.key, error)) from None


def _named(key: str, error: PveError) -> str:
    return str(error) if str(error).startswith(f"{key}:") else f"{key}: {error}"


def _made(making: Making) -> str:
    key, drive = making.key, making.value
    if key == "vmstate":
        return str(drive)
    if _CLOUD_INIT.fullmatch(drive.file):
        raise Refused(f"{key}: {drive.file}: cloud-init drives are not supported yet")
    new = _NEW.fullmatch(drive.file)
    if new:
        return _new_volume(making, new[1], float(new[2]))
    if getattr(drive, "import_from", None):
        raise ParamErrors({key: "import-from fills new volumes: give STORAGE:0,import-from=SOURCE"})
    return _existing(key, drive)


def _new_volume(making: Making, storage: str, gib: float) -> str:
    key, drive = making.key, making.value
    if key.startswith("unused"):
        raise ParamErrors({key: f"'{drive.file}' asks for a new volume, but unused ones exist already"})
    if not buses.split(key):
        raise Refused(f"{key}: {drive.file}: allocating this kind of volume is not supported yet")
    if is_cdrom(drive):
        raise ParamErrors({key: f"'{drive.file}' asks for a new volume, but a CD-ROM drive takes an ISO image or none"})
    size = whole_blocks(int(gib * GIB))
    if drive.import_from:
        working = str(making.call.get("import-working-storage") or "")
        volid, size = import_image(making.vmid, drive.import_from, storage, making.undo, size, drive.format_, working)
    elif not size:
        raise ParamErrors({key: f"'{drive.file}': a new disk needs a size in GiB larger than 0"})
    else:
        volid = _allocate(making.vmid, storage, size, drive.format_, making.undo)
    log.emit(f"{key}: successfully created disk '{volid},size={format_size(size)}'")
    return str(drive.replaced(file=volid, size=size, import_from=None, format_=None).format())


def _allocate(vmid: int, storage: str, size: int, form: str | None, undo: ExitStack) -> str:
    volid = volumes.alloc(storage, vmid, size, format=form or "")
    undo.callback(volumes.discard, volid)
    return volid


def import_image(
    vmid: int,
    source: str,
    storage: str,
    undo: ExitStack,
    size: int = 0,
    form: str | None = None,
    working: str = "",
) -> tuple[str, int]:
    """Copy an image into a new volume of at least ``size`` bytes; ``working`` is the storage for what is unpacked.

    Returns:
        The volume's id and size; its freeing is on the undo stack.

    Raises:
        PveError: no such image, no space, no such storage.
    """
    with ExitStack() as opened:
        found = _import_source(source, opened, working)
        size = max(size, whole_blocks(found.size))
        volid = _allocate(vmid, storage, size, form, undo)
        convert(found, volumes.source(volid), label="import")
    return volid, size


def _import_source(source: str, opened: ExitStack, working: str = "") -> Image:
    """The image behind a path or a volume id; what was unpacked for it goes with the stack."""
    if source.startswith("/"):
        return foreign(Path(source))
    content = volumes.parse(source).content
    if content == "import":
        found = opened.enter_context(volumes.importable(source, working))
        if not found.url:
            return foreign(found.path, found.format)
    else:
        found = volumes.source(source)
    if content not in ("import", "images"):
        raise Refused(f"import-from: '{source}' is of content type '{content}', expected images or import")
    return Image(found.image, found.format, volumes.info(source).size, found.options)


def _existing(key: str, drive: Any) -> str:
    """Check what is attached and note its size."""
    if drive.file in ("none", "cdrom"):
        return str(drive.format())
    if drive.file.startswith("/"):
        volid = volumes.volume_id(Path(drive.file))
        if volid is None:
            host.source(key, drive)
            return str(drive.format())
        drive = drive.replaced(file=volid)  # a volume is kept by the name by which it is found everywhere
    if buses.split(key) or key == "cdrom":
        host.source(key, drive)
    size = volumes.info(drive.file).size
    return str((drive.replaced(size=size) if "size" in type(drive).FIELDS else drive).format())
