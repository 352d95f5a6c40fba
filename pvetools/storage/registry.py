"""Which backend serves which type of storage: one row a type. Types without a row are declared but not served."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from pvetools.system.errors import Refused

if TYPE_CHECKING:
    from pvetools.storage.definition import Definition
    from pvetools.storage.driver import Driver

SERVED = {
    "btrfs": "pvetools.storage.backends.btrfs:Btrfs",
    "dir": "pvetools.storage.backends.dir:Directory",
    "iscsi": "pvetools.storage.backends.iscsi:Iscsi",
    "iscsidirect": "pvetools.storage.backends.iscsidirect:IscsiDirect",
    "lvm": "pvetools.storage.backends.lvm:VolumeGroup",
    "lvmthin": "pvetools.storage.backends.lvmthin:ThinPool",
    "nvmeof": "pvetools.storage.backends.nvmeof:NvmeOf",
    "zfspool": "pvetools.storage.backends.zfspool:ZfsPool",
}


def require(type_: str) -> str:
    """The backend's module and class.

    Raises:
        Refused: no backend serves this type.
    """
    if not serves(type_):
        raise Refused(f"storage type '{type_}' is not served by this version, only: {', '.join(sorted(SERVED))}")
    return SERVED.get(type_) or thirdparty.backend(type_)


def driver(definition: Definition) -> Driver:
    """The backend at work for one storage.

    Raises:
        Refused: no backend serves its type.
    """
    module, _, name = require(definition.type).partition(":")
    return cast("Driver", getattr(importlib.import_module(module), name)(definition))
