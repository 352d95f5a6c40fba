"""File systems of servers that storages mount: what is mounted where, mounting once, unmounting what is ours."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pvetools.system import lock, paths, run
from pvetools.system.errors import PveError, Refused

# A server that answered a moment ago needs no longer than this; mount.nfs alone would try for two minutes.
MOUNT_TIMEOUT = 25.0
UMOUNT_TIMEOUT = 20.0
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount as the kernel shows it: where, what of (a server's folder, a device), and the file system's type.

    ``device`` is the number of the file system, ``root`` what of it is shown there.
    """

    point: str
    source: str
    kind: str
    options: str = ""
    device: str = ""
    root: str = ""


class Wanted(NamedTuple):
    """What a storage wants to have mounted.

    Args:
        point: where.
        source: what, in the words of ``mount``.
        kind: type for ``mount -t``, which needs the program ``mount.TYPE``.
        options: mount options, never with a secret in them.
        create: make the mount point when it is missing.
        ours: whether a mount is the wanted one; default: its type begins with ``kind`` and its source is the same.
        command: program and words in place of ``mount``, for file systems that have their own.
    """

    point: Path
    source: str
    kind: str
    options: tuple[str, ...] = ()
    create: bool = True
    ours: Callable[[Mount], bool] | None = None
    command: tuple[str, ...] = ()

    def fits(self, mount: Mount) -> bool:
        """Whether a mount is the wanted one."""
        if self.ours:
            return self.ours(mount)
        return mount.kind.startswith(self.kind) and mount.source.rstrip("/") == self.source.rstrip("/")

    def words(self) -> list[str]:
        """The command that mounts it."""
        if self.command:
            return list(self.command)
        options = ["-o", ",".join(self.options)] if self.options else []
        return ["mount", "-t", self.kind, self.source, str(self.point), *options]


def unescaped(word: str) -> str:
    """A word of one of the kernel's lists of mounts or swap spaces as it really is."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), word)


def parse(text: str) -> list[Mount]:
    """The lines of ``mountinfo``; of several mounts at one place the last one is on top. Damaged lines are skipped."""
    found: list[Mount] = []
    for line in text.split("\n"):
        before, separator, after = line.partition(" - ")
        words, more = before.split(" "), after.split(" ")
        if separator and len(words) >= 6 and len(more) >= 2:
            options = more[2] if len(more) > 2 else ""
            place, root = unescaped(words[4]), unescaped(words[3])
            found.append(Mount(place, unescaped(more[1]), more[0], options, words[2], root))
    return found


def every(pid: str = "self") -> list[Mount]:
    """All mounts that a process sees."""
    return parse(Path(f"/proc/{pid}/mountinfo").read_text("utf-8", "surrogateescape"))


def everywhere() -> Iterator[tuple[str, list[Mount]]]:
    """A process of each mount namespace, ourselves first, and what it sees; a container has mounts of its own."""
    seen = set[str]()
    for pid in ("self", *(folder.name for folder in Path("/proc").glob("[1-9]*"))):
        with contextlib.suppress(OSError):  # it ends meanwhile
            space = os.readlink(f"/proc/{pid}/ns/mnt")  # noqa: PTH115 - there are thousands
            if space not in seen:
                seen.add(space)
                yield pid, every(pid)


def at(point: Path) -> Mount | None:
    """What is mounted exactly there, without touching it: its server may hang."""
    mounts = {mount.point: mount for mount in every()}
    place = f"{os.path.realpath(point.parent).rstrip('/')}/{point.name}"
    return mounts.get(place) or mounts.get(os.path.realpath(point))


def attach(storage: str, wanted: Wanted) -> None:
    """Mount a storage's file system unless it is mounted.

    Raises:
        Refused: something else is mounted there. PveError: there is no such folder, the server refuses, it takes too
            long.
    """
    if _is_attached(storage, wanted):
        return
    with _mounting(storage) as held:
        if not _is_attached(storage, wanted):
            _mount(storage, wanted, held)


def _mounting(storage: str) -> contextlib.AbstractContextManager[int]:
    """Two that mount at once would mount twice, one over the other."""
    place = paths.lock_dir() / f"mount-{storage}.lock"
    return lock.handed(place, MOUNT_TIMEOUT + 5, what=f"mounting of storage '{storage}'")


def _is_attached(storage: str, wanted: Wanted) -> bool:
    mount = at(wanted.point)
    if mount and not wanted.fits(mount):
        raise Refused(
            f"storage '{storage}': '{wanted.point}' is the mount of '{mount.source}' ({mount.kind}), not of "
            f"'{wanted.source}'; unmount it first"
        )
    return mount is not None


def _mount(storage: str, wanted: Wanted, held: int) -> None:
    with contextlib.ExitStack() as undo:
        _make_point(storage, wanted, undo)
        # A program that outlives this process keeps the lock until it has mounted; one that becomes a daemon must not.
        inherited = () if wanted.command else (held,)
        if not wanted.command:
            run.require(f"mount.{wanted.kind}")
        try:
            run.run(wanted.words(), timeout=MOUNT_TIMEOUT, pass_fds=inherited)
        except PveError as error:
            raise PveError(f"storage '{storage}': can't mount '{wanted.source}': {_reason(error)}") from error
        if not _is_attached(storage, wanted):
            raise PveError(f"storage '{storage}': '{wanted.source}' is still not mounted")
        undo.pop_all()


def _reason(error: PveError) -> str:
    """The last line that the program said; those before repeat the command line or give general advice."""
    said = getattr(error, "stderr", "") or str(error)
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("Refer to the ")]
    return lines[-1].strip() if lines else str(error)


def _make_point(storage: str, wanted: Wanted, undo: contextlib.ExitStack) -> None:
    point = wanted.point
    if point.is_dir():
        return
    if not wanted.create:
        raise PveError(f"unable to activate storage '{storage}' - directory '{point}' does not exist")
    try:
        point.mkdir(parents=True)
    except OSError as error:
        raise PveError(f"unable to activate storage '{storage}' - can't make '{point}': {error.strerror}") from None
    undo.callback(drop, point)


def drop(point: Path) -> None:
    """Remove a mount point that is of no more use."""
    with contextlib.suppress(OSError):
        point.rmdir()


def detach(storage: str, wanted: Wanted) -> None:
    """Unmount a storage's file system; one that is not the wanted one stays.

    Raises:
        PveError: somebody uses it, or it takes too long.
    """
    with _mounting(storage):
        mount = at(wanted.point)
        if mount is None or not wanted.fits(mount):
            return
        _unmount(storage, wanted.point)
        if wanted.point.parent == paths.mount_dir():
            drop(wanted.point)


def clear(storage: str, point: Path) -> None:
    """Unmount whatever is mounted at a place that is a storage's own.

    Raises:
        PveError: as ``detach``.
    """
    with _mounting(storage):
        while at(point):
            _unmount(storage, point)


def _unmount(storage: str, point: Path) -> None:
    try:
        run.run(["umount", str(point)], timeout=UMOUNT_TIMEOUT)
    except PveError as error:
        raise PveError(f"storage '{storage}': can't unmount '{point}': {_reason(error)}") from error
