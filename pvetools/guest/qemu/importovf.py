"""Virtual machines from OVF descriptors on this host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pvetools.guest.qemu import configure
from pvetools.options.qemu import QemuOptions
from pvetools.schema.core import NestedErrors
from pvetools.storage import ovf
from pvetools.storage.imported import Guest
from pvetools.system import log
from pvetools.system.errors import NotFound, ParamErrors, Refused


def read(manifest: str) -> Guest:
    """What a descriptor says; its disks lie beside it and keep their names.

    Raises:
        NotFound: no such file. PveError: it is damaged, or a disk is missing.
    """
    path = Path(manifest)
    try:
        return ovf.parse(path.read_bytes(), ovf.beside(path))
    except OSError as error:
        raise NotFound(f"can't read '{manifest}': {error.strerror}") from None


def shown(guest: Guest) -> Mapping[str, object]:
    """The descriptor as data, for a dry run."""
    return {
        "qm": guest.options,
        "disks": [{"disk_address": key, "backing_file": disk.volume, "virtual_size": disk.size}
                  for key, disk in guest.disks.items()],
        "net": guest.nets,
    }  # fmt: skip


def import_ovf(vmid: int, manifest: str, storage: str, form: str = "") -> None:
    """Make the virtual machine that a descriptor describes, with its disks on a storage; cards come without a bridge.

    Raises:
        Refused: a folder with a comma in its path, which separates in options. PveError: as ``read`` and
            ``configure.create``; nothing stays then.
    """
    folder = Path(manifest).absolute().parent
    if "," in str(folder):
        raise Refused(f"can't import from folder '{folder}': the paths of disks may not contain commas")
    guest = read(manifest)
    more = f",format={form}" if form else ""
    disks = {
        key: f"{storage}:0,import-from={folder / disk.volume}{more}" for key, disk in guest.disks.items()
    }  # fmt: skip
    try:
        options = QemuOptions.check({**guest.options, **disks})
    except NestedErrors as error:
        raise ParamErrors(error.errors) from None
    configure.create(vmid, options)
    for key, card in guest.nets.items():
        log.emit(f"{key}: left out; add it with: qm set {vmid} --{key} {card['model']},bridge=BRIDGE")
