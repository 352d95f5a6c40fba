"""Downloads from web servers onto a storage: complete, checked and decompressed, or not there at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import contents, incoming, volumes, web
from pvetools.storage.incoming import Checksum
from pvetools.system import compress, log
from pvetools.system.errors import Exists, PveError
from pvetools.system.units import human_size

COMPRESSIONS = ("gz", "lzo", "zst", "bz2")
_STEP = 0.1


class Download(NamedTuple):
    """What comes from where; ``compression`` is an extension, empty where the file is stored as it comes."""

    storage: str
    content: str
    filename: str
    url: str
    checksum: Checksum | None = None
    compression: str = ""
    verify: bool = True


def download(wanted: Download) -> None:
    """Fetch a file; the checksum is that of what the server sends.

    Raises:
        ParamErrors: wrong name. Exists: another file with that name. PveError: whatever went wrong; nothing stays.
    """
    name = contents.file_name(wanted.content, wanted.filename)
    folder = volumes.content_dir(wanted.storage, wanted.content)
    target = folder / name
    if os.path.lexists(target):
        _check_existing(wanted, target)
        return
    log.emit(f"downloading {web.shown(wanted.url)} to {target}")
    with ExitStack() as stack:
        temporary = stack.enter_context(incoming.part(folder))
        found = _fetch(wanted, temporary)
        if wanted.checksum:
            incoming.check_sum(found, wanted.checksum)
        if wanted.compression:
            packed, temporary = temporary, stack.enter_context(incoming.part(folder))
            _decompress(packed, temporary, wanted)
        contents.check(temporary, wanted.content, name)
        incoming.appear(wanted.storage, temporary, target)
    log.emit(f"download of '{wanted.storage}:{wanted.content}/{name}' finished")


def _check_existing(wanted: Download, target: Path) -> None:
    """A file that is the right one already needs no download.

    Raises:
        Exists: it is another one, or nobody knows.
    """
    if not wanted.checksum or wanted.compression:
        raise Exists(f"'{target}' exists already")
    try:
        incoming.check_sum(incoming.digest_of(target, wanted.checksum.algorithm), wanted.checksum)
    except PveError as error:
        raise Exists(f"'{target}' exists already, and its {error}") from None
    log.emit("the file is there already, no need to download it")


def _fetch(wanted: Download, temporary: Path) -> str:
    """Write what the server sends; gives its checksum."""
    algorithm = wanted.checksum.algorithm if wanted.checksum else ""
    seen = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None
    with (
        web.opened(wanted.url, verify=wanted.verify, downgrade=bool(wanted.checksum)) as answer,
        temporary.open("wb") as file,
    ):
        if answer.size is not None:
            incoming.need_space(temporary.parent, answer.size)

        def observed() -> Iterator[bytes]:
            for chunk in _with_progress(answer):
                if seen:
                    seen.update(chunk)
                yield chunk

        incoming.write(file, observed())
    return seen.hexdigest() if seen else ""


def _with_progress(answer: web.Answer) -> Iterator[bytes]:
    total, done, told = answer.size or 0, 0, 0.0
    for chunk in answer.chunks():
        yield chunk
        done += len(chunk)
        log.progress("download", done, total)
        share = done / total if total else 0.0
        if share >= told + _STEP:
            told = share
            log.emit(f"transferred {human_size(done)} of {human_size(total)} ({share:.0%})")
    log.emit(f"received {human_size(done)}")


def _decompress(packed: Path, temporary: Path, wanted: Download) -> None:
    log.emit(f"decompressing ({wanted.compression})")
    with (
        compress.reading(packed, wanted.compression, name=web.shown(wanted.url)) as descriptor,
        os.fdopen(os.dup(descriptor), "rb") as plain,
        temporary.open("wb") as file,
    ):
        incoming.write(file, incoming.blocks(plain))
