"""Backend ``nfs``: an export of an NFS server, versions 3 and 4."""

from __future__ import annotations

from pathlib import Path

from pvetools.storage import servers
from pvetools.storage.mounted import MountedStorage
from pvetools.storage.mounts import Wanted
from pvetools.system.errors import Refused


class Nfs(MountedStorage):
    """One storage of type ``nfs``."""

    def check(self) -> None:
        if "bg" in self.words:
            raise Refused(f"storage '{self.id}': mount option 'bg' can't be served: a mount has to be there at once")

    def wanted(self, point: Path) -> Wanted:
        source = f"{self.host}:{self.definition.options.export}"
        return Wanted(point, source, "nfs", tuple(self.words), self.creates)

    def reach(self) -> None:
        if "rdma" in self.words or self.option("proto") == "rdma":
            return  # nothing listens on TCP there
        port = self.option("port")
        servers.nfs(
            self.definition.options.server or "", int(port) if port.isdecimal() else 0, mapped=not self._is_version_4()
        )

    def _is_version_4(self) -> bool:
        asked = self.option("vers", "nfsvers") or next((word[1:] for word in self.words if word[:2] == "v4"), "")
        return asked.startswith("4")
