"""The configuration that an archive carries, and the way from what a user names to an archive's file."""

from __future__ import annotations

from pathlib import Path

from pvetools.backup import names, vma, vmconf
from pvetools.backup.names import ArchiveInfo
from pvetools.guest.lxc import tar
from pvetools.storage.archives import FORMATS
from pvetools.system import compress
from pvetools.system.errors import NotFound, PveError, Refused


def locate(archive: str) -> Path:
    """The file of an archive that is named by its path or its volume id.

    Raises:
        NotFound: there is no such file. PveError: not the name of a backup.
    """
    if ":" in archive and not archive.startswith(("/", "./")):
        from pvetools.storage import volumes

        if volumes.parse(archive).content != "backup":
            raise Refused(f"volume '{archive}' is not a backup")
        path = volumes.path(archive)
    else:
        path = Path.cwd() / archive
    if not path.is_file():
        raise NotFound(f"archive '{archive}' does not exist")
    return path


def checked_info(path: Path, kind: str) -> ArchiveInfo:
    """What the file's name says, when it is the archive of that kind of guest.

    Raises:
        Refused: an archive of the other kind, or of a format that cannot be read.
    """
    info = names.parse(path.name)
    if {"openvz": "lxc"}.get(info.kind, info.kind) != kind:
        tool = "pct restore" if kind == "qemu" else "qmrestore"
        raise Refused(
            f"'{path}' is not a backup of a {'virtual machine' if kind == 'qemu' else 'container'}: use {tool}"
        )
    if info.format != FORMATS[kind]:
        raise Refused(f"'{path}': archives of format '{info.format}' can't be restored, only {FORMATS[kind]}")
    return info


def extract_config(path: Path) -> str:
    """The guest's configuration in an archive, as it stands there.

    Raises:
        PveError: no backup archive, or a damaged one.
    """
    info = names.parse(path.name)
    with compress.reading(path, info.compression, to_end=False) as fd:
        if info.format == "vma":
            return vma.read_config(fd, vmconf.NAME).decode("utf-8", "surrogateescape")
        if info.format == "tar" and info.kind != "qemu":
            return tar.read_configs(fd)[0]
    raise PveError(f"'{path}': no configuration can be read from a backup of format '{info.format}'")
