"""Compressors and decompressors: a table of programs, and streams through them whose failure is noticed."""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pvetools.system.errors import PveError

if TYPE_CHECKING:
    from pvetools.system.run import Process


@dataclass(frozen=True, slots=True)
class Codec:
    """One compression format: file extension, how ``tar`` calls it, programs, and how its files begin."""

    extension: str
    tar_flag: str
    compress: tuple[str, ...]  # empty: reading only
    decompress: tuple[str, ...]
    magic: tuple[bytes, ...]


CODECS: dict[str, Codec] = {
    "gzip": Codec("gz", "-z", ("gzip", "--rsyncable"), ("zcat",), (b"\x1f\x8b",)),
    "lzo": Codec("lzo", "--lzop", ("lzop",), ("lzop", "-d", "-c"), (b"\x89LZO",)),
    # Besides a data frame a zstd file may begin with any of 16 kinds of skippable frames (pzstd writes them).
    "zstd": Codec("zst", "--zstd", ("zstd",), ("zstd", "-q", "-d", "-c"),
                  (b"\x28\xb5\x2f\xfd", *(bytes((0x50 + n, 0x2A, 0x4D, 0x18)) for n in range(16)))),
    "bzip2": Codec("bz2", "--bzip2", (), ("bzcat", "-q"), (b"BZh",)),
    "xz": Codec("xz", "-J", (), ("xz", "-q", "-d", "-c"), (b"\xfd7zXZ\0",)),
}  # fmt: skip
BY_EXTENSION: dict[str, Codec] = {codec.extension: codec for codec in CODECS.values()}
# Values of the option "compress"; "1" is the old spelling of lzo.
OPTION = {"0": "", "1": "lzo", "gzip": "gzip", "lzo": "lzo", "zstd": "zstd"}
# How the programs begin a complaint about what they read from standard input.
_OF_STDIN = re.compile(r"^(?:\S+: )?(?:/\*stdin\*\\|<?\(?stdin\)?>?) ?: |^(?:\S*/)?(?:lzop|bzip2|bzcat|xz|zstd|gzip): ")


def _half_of_cpus() -> int:
    return ((os.cpu_count() or 1) + 1) // 2


def _zstd_level() -> int:
    """Level 1 costs half the processor time of zstd's own default or less; its usual variable asks for another one."""
    level = os.environ.get("ZSTD_CLEVEL", "1")
    if not (level.isascii() and level.isdecimal() and 1 <= int(level) <= 19):
        raise PveError(f"ZSTD_CLEVEL: value '{level}' is not a level from 1 to 19")
    return int(level)


def extension(option: str) -> str:
    """File extension that a value of the option ``compress`` leads to; empty without compression.

    Raises:
        PveError: no such compression.
    """
    if option not in OPTION:
        raise PveError(f"unknown compression '{option}', expected one of {', '.join(OPTION)}")
    return CODECS[OPTION[option]].extension if OPTION[option] else ""


def compressor(option: str, *, zstd: int = 1, pigz: int = 0) -> list[str]:
    """Command that compresses stdin to stdout; empty without compression.

    Args:
        option: value of the option ``compress``.
        zstd: threads of zstd, 0 for half of the processors.
        pigz: use pigz for gzip with that many threads; 1 for half of the processors, 0 for plain gzip.

    Raises:
        PveError: no such compression, or ``ZSTD_CLEVEL`` is no level.
    """
    if not extension(option):
        return []
    codec = CODECS[OPTION[option]]
    if codec.extension == "zst":
        return [*codec.compress, f"-{_zstd_level()}", f"--threads={zstd or _half_of_cpus()}"]
    if codec.extension == "gz" and pigz:
        return ["pigz", "-p", str(pigz if pigz > 1 else _half_of_cpus()), "--rsyncable"]
    return list(codec.compress)


