"""OVA archives: a descriptor and its disks in one tar file. Only plain files with plain names are accepted in it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import imported, incoming, ovf
from pvetools.storage.imported import Disk, Guest, Warn
from pvetools.system import files, log
from pvetools.system.errors import NotFound, PveError, Refused

_MEMBER = re.compile(r"[a-zA-Z0-9\-+=_ ][a-zA-Z0-9\-.+=_ ]*")
_MOST = 1000  # members
_SUM = re.compile(r"SHA(1|256|512)\s*\(([^)]+)\)\s*=\s*([0-9a-fA-F]+)", re.ASCII)


class _Content(NamedTuple):
    """Descriptor, disks by name, and checksums of an archive."""

    descriptor: tarfile.TarInfo
    disks: dict[str, tarfile.TarInfo]
    sums: tarfile.TarInfo | None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with files.open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield archive
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise PveError(f"'{path}' is not a valid OVA archive: {error}") from None
    except FileNotFoundError:
        raise NotFound(f"no such archive: '{path}'") from None


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    seen: set[str] = set()
    for number, member in enumerate(archive):
        if number >= _MOST:
            raise Refused(f"'{path}': more than {_MOST} members")
        name = member.name.removeprefix("./")
        if not member.isreg() or member.issparse() or not _MEMBER.fullmatch(name):
            raise Refused(f"'{path}': member '{member.name}' is no plain file with a plain name")
        if name in seen:
            raise Refused(f"'{path}': member '{name}' comes twice")
        seen.add(name)
        yield member


def _read(archive: tarfile.TarFile, path: Path) -> _Content:
    descriptors: list[tarfile.TarInfo] = []
    disks: dict[str, tarfile.TarInfo] = {}
    sums = None
    for member in _members(archive, path):
        name = member.name.removeprefix("./")
        if name.endswith(".ovf"):
            descriptors.append(member)
        elif ovf.DISK_NAME.fullmatch(name):
            disks[name] = member
        elif name.endswith(".mf"):
            sums = member
    if len(descriptors) != 1:
        raise PveError(f"'{path}': one OVF descriptor is expected in it, found {len(descriptors)}")
    return _Content(descriptors[0], disks, sums)


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read(ovf.LARGEST + 1) if file else b""


def _described(archive: tarfile.TarFile, content: _Content, prefix: str) -> Guest:
    def volume(file: ovf.File) -> Disk:
        if file.name not in content.disks:
            raise PveError(f"OVF: disk '{file.name}' is not in the archive")
        return Disk(f"{prefix}{file.name}", file.capacity)

    return ovf.parse(_text(archive, content.descriptor), volume)


def guest(path: Path, prefix: str = "") -> Guest:
    """What an archive says about its guest; names of its disks get a prefix.

    Raises:
        PveError: damaged, or a disk is missing. Refused: members that could do harm.
    """
    with _opened(path) as archive:
        found = _described(archive, _read(archive, path), prefix)
    found.warnings.append(Warn(imported.EXTRACTING))
    return found


def check(path: Path) -> None:
    """Refuse an archive that could not be imported.

    Raises:
        As ``guest``.
    """
    guest(path)


def disks(path: Path) -> dict[str, int]:
    """Names of the disks in an archive, with the bytes they take there.

    Raises:
        As ``guest``.
    """
    with _opened(path) as archive:
        return {name: member.size for name, member in _read(archive, path).disks.items()}


def extract(path: Path, name: str, target: Path) -> None:
    """Write one disk of an archive into a file; its checksum in the archive's manifest, if there is one, has to fit.

    Raises:
        NotFound: no such disk. PveError: damaged, or no space.
    """
    with _opened(path) as archive, target.open("wb") as file:
        content = _read(archive, path)
        if name not in content.disks:
            raise NotFound(f"'{path}' holds no disk '{name}'")
        wanted = _sum_of(archive, content, name)
        seen = hashlib.new(wanted.algorithm, usedforsecurity=False) if wanted else None
        member = archive.extractfile(content.disks[name])
        if member is None:
            raise PveError(f"'{path}': member '{name}' can't be read")
        incoming.need_space(target.parent, content.disks[name].size)
        log.emit(f"extracting '{name}' from '{path.name}'")

        def observed() -> Iterator[bytes]:
            for chunk in incoming.blocks(member):
                if seen:
                    seen.update(chunk)
                yield chunk

        if incoming.write(file, observed()) != content.disks[name].size:
            raise PveError(f"'{path}' ends within disk '{name}'")
        if wanted and seen:
            incoming.check_sum(seen.hexdigest(), wanted)


def _sum_of(archive: tarfile.TarFile, content: _Content, name: str) -> incoming.Checksum | None:
    text = _text(archive, content.sums).decode("utf-8", "replace") if content.sums else ""
    found = {match[2]: incoming.Checksum(f"sha{match[1]}", match[3]) for match in _SUM.finditer(text)}
    return found.get(name)
