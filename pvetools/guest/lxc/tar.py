"""Container archives: the GNU tar commands that make and unpack them, and the pipelines these run in."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pvetools.guest.lxc.idmap import IdMap
from pvetools.guest.lxc.tar_members import RECORD, Member, Rules, Scanner
from pvetools.system.errors import NotFound, PveError
from pvetools.system.streams import MIB, Throttle, pipe, read_full, reader_gone, widen_pipe, write_all

if TYPE_CHECKING:
    from pvetools.system.run import Process

# Shared by making and unpacking: sparse files, numeric owners, ACLs, and the extended attributes that matter.
FLAGS = (
    "--totals", "--one-file-system", "-p", "--sparse", "--numeric-owner", "--acls", "--xattrs",
    "--xattrs-include=user.*", "--xattrs-include=security.capability",
    "--warning=no-file-ignored", "--warning=no-xattr-write",
)  # fmt: skip
STANDARD_EXCLUDES = ("/tmp/?*", "/var/tmp/?*", "/var/run/?*.pid")  # noqa: S108 - patterns, not files
CONFIG = "./etc/vzdump/pct.conf"
FIREWALL = "./etc/vzdump/pct.fw"

PRIVILEGED = IdMap()
_MEMBERS_FAILED = 2  # exit status of tar
_TOTALS = "Total bytes"  # said at the end of its work
_CUT_OFF = "tar ended before the end of the archive"

Log = Callable[[str], None]


def exclude_options(patterns: Sequence[str], *, unprivileged: bool) -> list[str]:
    """Tar options for exclude patterns: with a leading slash anchored to the root, others at any depth."""
    words: list[str] = []
    if unprivileged:
        words += ["--no-anchored", "--exclude=lost+found"]  # not readable inside a user namespace
    for pattern in patterns:
        if pattern.startswith("/"):
            words += ["--anchored", f"--exclude=.{pattern}"]
        else:
            words += ["--no-anchored", f"--exclude={pattern}"]
    return words


def useless_excludes(patterns: Sequence[str]) -> list[str]:
    """Patterns that tar never matches, to be warned about: those that end with a slash."""
    return [pattern for pattern in patterns if pattern.endswith("/")]


def create_command(
    config_folder: Path,
    root: Path,
    *,
    sources: Sequence[str] = ("./",),
    excludes: Sequence[str] = (),
    ids: IdMap = PRIVILEGED,
    with_firewall: bool = True,
) -> list[str]:
    """Command that writes a container's archive to its standard output.

    Args:
        config_folder: holds ``etc/vzdump/pct.conf`` and ``pct.fw``; readable for the container's root.
        root: the container's root folder, its mount points mounted.
        sources: what to pack, relative to the root: ``./`` and ``./PATH`` of each included mount point.
        excludes: patterns, see ``exclude_options``.
        ids: the container's id map.
        with_firewall: whether there is a ``pct.fw``.
    """
    # The configuration comes before the excludes, or a pattern could match it, and before the data, or restore and
    # listings would have to read the whole archive to find it.
    argv = ["tar", "cpf", "-", *FLAGS, f"--directory={config_folder}", CONFIG, *([FIREWALL] if with_firewall else [])]
    argv += [f"--directory={root}", *exclude_options(excludes, unprivileged=bool(ids.entries)), *sources]
    return [*ids.command(), *argv]


def extract_command(root: Path, ids: IdMap = PRIVILEGED) -> list[str]:
    """Command that unpacks an uncompressed archive from its standard input; device nodes below ``dev`` stay out.

    Directories that are there already, the roots of the mounted volumes, get owner and mode of the archive.
    """
    argv = ["tar", "xpf", "-", *FLAGS, "--same-owner", "--delay-directory-restore", "--warning=no-timestamp",
            f"--directory={root}", "--anchored", "--exclude=./dev/*", "--exclude=dev/*"]  # fmt: skip
    return [*ids.command(), *argv]


@contextlib.contextmanager
def _running(argv: Sequence[str], stdin: int, stdout: int, log: Log, *, strict: bool = True) -> Iterator[Process]:
    """Tar at work; at the end of the block it has ended, all its helpers included, and what it said is logged.

    ``strict`` or not, it must have come to its end: that members failed may be ignored, that it was killed may not.
    """
    import tempfile

    from pvetools.system.run import DEVNULL, popen

    with tempfile.TemporaryFile() as errors, pipe() as (lifeline, held):
        process = popen(
            argv,
            stdin=DEVNULL if stdin < 0 else stdin,
            stdout=DEVNULL if stdout < 0 else stdout,
            stderr=errors,
            pass_fds=(held.fileno(),),
            new_session=True,
            tied=True,
        )
        held.close()
        try:
            yield process
            code = process.wait()
        except BaseException:
            # The whole group: lxc-usernsexec would leave its tar running. Only when that has let go of its end of the
            # pipe it is really gone, and the folder may be unmounted.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            lifeline.read()
            raise
        errors.seek(0)
        said = errors.read(MIB).decode("utf-8", "replace").splitlines()
        lines = [re.sub(r"^\S*/tar: ", "tar: ", line) for line in said]
        for line in lines:
            log(line)
        if code and (strict or code != _MEMBERS_FAILED):
            raise PveError(f"tar failed: {_reason(lines)} (exit code {code})")
        # lxc-usernsexec gives 0 when its program is killed
        if not any(line.startswith(_TOTALS) for line in _last_lines(errors)):
            raise PveError(_CUT_OFF)


def _last_lines(file: IO[bytes]) -> list[str]:
    file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
    return file.read().decode("utf-8", "replace").splitlines()


def _reason(lines: Sequence[str]) -> str:
    """What went wrong, out of what tar said: the first complaint, its closing words are always the same."""
    for line in lines:
        if line.strip() and not line.startswith((_TOTALS, "tar: Exiting with failure status")):
            return line.strip().removeprefix("tar: ")
    return "no message"


def create(out: int, argv: Sequence[str], *, limit: int = 0, log: Log) -> None:
    """Run a command made by ``create_command``; its output goes to a file or into a compressor's pipe.

    Args:
        out: descriptor that gets the archive.
        argv: the command.
        limit: bytes a second; 0 = unlimited, and then the data does not pass through this process.
        log: gets each line that tar said.

    Raises:
        PveError: tar failed.
        BrokenPipeError: the reader of ``out`` went away.
    """
    widen_pipe(out)
    if not limit:
        try:
            with _running(argv, -1, out, log):
                return
        except PveError as error:
            if reader_gone(out):  # that is the reason; its own exit status tells more
                raise BrokenPipeError from error
            raise
    throttle = Throttle(limit)
    with pipe() as (outlet, inlet), _running(argv, -1, inlet.fileno(), log):
        inlet.close()
        while data := outlet.read(65536):
            throttle.pay(len(data))
            write_all(out, data)


def extract(
    fd: int, argv: Sequence[str], *, devices: bool, limit: int = 0, ignore_errors: bool = False, log: Log
) -> int:
    """Feed a tar stream to a command made by ``extract_command``, checking each member before tar gets it.

    Args:
        fd: the uncompressed stream; read to its end.
        argv: the command.
        devices: whether device nodes are allowed (privileged containers).
        limit: bytes a second; 0 = unlimited.
        ignore_errors: go on when tar reports errors, as ``--ignore-unpack-errors`` asks for; that an unprivileged
            container can't have a device node is one of them.
        log: gets each line that tar said.

    Returns:
        the number of members.

    Raises:
        TarError: damaged, cut short, or with members that must not be unpacked; what came before is unpacked.
        PveError: tar failed.
    """
    throttle = Throttle(limit)
    with pipe() as (outlet, inlet):
        widen_pipe(inlet.fileno())
        with _running(argv, outlet.fileno(), -1, log, strict=not ignore_errors):
            outlet.close()
            count, whole = 0, True
            try:
                for piece, members in _checked(fd, Rules(devices=devices or ignore_errors)):  # tar can't make them
                    throttle.pay(len(piece))
                    write_all(inlet.fileno(), piece)
                    count += members
            except BrokenPipeError:
                whole = False  # its exit status tells why
            inlet.close()
    if not whole:
        raise PveError(_CUT_OFF)
    return count


def check(fd: int, *, devices: bool) -> int:
    """Look at all members of a stream without unpacking; returns their number. Raises like ``extract``."""
    return sum(members for _, members in _checked(fd, Rules(devices=devices)))


def _checked(fd: int, rules: Rules) -> Iterator[tuple[memoryview, int]]:
    """The stream in pieces whose members were checked, and how many these are. The end mark is part of it."""
    widen_pipe(fd)
    scanner = Scanner()
    buffer = memoryview(bytearray(MIB))
    while got := read_full(fd, buffer):
        if scanner.ended:
            continue  # padding; read nevertheless, so that the decompressor sees its own end
        count = 0
        for member in scanner.feed(buffer[:got]):
            rules.check(member)
            count += 1
        yield buffer[: scanner.used], count
        if scanner.ended:
            yield memoryview(bytes(2 * RECORD)), 0
    scanner.close()


def read_configs(fd: int) -> tuple[str, str]:
    """The container's configuration and its firewall rules (empty when there are none) out of an archive.

    Only the first members are read, where our own archives and those of Proxmox VE have them; an archive without
    a configuration is read to its end.

    Raises:
        NotFound: no configuration in it.
        TarError: a damaged archive.
    """
    found: dict[str, str] = {}
    for member in _members(fd, (CONFIG, FIREWALL)):
        if member.data is not None:
            found.setdefault(member.name, member.data.decode("utf-8", "surrogateescape"))
        elif CONFIG in found and not member.name.startswith("./etc/vzdump"):
            break
        if len(found) == 2:
            break
    if CONFIG not in found:
        raise NotFound(f"the archive contains no '{CONFIG}': not a container backup")
    return found[CONFIG], found.get(FIREWALL, "")


def _members(fd: int, wanted: Collection[str]) -> Iterator[Member]:
    scanner = Scanner(wanted)
    buffer = memoryview(bytearray(65536))
    while not scanner.ended and (got := read_full(fd, buffer)):
        yield from scanner.feed(buffer[:got])
    scanner.close()
