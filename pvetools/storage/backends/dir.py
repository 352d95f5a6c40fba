"""Backend ``dir``: a directory of this host."""

from __future__ import annotations

from pathlib import Path

from pvetools.storage import inuse
from pvetools.storage.folders import FolderStorage
from pvetools.system.errors import PveError


class Directory(FolderStorage):
    """One storage of type ``dir``."""

    def attach(self) -> None:
        wanted = self.definition.options.is_mountpoint
        if wanted.lower() in ("no", "0", "off", "false"):
            return
        point = Path(self.base if wanted.lower() in ("yes", "1", "on", "true") else wanted)
        if not inuse.is_mount_point(point):
            raise PveError(
                f"unable to activate storage '{self.id}' - directory is expected to be a mount point but is not "
                f"mounted: '{point}'"
            )
