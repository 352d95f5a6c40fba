"""Which guest's configuration names a volume."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pvetools.config import guest as config
from pvetools.storage import definition, mounts, names, registry, volumes
from pvetools.storage.driver import Driver
from pvetools.system import files, log, paths
from pvetools.system.errors import PveError

_SERVED = ("nfs", "cifs", "smb", "ceph", "fuse", "9p")  # file systems of servers
_LABEL = {"qemu": "VM", "lxc": "CT"}


def disk_of(volid: str, *, but: int = 0) -> str:
    """The guest and key that use a volume as a disk, such as ``VM 100 (scsi0)``; empty when none does.

    ``unusedN`` entries do not count. Snapshots and pending changes do, and every name that leads to the volume: paths,
    links, linked clones with and without their base, storages on one folder. ``but``: a guest that does not count.
    """
    volume = _Volume(volid)
    for vmid, (node, kind) in config.cluster_guests().items():
        if vmid == but:
            continue
        text = files.read_text(paths.guest_config(kind, vmid, node)) or ""
        for key, place in config.places(text):
            if volume.is_at(place):
                return f"{_LABEL[kind]} {vmid} ({key})"
    return ""


def free_all(volids: Iterable[str]) -> list[str]:
    """Free volumes that were taken out of a configuration, which is saved already.

    One that cannot be freed, or that is still a disk by another of its names, stays, with a warning.

    Returns:
        Those that stay, and that no guest has as a disk.
    """
    left: list[str] = []
    for volid in sorted(volids):
        try:
            if user := disk_of(volid):
                log.warn(f"could not remove volume '{volid}', it stays on the storage: it is a disk of {user}")
                continue
            volumes.free(volid, missing_ok=True)
        except PveError as error:
            log.warn(f"could not remove volume '{volid}', it stays on the storage: {error}")
            left.append(volid)
    return left


def is_named(volid: str, sections: Iterable[Mapping[str, str]]) -> bool:
    """Whether parts of a configuration name a volume, by whatever of its names; also as unused."""
    volume = _Volume(volid)
    words = (word for section in sections for text in section.values() for word in text.split(","))
    return any(volume.is_at(match[1]) for match in map(config.PLACE.fullmatch, words) if match)


class _Volume:
    """A volume that names are compared with; storages and mounts are looked up once."""

    def __init__(self, volid: str) -> None:
        self.volid, self.own = volid, _own_name(volid)
        self.storages: dict[str, Driver] = {}
        self.others = {*definition.load().ids()}  # damaged ones: what lies there nobody knows
        for storage, found in definition.every()[0].items():
            self.others.discard(storage)
            if registry.serves(found.type):
                self.storages[storage] = registry.driver(found)
        self.served = [mount.point for mount in mounts.every() if mount.kind.startswith(_SERVED)]
        self.place = self._place(*names.split(volid))
        self.real = os.path.realpath(self.place) if self.place else ""
        self.near = {"", self._server(self.place), self._server(self.real)}

    def is_at(self, place: str) -> bool:
        """Whether a path or a volume id means this volume."""
        if place == self.volid:
            return True
        if place.startswith("/"):
            return self._leads_here(place)
        storage, _, name = place.partition(":")
        if storage not in self.storages:
            return storage in self.others and _own_name(place) == self.own
        may_be_link = self.storages[storage].info.files
        return (may_be_link or _own_name(place) == self.own) and self._leads_here(self._place(storage, name))

    def _place(self, storage: str, name: str) -> str:
        """The path of a volume; empty when it has none."""
        try:
            return str(self.storages[storage].path(name))
        except (PveError, KeyError):
            return ""

    def _leads_here(self, path: str) -> bool:
        """Whether a path leads to the volume; mounts of servers, which may hang, are not touched but where it lies."""
        if not path or not self.real or self._server(path) not in self.near:
            return False
        if os.path.realpath(path) == self.real:
            return True
        try:
            return Path(path).samefile(self.real)  # folders can be mounted at several places
        except OSError:
            return False

    def _server(self, path: str) -> str:
        """The mount of a server that a path lies below, or nothing."""
        return max((point for point in self.served if path.startswith(f"{point}/")), key=len, default="")


def _own_name(volid: str) -> str:
    return volid.partition(":")[2].rpartition("/")[2]
