"""Names of backup archives, as the storages know them, and the programs that unpack them."""

from __future__ import annotations

from pvetools.storage.archives import ArchiveInfo, archive_name, companions, parse, stem, temporary_name
from pvetools.system.compress import BY_EXTENSION

__all__ = ["ArchiveInfo", "archive_name", "companions", "decompressor", "parse", "stem", "temporary_name"]


def decompressor(info: ArchiveInfo) -> list[str]:
    """Command that unpacks an archive: a plain decompressor for VM archives, ``tar FLAG`` for containers."""
    if not info.compression:
        return []
    codec = BY_EXTENSION[info.compression]
    return ["tar", codec.tar_flag] if info.format == "tar" else list(codec.decompress)
