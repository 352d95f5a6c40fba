"""Uploads: a file that the server has received becomes a file of a storage."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import contents, incoming, streaming, volumes
from pvetools.storage.incoming import Checksum
from pvetools.system import log, paths
from pvetools.system.errors import NotFound, ParamErrors, Refused


class Upload(NamedTuple):
    """What comes where: ``received`` is the file as it was received (``/var/tmp/pveupload-HEX``)."""

    storage: str
    content: str
    filename: str
    received: str
    checksum: Checksum | None = None


def upload(wanted: Upload) -> None:
    """Check the received file and give it its place, where it replaces one with the same name; else it stays.

    Raises:
        ParamErrors: wrong name. PveError: wrong content or checksum. As ``volumes.content_dir``.
    """
    name = contents.file_name(wanted.content, wanted.filename)
    folder = volumes.content_dir(wanted.storage, wanted.content)
    source = _received(wanted.received)
    target = folder / name
    log.emit(f"file name: {name}")
    log.emit(f"target file: {target}")
    if wanted.checksum:
        incoming.check_sum(incoming.digest_of(source, wanted.checksum.algorithm), wanted.checksum)
    contents.check(source, wanted.content, name)
    incoming.need_space(folder, source.stat().st_size)
    with incoming.part(folder) as temporary:
        streaming.stream(["cp", "--sparse=auto", "--reflink=auto", "--no-preserve=all", "--", source, temporary])
        contents.check(temporary, wanted.content, name)
        incoming.appear(wanted.storage, temporary, target, replace=True)
    source.unlink()
    log.emit(f"finished: '{wanted.storage}:{wanted.content}/{name}'")


def _received(name: str) -> Path:
    """The received file; only one that nobody else can change any more is taken.

    Raises:
        ParamErrors, NotFound, Refused.
    """
    if not name:
        raise ParamErrors({"tmpfilename": "name the file that was received, /var/tmp/pveupload-HEX"})
    path = paths.temp_dir() / Path(name).name
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise NotFound(f"no such file: '{path}'") from None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise Refused(f"'{path}' is not a plain file")
    if found.st_uid != os.geteuid():
        raise Refused(f"'{path}' belongs to another user")
    return path
