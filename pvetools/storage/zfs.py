"""ZFS: the volumes of a storage are the children of one dataset. Lists, properties, snapshots, clones, streams.

The programs run where the pool is: on this host, or on a server that the caller reaches.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pvetools.storage.driver import Snapshot, Space
from pvetools.system import run
from pvetools.system.errors import PveError, RunError

# Runs a program where the pool is and gives what it says.
Caller = Callable[[Sequence[str]], str]

BASE_SNAPSHOT = "__base__"  # what the linked clones of a base volume lie on
FILE_SYSTEM, VOLUME = "filesystem", "volume"
# so that containers find POSIX ACLs, and extended attributes cost no extra files
_FOLDER_OPTIONS = ("-o", "acltype=posixacl", "-o", "xattr=sa")
_COLUMNS = ("name", "type", "used", "creation", "origin", "volsize", "refquota", "mountpoint", "mounted")
_LIST = ("zfs", "list", "-Hp", "-t", f"{FILE_SYSTEM},{VOLUME}", "-o", ",".join(_COLUMNS))
_LIST_WHOLE = (
    "zfs", "list", "-Hp", "-d", "1", "-t", f"{FILE_SYSTEM},{VOLUME},snapshot", "-s", "createtxg",
    "-o", ",".join((*_COLUMNS, "clones")),
)  # fmt: skip
_DATASET = re.compile(r"[a-zA-Z][\w.:-]*(?:/[\w.:-]+)*", re.ASCII)
_FULL_TEXT = ("out of space", "size is greater than available space", "quota exceeded")
_BUSY_TEXT = ("dataset is busy", "pool or dataset is busy", "target is busy")
_PATIENCE = 10.0  # udev and others look into a new volume for a moment
# what a stream says about the place of a file system in the host's tree is not ours to follow
_NOT_RECEIVED = ("mountpoint", "canmount", "sharenfs", "sharesmb")


class Row(NamedTuple):
    """A dataset: its last name, sizes in bytes, times in seconds since the epoch; what it does not have is empty."""

    name: str
    type: str
    used: int
    created: int
    origin: str = ""
    size: int = 0  # of volumes; the limit of file systems
    mountpoint: str = ""
    mounted: bool = False


class Whole(NamedTuple):
    """A dataset with its snapshots, the datasets that lie on these, and those that lie below it (by full names)."""

    row: Row
    snapshots: list[Snapshot]
    clones: list[str]
    below: list[str]


def here(argv: Sequence[str]) -> str:
    """Run a program on this host."""
    return run.run(argv).stdout


def check_dataset(name: str) -> str:
    """Refuse names of pools and datasets that could mean something else to the tools.

    Raises:
        PveError: malformed.
    """
    if not _DATASET.fullmatch(name) or {".", ".."} & set(name.split("/")) or len(name) > 200:
        raise PveError(f"invalid ZFS pool '{name}', expected POOL or POOL/DATASET")
    return name


def parse_rows(text: str, parent: str) -> list[Row]:
    """The children of a dataset in the output of ``zfs list -Hp``; the dataset itself and deeper ones are left out."""
    return [_row(words) for words in _table(text, len(_COLUMNS)) if words[0].rpartition("/")[0] == parent]


def _table(text: str, columns: int) -> list[list[str]]:
    """The lines that have so many columns; a server's shell may say other things before."""
    return [words for line in text.splitlines() if len(words := line.split("\t")) == columns]


def _row(words: Sequence[str]) -> Row:
    full, type_, used, created, origin, volsize, refquota, mountpoint, mounted = words
    size = _number(volsize if type_ == VOLUME else refquota)
    place = mountpoint if mountpoint.startswith("/") else ""
    name = full.rpartition("/")[2]
    return Row(name, type_, _number(used), _number(created), _value(origin), size, place, mounted == "yes")


