"""Backend ``dir``: a directory of this host."""

from __future__ import annotations

from pvetools.storage.chained import ChainedStorage


class Directory(ChainedStorage):
    """One storage of type ``dir``."""

    def attach(self) -> None:
        self.check_mount_point()
