"""Unpacking templates into a container's root, as the container's root."""

from __future__ import annotations

from pathlib import Path

from pvetools.guest.lxc import tar
from pvetools.guest.lxc.idmap import IdMap
from pvetools.guest.lxc.tar_members import RECORD
from pvetools.system import compress, log
from pvetools.system.errors import PveError

_MAGIC_AT, _MAGIC = 257, b"ustar"


def compression(archive: Path) -> str:
    """How a template is compressed, told by its first bytes, as the extension of such files; empty for a plain tar.

    Raises:
        PveError: neither a tar nor a known compression.
    """
    try:
        with archive.open("rb") as file:
            head = file.read(RECORD)
    except OSError as error:
        raise PveError(f"can't read '{archive}': {error.strerror}") from None
    for extension, codec in compress.BY_EXTENSION.items():
        if head.startswith(codec.magic):
            return extension
    if head[_MAGIC_AT:].startswith(_MAGIC):
        return ""
    raise PveError(f"'{archive.name}' is not a tar archive (plain, or compressed by gzip, xz, zstd, bzip2 or lzop)")


def unpack(archive: Path, root: Path, ids: IdMap, *, ignore_errors: bool = False) -> None:
    """Unpack an archive into a mounted root.

    Args:
        archive: a tar, plain or compressed.
        root: directory of the host that becomes the container's ``/``.
        ids: the container's id map.
        ignore_errors: go on when single members cannot be made.

    Raises:
        PveError: a foreign, damaged or truncated archive, one with members that lie outside, a full storage.
    """
    try:
        with compress.reading(archive, compression(archive)) as fd:
            argv = tar.extract_command(root, ids)
            tar.extract(fd, argv, devices=not ids.entries, ignore_errors=ignore_errors, log=log.emit)
    except PveError as error:
        raise PveError(f"unpacking '{archive.name}' failed: {error}") from error