def parse_whole(text: str, dataset: str) -> Whole:
    """A dataset with all that hangs on it, in the output of ``zfs list -Hp -d 1``, oldest first."""
    row, snapshots, clones, below = None, list[Snapshot](), list[str](), list[str]()
    for *words, upon in _table(text, len(_COLUMNS) + 1):
        full, type_, created = words[0], words[1], words[3]
        if type_ == "snapshot":
            snapshots.append(Snapshot(full.partition("@")[2], _number(created)))
            clones += [name for name in _value(upon).split(",") if name]
        elif full == dataset:
            row = _row(words)
        else:
            below.append(full)
    if row is None:
        raise PveError(f"ZFS does not tell about dataset '{dataset}'")
    return Whole(row, snapshots, clones, below)


def _value(text: str) -> str:
    return "" if text == "-" else text


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else 0


def is_full(error: RunError) -> bool:
    """Whether a pool or a quota has no room for what was asked for."""
    return any(text in error.stderr for text in _FULL_TEXT)


def is_busy(error: RunError) -> bool:
    """Whether somebody uses a dataset."""
    return any(text in error.stderr for text in _BUSY_TEXT)


def is_missing(error: RunError) -> bool:
    """Whether a pool or dataset is not there."""
    return "does not exist" in error.stderr or "no such pool" in error.stderr


# Streams.


def send_argv(
    dataset: str, snapshot: str, base: str = "", with_snapshots: bool = False, *, raw: bool = False
) -> list[str]:
    """The command that writes a dataset's state at a snapshot to its output, with the dataset's properties.

    Args:
        dataset: POOL/.../NAME.
        snapshot: the state to send.
        base: an older snapshot that the receiver has: only what has changed since is sent.
        with_snapshots: the snapshots up to this one too (after ``base``, where there is one).
        raw: as it lies on the disks, for encrypted datasets: the receiver does not learn the content.
    """
    words = ["zfs", "send", "-Rp" if with_snapshots else "-p"]
    words += ["-w"] if raw else []
    if base:
        words += ["-I" if with_snapshots else "-i", f"@{base}"]
    return [*words, "--", f"{dataset}@{snapshot}"]


def receive_argv(dataset: str) -> list[str]:
    """The command that makes a dataset from the stream on its input, or brings one to the state that the stream has.

    What was written to an existing dataset since its last snapshot is lost; a new file system is not mounted.
    """
    ignored = [word for name in _NOT_RECEIVED for word in ("-x", name)]
    return ["zfs", "receive", "-F", "-u", *ignored, "--", dataset]


# One dataset and its children.


