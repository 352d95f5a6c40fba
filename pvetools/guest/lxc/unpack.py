"""Unpacking templates and archives into a container's root, as the container's root."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

from pvetools.guest.lxc.idmap import IdMap
from pvetools.system import log, run
from pvetools.system.errors import PveError

TAR_MAGIC_AT, BLOCK = 257, 512


class Compression(NamedTuple):
    """How a compressed archive begins, and the program that unpacks it (from standard input to standard output)."""

    magic: bytes
    command: tuple[str, ...]


COMPRESSIONS = (
    Compression(b"\x1f\x8b", ("gzip", "-dc")),
    Compression(b"\xfd7zXZ\x00", ("xz", "-dc", "-T0")),
    Compression(b"\x28\xb5\x2f\xfd", ("zstd", "-dcq")),
    Compression(b"BZh", ("bzip2", "-dc")),
    Compression(b"\x89LZO\x00\r\n\x1a\n", ("lzop", "-dc")),
)


def decompressor(archive: Path) -> tuple[str, ...]:
    """The program that unpacks an archive, told by its first bytes; empty for a plain tar.

    Raises:
        PveError: neither a tar nor a known compression.
    """
    try:
        with archive.open("rb") as file:
            head = file.read(BLOCK)
    except OSError as error:
        raise PveError(f"can't read '{archive}': {error.strerror}") from None
    for compression in COMPRESSIONS:
        if head.startswith(compression.magic):
            return compression.command
    if head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar":
        return ()
    raise PveError(f"'{archive.name}' is not a tar archive (plain, or compressed by gzip, xz, zstd, bzip2 or lzop)")


def tar_command(ids: IdMap) -> list[str]:
    """GNU tar reading from standard input into its working directory, as the container's root.

    It drops leading slashes, refuses members with ``..`` and makes links last, so nothing is written outside.
    """
    words = [
        "tar", "--extract", "--file=-", "--numeric-owner", "--preserve-permissions", "--same-owner", "--sparse",
        "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability", "--acls",
        "--delay-directory-restore", "--warning=no-file-ignored", "--warning=no-xattr-write", "--warning=no-timestamp",
    ]  # fmt: skip
    if ids.entries:  # device nodes cannot be made in a user namespace; LXC supplies /dev
        words += ["--anchored", "--exclude=./dev/*", "--exclude=dev/*", "--no-anchored"]
    return [*ids.command(), *words]


def unpack(archive: Path, root: Path, ids: IdMap, *, ignore_errors: bool = False) -> None:
    """Unpack an archive into a mounted root.

    Args:
        archive: a tar, plain or compressed.
        root: directory of the host that becomes the container's ``/``.
        ids: the container's id map.
        ignore_errors: go on when single members cannot be made.

    Raises:
        PveError: a foreign, damaged or truncated archive, a full storage.
    """
    command = decompressor(archive)
    with archive.open("rb") as source, ExitStack() as stack:
        if not command:
            _check_end(archive, source)
            said, code = _tar(source, root, ids)
            _judge(archive, said, code, "", 0, ignore_errors=ignore_errors)
            return
        words = stack.enter_context(tempfile.TemporaryFile())
        packed = run.popen(command, stdin=source, stdout=run.PIPE, stderr=words, tied=True)
        stack.callback(_end, packed)
        said, code = _tar(packed.stdout, root, ids)
        if code:
            packed.terminate()  # it may wait for a reader
        feeder = packed.wait()
        words.seek(0)
        _judge(archive, said, code, _text(words.read()), feeder, ignore_errors=ignore_errors)


def _check_end(archive: Path, source: IO[bytes]) -> None:
    """A plain tar ends with two empty blocks; tar itself takes no notice when they are missing.

    Raises:
        PveError: it was cut off.
    """
    size = os.fstat(source.fileno()).st_size
    if os.pread(source.fileno(), 2 * BLOCK, max(size - 2 * BLOCK, 0)) != bytes(2 * BLOCK):
        raise PveError(f"unpacking '{archive.name}' failed: the archive is truncated, its end mark is missing")


def _end(process: run.Process) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _tar(source: IO[bytes] | None, root: Path, ids: IdMap) -> tuple[str, int]:
    """What tar said, and its exit status."""
    gone, alive = os.pipe()
    with os.fdopen(gone, "rb") as lifeline, tempfile.TemporaryFile() as words:
        try:
            tar = run.popen(
                tar_command(ids), stdin=source, stdout=run.DEVNULL, stderr=words, cwd=root, pass_fds=[alive], tied=True
            )
        finally:
            os.close(alive)
        try:
            code = tar.wait()
        finally:
            _end(tar)
            lifeline.read()  # tar is a child of the program that makes the user namespace, and ends after it
        words.seek(0)
        return _text(words.read()), code


def _text(data: bytes) -> str:
    """The first lines that say something, without the program's name and its closing words."""
    lines = [line.partition(": ")[2] or line for line in data.decode("utf-8", "replace").splitlines()]
    said = [line.strip() for line in lines if not line.startswith(("Removing leading", "Exiting with failure"))]
    return "; ".join(said[:3])


def _judge(archive: Path, said: str, code: int, feeder_said: str, feeder: int, *, ignore_errors: bool) -> None:
    """Turn exit statuses into an error.

    Raises:
        PveError: naming the archive and what was wrong with it.
    """
    if feeder > 0:
        raise PveError(f"unpacking '{archive.name}' failed: the archive is damaged or truncated: {feeder_said}")
    if code == 0:
        return
    if ignore_errors and code == 2 and "Unexpected EOF" not in said:
        log.warn(f"unpacking '{archive.name}': {said}")
        return
    raise PveError(f"unpacking '{archive.name}' failed: {said or f'tar ended with status {code}'}")
