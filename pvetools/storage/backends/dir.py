"""Backend ``dir``: a directory of this host."""

from __future__ import annotations

from pvetools.storage.folders import FolderStorage


class Directory(FolderStorage):
    """One storage of type ``dir``."""

    def attach(self) -> None:
        self.check_mount_point()
