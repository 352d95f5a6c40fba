"""Which guest's configuration names a volume."""

from __future__ import annotations

import os
import re

from pvetools.config import guest as config
from pvetools.storage import definition, names, registry
from pvetools.system import files, paths
from pvetools.system.errors import PveError

_LABEL = {"qemu": "VM", "lxc": "CT"}
_LINE = re.compile(r"^(?!unused)(\w+):[ \t]*(\S.*?)\s*$", re.ASCII | re.MULTILINE)
# of a disk: a path, or storage and name of a volume
_PLACE = re.compile(r"\s*(?:[\w-]+=)?(/.*|([a-zA-Z][\w.-]*):(.+))", re.ASCII)


def disk_of(volid: str) -> str:
    """The guest and key that use a volume as a disk, such as ``VM 100 (scsi0)``; empty when none does.

    ``unusedN`` entries do not count. Snapshots and pending changes do, and every name that leads to the volume: paths,
    links, linked clones with and without their base, storages on one folder.
    """
    volume = _Volume(volid)
    for vmid, (node, kind) in config.cluster_guests().items():
        text = files.read_text(paths.guest_config(kind, vmid, node)) or ""
        for key, value in _LINE.findall(text):
            if any(volume.is_meant(word) for word in value.split(",")):
                return f"{_LABEL[kind]} {vmid} ({key})"
    return ""


class _Volume:
    """A volume that names are compared with; storages are looked up once."""

    def __init__(self, volid: str) -> None:
        self.volid, self.own = volid, _own_name(volid)
        found, damaged = definition.every()
        self.storages = {storage: registry.driver(known) for storage, known in found.items()}
        self.damaged = bool(damaged)
        self.real = self._real(*names.split(volid))

    def is_meant(self, word: str) -> bool:
        """Whether a part of a line of a configuration means this volume."""
        match = _PLACE.fullmatch(word)
        if not match:
            return False
        place, storage, name = match.groups()
        if place == self.volid:
            return True
        if storage is None:
            return bool(self.real) and os.path.realpath(place) == self.real
        if storage not in self.storages:  # gone, or what stands of it in storage.cfg is damaged
            return self.damaged and _own_name(place) == self.own and bool(definition.load().get(storage))
        may_be_link = self.storages[storage].info.files
        return (
            (may_be_link or _own_name(place) == self.own) and bool(self.real) and self._real(storage, name) == self.real
        )

    def _real(self, storage: str, name: str) -> str:
        """The path behind a volume and all links; empty when it has none."""
        try:
            return os.path.realpath(self.storages[storage].path(name))
        except (PveError, KeyError):
            return ""


def _own_name(volid: str) -> str:
    return volid.partition(":")[2].rpartition("/")[2]
