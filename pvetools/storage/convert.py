"""Images copied with ``qemu-img``, which skips holes and zeros, and of which no data passes through this process."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from pvetools.storage import images
from pvetools.storage.driver import Source
from pvetools.storage.streaming import Meter
from pvetools.system import run
from pvetools.system.errors import NotFound, RunError

_SUFFIXES = {".qcow2": "qcow2", ".vmdk": "vmdk", ".raw": "raw"}
_PROGRESS = re.compile(rb"\(([0-9.]+)/100%\)")


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


def convert(source: Image, target: Source, *, stdin: int | None = None, label: str = "transfer") -> None:
    """Copy an image into a new volume of at least its size; tells how far it is.

    Args:
        source: what is read.
        target: where it goes.
        stdin: what the program gets as its standard input, for a source that names that.
        label: of the progress bar.

    Raises:
        RunError: with the words of qemu-img. PveError: the volume can't be written.
    """
    meter = Meter(source.size, label)
    how = ["--target-is-zero"] if target.blank else []
    if _has_places(target):
        how.append("-W")  # several writes at once; elsewhere they would get places in the order they came
    if target.kind == "network":
        from pvetools.system import nbd

        with nbd.served(target.image, target.format, target.options) as url:
            _convert(source, [*how, "-O", "raw"], url, stdin, meter)
    else:
        # the same secret may open both
        options = [word for word in target.options if word not in source.options]
        _convert(source, [*how, *options, "-O", target.format], target.image, stdin, meter)


def _has_places(target: Source) -> bool:
    """Whether it is settled where the parts of a volume lie."""
    if target.kind == "network" or target.format == "raw":
        return True
    return target.format == "qcow2" and images.is_laid_out(target.path)


def _convert(source: Image, options: Sequence[str], target: str, stdin: int | None, meter: Meter) -> None:
    argv = ["qemu-img", "convert", "-p", "-n", "-t", "writeback"]
    argv += [*source.options, "-f", source.format, *options, source.image, target]
    with tempfile.TemporaryFile() as errors:
        process = run.popen(
            argv, stdin=run.DEVNULL if stdin is None else stdin, stdout=run.PIPE, stderr=errors, tied=True
        )
        try:
            if process.stdout:
                _watch(process.stdout, meter, source.size)
            code = process.wait()
        except BaseException:
            run.end_group(process)
            raise
        finally:
            if process.stdout:
                process.stdout.close()
        if code:
            errors.seek(0)
            raise RunError(argv, code, errors.read().decode("utf-8", "replace"))
    meter.at(source.size)


def _watch(output: IO[bytes], meter: Meter, size: int) -> None:
    """Tell what a program says of its progress until its end."""
    rest = b""
    while chunk := output.read1(4096):  # type: ignore[attr-defined]
        if found := _PROGRESS.findall(rest + chunk):
            meter.at(int(size * float(found[-1]) / 100))
        rest = (rest + chunk)[-32:]
