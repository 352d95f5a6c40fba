"""Which user and group ids of the host stand for those of a container."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pvetools.config.guest import is_on
from pvetools.system import files
from pvetools.system.errors import PveError

FIRST, COUNT = 100000, 65536
SUBID_FILES = {"u": Path("/etc/subuid"), "g": Path("/etc/subgid")}
_WORD = {"u": "uid", "g": "gid"}
_ENTRY = re.compile(r"([ugb])\s+(\d{1,10})\s+(\d{1,10})\s+([1-9]\d{0,9})", re.ASCII)


class Entry(NamedTuple):
    """``length`` ids from ``inside`` in the container are those from ``outside`` on the host."""

    kind: str
    inside: int
    outside: int
    length: int

    def __str__(self) -> str:
        return f"{self.kind} {self.inside} {self.outside} {self.length}"


class IdMap(NamedTuple):
    """The map of a container; without entries ids are the same inside and outside (privileged)."""

    entries: tuple[Entry, ...] = ()

    def _to_host(self, kind: str, ident: int) -> int:
        if not self.entries:
            return ident
        for entry in self.entries:
            if entry.kind == kind and entry.inside <= ident < entry.inside + entry.length:
                return entry.outside + ident - entry.inside
        raise PveError(f"{_WORD[kind]} {ident} is not mapped into the container")

    def uid(self, ident: int) -> int:
        """The host's id of a user of the container.

        Raises:
            PveError: no entry covers it.
        """
        return self._to_host("u", ident)

    def gid(self, ident: int) -> int:
        """The host's id of a group of the container.

        Raises:
            PveError: no entry covers it.
        """
        return self._to_host("g", ident)

    @property
    def root(self) -> tuple[int, int]:
        """Host ids of the container's root."""
        return self.uid(0), self.gid(0)

    def command(self) -> list[str]:
        """Words to put before a command that is to run as the container's root, in a user namespace.

        The command is killed when the program that makes the namespace is, which itself would leave it running.
        """
        if not self.entries:
            return []
        from pvetools.system.run import TIED

        maps = [f"{e.kind}:{e.inside}:{e.outside}:{e.length}" for e in self.entries]
        return ["lxc-usernsexec", *(word for text in maps for word in ("-m", text)), "--", *TIED, "--"]


DEFAULT = IdMap((Entry("u", 0, FIRST, COUNT), Entry("g", 0, FIRST, COUNT)))


def of(section: Mapping[str, str], raw: Iterable[tuple[str, str]]) -> IdMap:
    """The map of a container: its raw ``lxc.idmap`` lines, or the usual one when it is unprivileged.

    Raises:
        PveError: a malformed or ambiguous line.
    """
    texts = [value for key, value in raw if key in ("lxc.idmap", "lxc.id_map")]
    entries = tuple(entry for text in texts for entry in parse(text))
    check(entries)
    if entries:
        return IdMap(entries)
    return DEFAULT if is_on(section, "unprivileged") else IdMap()


def parse(text: str) -> list[Entry]:
    """One line ``u|g|b INSIDE OUTSIDE COUNT``; ``b`` stands for both.

    Raises:
        PveError: malformed.
    """
    match = _ENTRY.fullmatch(text.strip())
    if not match:
        raise PveError(f"invalid map entry '{text}': expected 'u' or 'g', first id inside, first id outside, count")
    inside, outside, count = (int(match[part]) for part in (2, 3, 4))
    if max(inside, outside) + count > 1 << 32:
        raise PveError(f"invalid map entry '{text}': ids end at {(1 << 32) - 1}")
    return [Entry(kind, inside, outside, count) for kind in ("ug" if match[1] == "b" else match[1])]


def check(entries: Iterable[Entry]) -> None:
    """Every id must be mapped at most once, on both sides.

    Raises:
        PveError: naming both entries.
    """
    for kind, word in _WORD.items():
        own = [entry for entry in entries if entry.kind == kind]
        for side, name in (("inside", "container"), ("outside", "host")):
            for before, entry in pairwise(sorted(own, key=lambda entry: int(getattr(entry, side)))):
                start = getattr(entry, side)
                if start < getattr(before, side) + before.length:
                    raise PveError(
                        f"invalid map entry '{entry}': {name} {word} {start} is also mapped by entry '{before}'"
                    )


def check_host(ids: IdMap, places: Mapping[str, Path] = SUBID_FILES) -> None:
    """Root must be allowed to use the host's ids of a map (``/etc/subuid``, ``/etc/subgid``).

    Raises:
        PveError: with the line to add.
    """
    for kind, path in places.items():
        allowed = _allowed(path)
        for entry in ids.entries:
            if entry.kind == kind and not _covered(entry.outside, entry.outside + entry.length, allowed):
                raise PveError(
                    f"{path} does not let root use the {_WORD[kind]}s {entry.outside} to "
                    f"{entry.outside + entry.length - 1}; add the line: root:{entry.outside}:{entry.length}"
                )


def _allowed(path: Path) -> list[tuple[int, int]]:
    """Ranges of root, sorted, as (first, behind the last)."""
    found = []
    for line in (files.read_text(path) or "").splitlines():
        match = re.fullmatch(r"(?:root|0):(\d+):(\d+)\s*", line, re.ASCII)
        if match:
            found.append((int(match[1]), int(match[1]) + int(match[2])))
    return sorted(found)


def _covered(first: int, end: int, ranges: list[tuple[int, int]]) -> bool:
    for low, high in ranges:
        if low <= first < high:
            first = high
    return first >= end
