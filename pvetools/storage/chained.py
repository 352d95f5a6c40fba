"""Storages in directories that can keep snapshots as files of their own (option ``snapshot-as-volume-chain``)."""

from __future__ import annotations

from pathlib import Path

from pvetools.storage import filechains, images, names
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Snapshot
from pvetools.storage.folders import FolderStorage
from pvetools.storage.names import VolumeName
from pvetools.system import lock, log
from pvetools.system.errors import Exists, NotFound, PveError, Refused, RunError


class ChainedStorage(FolderStorage):
    """Base of these backends; without the option they keep snapshots inside of the images."""

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self.chained = bool(definition.options.snapshot_as_volume_chain)
        if self.chained:
            self.info = self.info._replace(rollback_to_newest=True)

    def parse(self, name: str) -> VolumeName:
        found = super().parse(name)
        if self.chained and filechains.is_layer(found.name):
            raise PveError(f"unable to parse volume filename '{found.name}': it is the file of a snapshot")
        return found

    def path(self, name: str, snapshot: str = "") -> Path:
        path = super().path(name, snapshot)
        if snapshot and self.chained:
            names.check_snapshot(snapshot)
            return filechains.layer(path, snapshot)
        return path

    def header(self, path: Path, form: str) -> images.ImageInfo:
        found = super().header(path, form)
        if self.chained and form == "qcow2" and found.backing:
            try:
                return found._replace(backing=filechains.backing(path))
            except PveError as error:  # it is there nevertheless, and can be removed
                log.warn(f"storage '{self.id}': {error}")
                return found._replace(backing="")
        return found

    def _require(self, name: str, path: Path) -> None:
        if self.chained and path.suffix == ".qcow2":
            filechains.recover(path)
        super()._require(name, path)

    def _unlink(self, path: Path) -> None:
        if self.chained and path.suffix == ".qcow2":
            filechains.remove_layers(path)
        super()._unlink(path)

    # Snapshots.

    def snapshots(self, name: str) -> list[Snapshot]:
        if not self.chained:
            return super().snapshots(name)
        path = self.path(name)
        self._require(name, path)
        return filechains.snapshots(path)

    def snapshot(self, name: str, snapshot: str) -> None:
        if not self.chained:
            super().snapshot(name, snapshot)
            return
        with lock.storage_lock(self.id):
            if self._kept(name, snapshot):
                raise Exists(f"volume '{self.id}:{name}' has a snapshot '{snapshot}' already")
            if not filechains.is_layer(self.path(name, snapshot).name):
                raise Refused(
                    f"volume '{self.id}:{name}' can't have snapshots as files beside it: its name does not begin with "
                    "vm-ID- or base-ID-"
                )
            try:
                filechains.keep(self._idle_image(name), snapshot)
            except (OSError, RunError) as error:
                raise self._explained(error, 0) from error

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        if not self.chained:
            super().delete_snapshot(name, snapshot)
            return
        with lock.storage_lock(self.id):
            self._need_snapshot(name, snapshot)
            try:
                filechains.forget(self._idle_image(name), snapshot)
            except (OSError, RunError) as error:
                raise self._explained(error, 0) from error

    def rollback(self, name: str, snapshot: str) -> None:
        if not self.chained:
            super().rollback(name, snapshot)
            return
        with lock.storage_lock(self.id):
            self._need_snapshot(name, snapshot)
            kept = [found.name for found in self.snapshots(name)]
            if newer := kept[kept.index(snapshot) + 1 :]:
                raise Refused(
                    f"can't roll back volume '{self.id}:{name}' to '{snapshot}': it is not its most recent snapshot, "
                    f"remove the newer ones first: {', '.join(newer)}"
                )
            try:
                filechains.back(self._idle_image(name), snapshot)
            except (OSError, RunError) as error:
                raise self._explained(error, 0) from error

    def _need_snapshot(self, name: str, snapshot: str) -> None:
        if not self._kept(name, snapshot):
            raise NotFound(f"volume '{self.id}:{name}' has no snapshot '{snapshot}'")
