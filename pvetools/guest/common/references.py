"""Which guest's configuration names a volume."""

from __future__ import annotations

import os
import re

from pvetools.config import guest as config
from pvetools.storage import definition, mounts, names, registry
from pvetools.system import files, paths
from pvetools.system.errors import PveError

_SERVED = ("nfs", "cifs", "smb", "ceph", "fuse", "9p")  # file systems of servers
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
    """A volume that names are compared with; storages and mounts are looked up once."""

    def __init__(self, volid: str) -> None:
        self.volid, self.own = volid, _own_name(volid)
        found, damaged = definition.every()
        self.storages = {storage: registry.driver(known) for storage, known in found.items()}
        self.damaged = bool(damaged)
        self.served = [mount.point for mount in mounts.every() if mount.kind.startswith(_SERVED)]
        self.place = self._place(*names.split(volid))
        self.real = os.path.realpath(self.place) if self.place else ""

    def is_meant(self, word: str) -> bool:
        """Whether a part of a line of a configuration means this volume."""
        match = _PLACE.fullmatch(word)
        if not match:
            return False
        text, storage, name = match.groups()
        if text == self.volid:
            return True
        if storage is None:
            return self._is_at(text)
        if storage not in self.storages:  # gone, or what stands of it in storage.cfg is damaged
            return self.damaged and _own_name(text) == self.own and bool(definition.load().get(storage))
        may_be_link = self.storages[storage].info.files
        return (may_be_link or _own_name(text) == self.own) and self._is_at(self._place(storage, name))

    def _place(self, storage: str, name: str) -> str:
        """The path of a volume; empty when it has none."""
        try:
            return str(self.storages[storage].path(name))
        except (PveError, KeyError):
            return ""

    def _is_at(self, path: str) -> bool:
        """Whether a path leads to the volume; mounts of servers, which may hang, are not touched but where it lies."""
        if not path or not self.real or self._server(path) not in ("", self._server(self.place)):
            return False
        return os.path.realpath(path) == self.real

    def _server(self, path: str) -> str:
        """The mount of a server that a path lies below, or nothing."""
        return max((point for point in self.served if path.startswith(f"{point}/")), key=len, default="")


def _own_name(volid: str) -> str:
    return volid.partition(":")[2].rpartition("/")[2]