@dataclass(frozen=True, slots=True)
class Pool:
    """A dataset whose children are volumes. Errors are those of the programs: RunError."""

    dataset: str
    call: Caller = here

    def of(self, name: str, snapshot: str = "") -> str:
        """Full name of a child or of its snapshot."""
        return f"{self.dataset}/{name}" + (f"@{snapshot}" if snapshot else "")

    def property(self, name: str, child: str = "") -> str:
        """A property of the dataset, or of a child."""
        target = self.of(child) if child else self.dataset
        said = self.call(["zfs", "get", "-Hp", "-o", "value", name, "--", target])
        return said.strip().rpartition("\n")[2]

    def space(self) -> Space:
        """What is used and free."""
        said = self.call(["zfs", "get", "-Hp", "-o", "property,value", "used,available", "--", self.dataset])
        found = {words[0]: _number(words[1]) for words in _table(said, 2)}
        used, available = found.get("used", 0), found.get("available", 0)
        return Space(used + available, used, available)

    def rows(self) -> list[Row]:
        """All children that are file systems or volumes."""
        return parse_rows(self.call([*_LIST, "-d", "1", "--", self.dataset]), self.dataset)

    def row(self, name: str) -> Row | None:
        """One child; None when it is not there."""
        text = self._said_of([*_LIST, "--", self.of(name)])
        return next(iter(parse_rows(text, self.dataset)), None)

    def whole(self, name: str) -> Whole | None:
        """One child with all that hangs on it; None when it is not there."""
        text = self._said_of([*_LIST_WHOLE, "--", self.of(name)])
        return parse_whole(text, self.of(name)) if text else None

    def _said_of(self, argv: Sequence[str]) -> str:
        """What a program says about a dataset; nothing when that is not there."""
        try:
            return self.call(argv)
        except RunError as error:
            if is_missing(error):
                return ""
            raise

    def make_volume(self, name: str, size: int, blocksize: str = "", *, sparse: bool = False, sync: str = "") -> None:
        """Make a volume; one that is not sparse reserves its size."""
        options = ["-s"] if sparse else []
        options += ["-b", blocksize] if blocksize else []
        options += ["-o", f"sync={sync}"] if sync else []
        self.call(["zfs", "create", *options, "-V", str(size), "--", self.of(name)])

    def make_folder(self, name: str, limit: int) -> None:
        """Make a file system that holds ``limit`` bytes at most; 0: what the pool has."""
        self.call(["zfs", "create", *_FOLDER_OPTIONS, "-o", f"refquota={limit or 'none'}", "--", self.of(name)])

    def make_place(self, name: str) -> None:
        """Make a dataset that holds nothing but others and is not mounted."""
        self.call(["zfs", "create", "-o", "canmount=off", "--", self.of(name)])

    def set_size(self, row: Row, size: int) -> None:
        """Change the size of a volume or the limit of a file system."""
        key = "volsize" if row.type == VOLUME else "refquota"
        self.call(["zfs", "set", f"{key}={size}", self.of(row.name)])

    def destroy(self, name: str) -> None:
        """Remove a child with its snapshots."""
        self._patiently(["zfs", "destroy", "-r", "--", self.of(name)])

    def rename(self, name: str, new: str) -> None:
        """Give a child another name."""
        self._patiently(["zfs", "rename", "--", self.of(name), self.of(new)])

    def mount(self, name: str) -> None:
        """Mount a file system at its mount point."""
        self.call(["zfs", "mount", self.of(name)])

    def unmount(self, name: str) -> None:
        """Unmount a file system."""
        self._patiently(["zfs", "unmount", self.of(name)])

    def snapshot(self, name: str, snapshot: str) -> None:
        """Make a snapshot."""
        self.call(["zfs", "snapshot", "--", self.of(name, snapshot)])

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Remove a snapshot; one that clones lie on stays."""
        self._patiently(["zfs", "destroy", "--", self.of(name, snapshot)])

    def rollback(self, name: str, snapshot: str, *, newer: bool = False) -> None:
        """Bring a child to the state of its newest snapshot, or of an older one: then those that are newer go."""
        self._patiently(["zfs", "rollback", *(["-r"] if newer else []), "--", self.of(name, snapshot)])

    def clone(self, base: Row, name: str) -> None:
        """Make a linked clone of a base volume."""
        options = [*_FOLDER_OPTIONS, "-o", f"refquota={base.size or 'none'}"] if base.type == FILE_SYSTEM else []
        self.call(["zfs", "clone", *options, "--", self.of(base.name, BASE_SNAPSHOT), self.of(name)])

    def _patiently(self, argv: Sequence[str]) -> None:
        """Run what fails while somebody uses a dataset, again for a while: it may be for a moment only."""
        deadline, pause = time.monotonic() + _PATIENCE, 0.05
        while True:
            try:
                self.call(argv)
            except RunError as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            else:
                return


# Pools.


def is_imported(pool: str) -> bool:
    """Whether this host has a pool at work."""
    return Path("/proc/spl/kstat/zfs", pool).is_dir()


def import_pool(pool: str) -> None:
    """Import a pool of this host, unless it is imported already.

    Raises:
        PveError: it cannot be imported.
    """
    if not is_imported(pool):
        run.run(["zpool", "import", "-d", "/dev/disk/by-id", "-o", "cachefile=none", pool])