def last_words(errors: IO[bytes]) -> str:
    """Last line that a program wrote into its error file, bounded."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read(65536).decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _kill(process: Process) -> None:
    """End a program whose output is of no use any more, and collect it."""
    process.kill()
    process.wait()


@contextlib.contextmanager
def compressing(out: int, argv: Sequence[str]) -> Iterator[int]:
    """A descriptor to write to, whose bytes arrive compressed in ``out``; without ``argv`` it is ``out`` itself.

    The program is killed when the block fails.

    Raises:
        PveError: ``wrong exit status N``, with the program's last words.
    """
    if not argv:
        yield out
        return
    import tempfile

    from pvetools.system.run import popen
    from pvetools.system.streams import pipe

    with tempfile.TemporaryFile() as errors, pipe() as (outlet, inlet):
        process = popen(argv, stdin=outlet.fileno(), stdout=out, stderr=errors)
        outlet.close()
        broken = False
        try:
            yield inlet.fileno()
        except BrokenPipeError:
            broken = True  # it ended early: its exit status tells why
        except BaseException:
            _kill(process)
            raise
        inlet.close()
        code = process.wait()
        if code or broken:
            words = last_words(errors)
            raise PveError(f"wrong exit status {code}" + (f" ({words})" if words else ""))


@contextlib.contextmanager
def writing(path: Path, argv: Sequence[str]) -> Iterator[int]:
    """Like ``compressing``, into a new file that is removed again when anything fails."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with compressing(fd, argv) as inlet:
            yield inlet
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _check_magic(fd: int, name: str, codec: Codec) -> None:
    """Tell foreign data before a decompressor gives a riddle."""
    start = os.pread(fd, 8, 0)
    if not any(start.startswith(magic) for magic in codec.magic):
        what = "is empty" if not start else f"is not a {codec.extension} file"
        raise PveError(f"cannot decompress '{name}': it {what}")


def _ended(fd: int) -> bool:
    """Whether the writer of a pipe is gone and all its data was read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ready = poll.poll(0)
    return bool(ready) and not ready[0][1] & select.POLLIN


@contextlib.contextmanager
def reading(path: Path, compression: str, *, name: str = "", to_end: bool = True) -> Iterator[int]:
    """A descriptor from which a file's decompressed content comes.

    A reader that finds the content cut short raises its own error inside the block; when the decompressor failed,
    that is the cause and is reported instead.

    Args:
        path: the file.
        compression: its extension (``gz``, ``lzo``, ``zst``, ``bz2``, ``xz``), or empty.
        name: what messages call it in place of its path.
        to_end: the block reads to the end, so the decompressor has to succeed; otherwise it is stopped early.

    Raises:
        PveError: no such file, foreign or damaged content.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PveError(f"cannot open '{path}': {error.strerror}") from error
    try:
        if not compression:
            yield fd
            return
        _check_magic(fd, name or str(path), BY_EXTENSION[compression])
        with _decompressing(fd, name or str(path), BY_EXTENSION[compression].decompress, to_end) as outlet:
            yield outlet
    finally:
        os.close(fd)


@contextlib.contextmanager
def _decompressing(fd: int, name: str, argv: Sequence[str], to_end: bool) -> Iterator[int]:
    import tempfile

    from pvetools.system.run import popen
    from pvetools.system.streams import pipe

    with tempfile.TemporaryFile() as errors, pipe() as (outlet, inlet):
        process = popen(argv, stdin=fd, stdout=inlet.fileno(), stderr=errors)
        inlet.close()
        failure: PveError | None = None
        try:
            yield outlet.fileno()
        except PveError as error:
            failure = error
            to_end = _ended(outlet.fileno())
        except BaseException:
            _kill(process)
            raise
        if not to_end:
            process.kill()
        outlet.close()
        code = process.wait()
        if to_end and code:
            words = _OF_STDIN.sub("", last_words(errors))
            if not words or "Inappropriate ioctl" in words:  # what lzop says when its input ends too early
                words = f"damaged or cut short (status {code})"
            raise PveError(f"cannot decompress '{name}': {argv[0]}: {words}") from failure
        if failure:
            raise failure
