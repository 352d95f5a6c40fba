"""Making virtual machines and changing their options: what is filled in before the common code takes over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeVar

from pvetools.config import guest as config
from pvetools.guest.common import create as common
from pvetools.guest.common import edit
from pvetools.guest.common.edit import Change
from pvetools.guest.qemu import boot, hypervisor
from pvetools.guest.qemu.build import WINDOWS
from pvetools.guest.qemu.kind import QEMU
from pvetools.network import mac
from pvetools.options.qemu import Boot, QemuOptions, Smbios
from pvetools.system.errors import ParamErrors

Options = TypeVar("Options", bound=QemuOptions)


def random_uuid() -> str:
    """A random UUID."""
    import uuid

    return str(uuid.uuid4())


def completed(options: Options) -> Options:
    """Options with what the user left to us: MAC addresses, ``vmgenid: 1``, ``cdrom`` as ``ide2``.

    Raises:
        ParamErrors: both ``cdrom`` and ``ide2``.
    """
    changes: dict[str, Any] = {}
    if options.net:
        changes["net"] = {
            index: nic if nic.macaddr else nic.replaced(macaddr=mac.generate()) for index, nic in options.net.items()
        }
    if options.vmgenid == "1":
        changes["vmgenid"] = random_uuid()
    if options.cdrom:
        if 2 in options.ide:
            raise ParamErrors({"cdrom": "option 'cdrom' conflicts with 'ide2'"})
        changes |= {"cdrom": None, "ide": {**options.ide, 2: options.cdrom.replaced(media="cdrom")}}
    return options.replaced(**changes) if changes else options


def create(vmid: int, options: QemuOptions) -> None:
    """Make a virtual machine; nothing stays when that fails.

    Raises:
        PveError: the id is in use, a storage is missing or full, options do not fit together.
    """
    config.check_unused(vmid)
    options = completed(options)
    _check_boot(options, options.given)
    common.create(QEMU, vmid, options, defaults=_defaults(options))


def _defaults(options: QemuOptions) -> dict[str, str]:
    """What a new guest gets when the user does not say otherwise."""
    version = hypervisor.version()
    smbios = options.smbios1
    texts = {
        "meta": f"creation-qemu={version},ctime={int(time.time())}",
        "smbios1": Smbios(uuid=random_uuid()).format() if smbios is None else "",
        "vmgenid": random_uuid(),
        "boot": boot.default_order(options.given),
        "machine": _pinned_machine(options, version),
    }
    return {key: text for key, text in texts.items() if text and key not in options.given}


def _pinned_machine(options: QemuOptions, version: str) -> str:
    """Windows takes another machine version for another machine, so the version of the day is kept."""
    if options.ostype not in WINDOWS or options.machine:
        return ""
    return "pc-i440fx-" + ".".join(version.split(".")[:2])


def change(vmid: int, options: QemuOptions, wanted: Change) -> None:
    """Set, delete and revert options of a guest.

    Raises:
        PveError: nothing is changed then.
    """
    options = completed(options)
    if options.boot:
        current = config.load("qemu", vmid)
        there = {**current.current, **current.pending, **options.given}
        _check_boot(options, {key: value for key, value in there.items() if key not in wanted.delete})
    edit.apply(QEMU, vmid, wanted._replace(options=options))


def _check_boot(options: QemuOptions, there: Mapping[str, object]) -> None:
    """Refuse to boot from devices that the guest does not have.

    Raises:
        ParamErrors: naming them.
    """
    order = options.boot.order if isinstance(options.boot, Boot) else None
    absent = [key for key in order or [] if key not in there]
    if absent:
        raise ParamErrors({"boot": f"invalid bootorder: device '{absent[0]}' does not exist"})
