"""Disk images: what a file is, and copying one into another with ``qemu-img``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import images
from pvetools.storage.driver import Source
from pvetools.system import log, run
from pvetools.system.errors import NotFound, PveError, RunError
from pvetools.system.units import human_size

_SUFFIXES = {".qcow2": "qcow2", ".vmdk": "vmdk", ".raw": "raw"}
_PROGRESS = re.compile(rb"\(([0-9.]+)/100%\)")
_STEP = 10.0  # percent between two lines of progress


class Image(NamedTuple):
    """An image that exists: how QEMU's tools open it, in which format it is, and how many bytes its disk has.

    ``options`` are words that the tools need besides.
    """

    image: str
    format: str
    size: int
    options: tuple[str, ...] = ()


def foreign(path: Path, form: str = "") -> Image:
    """An image of unknown origin. The suffix tells its format where nobody does, else the first bytes.

    Raises:
        NotFound: no such file. Refused: it would read other files of the host. PveError: damaged.
    """
    try:
        form = form or _SUFFIXES.get(path.suffix) or images.format_of(path)
        return Image(str(path), form, images.check_foreign(path, form).size)
    except OSError as error:
        raise NotFound(f"can't read '{path}': {error.strerror}") from None


def convert(source: Image, target: Source) -> None:
    """Copy an image into an existing volume of at least its size; tells how far it is.

    Raises:
        RunError: with the words of qemu-img.
    """
    if target.kind == "network":
        from pvetools.system import nbd

        with nbd.served(target.image, target.format, target.options) as url:
            _convert(source, url, "raw")
    else:
        _convert(source, target.image, target.format)


def _convert(source: Image, target: str, form: str) -> None:
    words = ["qemu-img", "convert", "-p", "-n", *source.options, "-f", source.format, "-O", form, source.image, target]
    process = run.popen(words, stdout=run.PIPE, stderr=run.PIPE, tied=True)
    try:
        _show_progress(process, source.size)
        said = process.stderr.read() if process.stderr else b""
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
    if code:
        raise RunError(words, code, said.decode("utf-8", "replace"))


def _show_progress(process: run.Process, size: int) -> None:
    if process.stdout is None:
        raise PveError("qemu-img has no output")
    shown, rest = -_STEP, b""
    while chunk := process.stdout.read1(4096):  # type: ignore[attr-defined]
        found = _PROGRESS.findall(rest + chunk)
        rest = (rest + chunk)[-32:]
        percent = float(found[-1]) if found else shown
        log.progress("import", int(size * max(percent, 0) / 100), size)
        if percent >= shown + _STEP or (percent >= 100 > shown):
            shown = percent
            log.emit(f"transferred {human_size(int(size * percent / 100))} of {human_size(size)} ({percent:.2f}%)")
