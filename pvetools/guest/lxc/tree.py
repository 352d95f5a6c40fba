"""Files of a container, touched from the host without ever leaving the container's tree.

Symbolic links are resolved inside the tree, as the container itself would see them. Every step is an ``openat``
without following links, so that a running container cannot redirect one half-way.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from pvetools.guest.lxc.idmap import IdMap
from pvetools.system.errors import NotFound, PveError

MAX_LINKS = 40
MAX_READ = 16 << 20


class GuestTree:
    """The tree below a directory of the host. Paths are those of the container."""

    def __init__(self, root: Path | str, ids: IdMap) -> None:
        self.ids = ids
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> GuestTree:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    # -- finding ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _at(self, path: str, *, follow: bool) -> Iterator[tuple[int, str]]:
        """The open directory that holds the last part of a path, and that part (``.`` for the root itself)."""
        stack = [os.dup(self._root)]
        try:
            yield self._walk(path, stack, follow=follow)
        finally:
            for fd in stack:
                os.close(fd)

    def _walk(self, path: str, stack: list[int], *, follow: bool) -> tuple[int, str]:
        todo = deque(_parts(path))
        links = 0
        while todo:
            part = todo.popleft()
            if part == "..":
                if len(stack) > 1:
                    os.close(stack.pop())
                continue
            target = _link_target(part, stack[-1]) if todo or follow else None
            if target is not None:
                links += 1
                if links > MAX_LINKS:
                    raise PveError(f"too many symbolic links in the container's path '{path}'")
                if target.startswith("/"):
                    _cut(stack)
                todo.extendleft(reversed(_parts(target)))
            elif todo:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                stack.append(os.open(part, flags, dir_fd=stack[-1]))
            else:
                return stack[-1], part
        return stack[-1], "."

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result | None:
        """What is there, or None."""
        try:
            with self._at(path, follow=follow) as (folder, name):
                return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self, path: str) -> bool:
        """Whether a path leads to anything."""
        return self.stat(path) is not None

    def is_dir(self, path: str) -> bool:
        """Whether a path leads to a directory."""
        found = self.stat(path)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def names(self, path: str) -> list[str]:
        """Sorted names in a directory; none when there is no such directory."""
        try:
            with self._at(path, follow=True) as (folder, name):
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return sorted(os.listdir(fd))  # noqa: PTH208 - a descriptor
        finally:
            os.close(fd)

    def link(self, path: str) -> str | None:
        """Where a symbolic link points to, or None when the path is not one."""
        try:
            with self._at(path, follow=False) as (folder, name):
                return _link_target(name, folder)
        except (FileNotFoundError, NotADirectoryError):
            return None

    # -- reading ---------------------------------------------------------------------------------------------------

    def open_read(self, path: str) -> int:
        """A descriptor of a regular file, for reading.

        Raises:
            NotFound: nothing there. PveError: not a regular file.
        """
        try:
            with self._at(path, follow=True) as (folder, name):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no such file in the container: '{path}'") from None
        except OSError as error:
            raise PveError(f"can't open '{path}' in the container: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise PveError(f"'{path}' in the container is not a regular file")
        return fd

    def read(self, path: str) -> str | None:
        """Text of a file, or None when there is none.

        Raises:
            PveError: not a regular file, or a suspiciously large one.
        """
        try:
            fd = self.open_read(path)
        except NotFound:
            return None
        with os.fdopen(fd, "rb") as file:
            data = file.read(MAX_READ + 1)
        if len(data) > MAX_READ:
            raise PveError(f"'{path}' in the container is larger than {MAX_READ >> 20} MiB")
        return data.decode("utf-8", "surrogateescape")

    # -- changing --------------------------------------------------------------------------------------------------

    def write(self, path: str, text: str, mode: int | None = None) -> None:
        """Replace a file by a new one; a link of that name is replaced, not followed.

        Owner and mode of a regular file are kept; a new one belongs to the container's root (mode 0644).
        """
        with self.replacing(path, mode) as fd, os.fdopen(os.dup(fd), "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))

    @contextlib.contextmanager
    def replacing(self, path: str, mode: int | None = None, owner: tuple[int, int] | None = None) -> Iterator[int]:
        """A descriptor to write a new file; it takes the name when the block ends well.

        Args:
            path: the file, whose directory must exist.
            mode: permissions; those of the file that is replaced, or 0644.
            owner: ids inside the container; those of the file that is replaced, or root.
        """
        with self._parent(path) as (folder, name):
            before = _regular(name, folder)
            beside = f".{name[:200]}.pvetools-{os.getpid()}"
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                         dir_fd=folder)  # fmt: skip
            try:
                yield fd
                ids = before and (before.st_uid, before.st_gid)
                os.fchown(fd, *(self._host_ids(owner) if owner else ids or self.ids.root))
                os.fchmod(fd, mode if mode is not None else stat.S_IMODE(before.st_mode) if before else 0o644)
                os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(beside, dir_fd=folder)
                raise
            finally:
                os.close(fd)

    def _host_ids(self, owner: tuple[int, int]) -> tuple[int, int]:
        return self.ids.uid(owner[0]), self.ids.gid(owner[1])

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        try:
            with self._at(path, follow=False) as found:
                yield found
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"no directory in the container for '{path}': {error.strerror}") from None
        except OSError as error:
            raise PveError(f"can't write '{path}' in the container: {error.strerror}") from None

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory and those above it, where they lack; new ones belong to the container's root."""
        done = ""
        for part in _parts(path):
            done += f"/{part}"
            if self.stat(done) is not None:
                continue
            with self._parent(done) as (folder, name):
                os.mkdir(name, 0o700, dir_fd=folder)
                os.chown(name, *self.ids.root, dir_fd=folder, follow_symlinks=False)
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                os.fchmod(fd, mode)
                os.close(fd)

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link, in place of a file or link of that name."""
        with self._parent(path) as (folder, name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            os.symlink(target, name, dir_fd=folder)
            os.chown(name, *self.ids.root, dir_fd=folder, follow_symlinks=False)

    def remove(self, path: str) -> None:
        """Remove a file or link, if it is there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._at(path, follow=False) as (folder, name):
            os.unlink(name, dir_fd=folder)

    @contextlib.contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A descriptor (O_PATH) of a directory.

        Raises:
            PveError: there is none.
        """
        try:
            with self._at(path, follow=True) as (folder, name):
                fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            raise PveError(f"no directory '{path}' in the container: {error.strerror}") from None
        try:
            yield fd
        finally:
            os.close(fd)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part and part != "."]


def _cut(stack: list[int]) -> None:
    while len(stack) > 1:
        os.close(stack.pop())


def _link_target(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:  # not a link, or not there: the next step says so
        return None


def _regular(name: str, folder: int) -> os.stat_result | None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(21, "Is a directory")
    return found if stat.S_ISREG(found.st_mode) else None
