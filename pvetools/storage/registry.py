"""Which backend serves which type of storage: one row a type. Types without a row are declared but not served.

Other packages bring types of their own along, see ``options/thirdparty.py``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from pvetools.options import thirdparty
from pvetools.options.storage import TYPES
from pvetools.system.errors import Refused

if TYPE_CHECKING:
    from pvetools.storage.definition import Definition
    from pvetools.storage.driver import Driver

# Version of the interface of backends (``storage/driver.py``), and for how many versions backends go on to fit.
API_VERSION, API_AGE = 1, 0
SERVED = {
    "btrfs": "pvetools.storage.backends.btrfs:Btrfs",
    "cephfs": "pvetools.storage.backends.cephfs:CephFs",
    "cifs": "pvetools.storage.backends.cifs:Cifs",
    "dir": "pvetools.storage.backends.dir:Directory",
    "esxi": "pvetools.storage.backends.esxi:Esxi",
    "iscsi": "pvetools.storage.backends.iscsi:Iscsi",
    "iscsidirect": "pvetools.storage.backends.iscsidirect:IscsiDirect",
    "lvm": "pvetools.storage.backends.lvm:VolumeGroup",
    "lvmthin": "pvetools.storage.backends.lvmthin:ThinPool",
    "nfs": "pvetools.storage.backends.nfs:Nfs",
    "nvmeof": "pvetools.storage.backends.nvmeof:NvmeOf",
    "rbd": "pvetools.storage.backends.rbd:Rbd",
    "zfs": "pvetools.storage.backends.zfs:ZfsOverIscsi",
    "zfspool": "pvetools.storage.backends.zfspool:ZfsPool",
}


def serves(type_: str) -> bool:
    """Whether there is a backend for a type, of ours or of another package."""
    return type_ in SERVED or (type_ not in TYPES and thirdparty.backend(type_) is not None)


def require(type_: str) -> None:
    """There must be a backend for a type.

    Raises:
        Refused: no backend serves it.
    """
    if not serves(type_):
        raise Refused(f"storage type '{type_}' is not served by this version, only: {', '.join(sorted(SERVED))}")


def driver(definition: Definition) -> Driver:
    """The backend at work for one storage.

    Raises:
        Refused: no backend serves its type.
    """
    require(definition.type)
    if definition.type not in SERVED:
        return cast("Driver", thirdparty.backend(definition.type)(definition))
    module, _, name = SERVED[definition.type].partition(":")
    return cast("Driver", getattr(importlib.import_module(module), name)(definition))
