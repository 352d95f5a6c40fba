"""The members of a tar stream, seen while it passes by, and the rules for what may be unpacked.

GNU tar does the unpacking; this looks at each member header before tar gets it, so that a bad archive is refused with
a plain sentence before anything of that member is written. The data itself is only skipped over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from pvetools.system.errors import PveError

RECORD = 512
MAX_META = 1 << 20  # long names, pax records (extended attributes) and the files that are read here
Kind = Literal["file", "hard link", "symlink", "character device", "block device", "directory", "fifo", "label"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file", b"\0": "file", b"7": "file", b"S": "file", b"1": "hard link", b"2": "symlink",
    b"3": "character device", b"4": "block device", b"5": "directory", b"6": "fifo", b"V": "label",
}  # fmt: skip
_EMPTY = bytes(RECORD)


class TarError(PveError):
    """The archive is damaged, or holds something that must not be unpacked."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the archive; ``data`` only for files that were asked for."""

    name: str
    kind: Kind
    link: str
    size: int
    data: bytes | None = None


def _number(raw: bytes) -> int:
    """A numeric header field: octal digits, or base 256 when the top bit is set."""
    if raw[0] & 0x80:
        return int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
    text = raw.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise TarError(f"damaged tar archive: {text!r} is not a number") from None


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_records(raw: bytes) -> dict[str, str]:
    """``LENGTH KEY=VALUE`` lines."""
    records: dict[str, str] = {}
    at = 0
    while at < len(raw) and raw[at]:
        blank = raw.find(b" ", at, at + 20)
        length = int(raw[at:blank]) if blank > at and raw[at:blank].isdigit() else 0
        key, equals, value = raw[blank + 1 : at + length - 1].partition(b"=")
        if not equals or raw[at + length - 1 : at + length] != b"\n":
            raise TarError("damaged tar archive: malformed extended header")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += length
    return records


class Scanner:
    """Parser of a tar stream that arrives in pieces.

    Args:
        wanted: names of files whose content is delivered with the member.
    """

    def __init__(self, wanted: Collection[str] = ()) -> None:
        self._wanted = wanted
        self._skip = 0
        self._meta = b""  # type of the header whose data is being collected
        self._member: Member | None = None  # wanted file whose data is being collected
        self._collected = bytearray()
        self._missing = 0
        self._overrides: dict[str, str] = {}
        self._sparse_map = False
        self._after_map = self._length = 0
        self.ended = False
        self.used = 0

    def feed(self, data: memoryview) -> Iterator[Member]:
        """Members whose header ends in this piece; all pieces but the last have to be multiples of 512 bytes.

        At the end mark ``ended`` is set, and what follows is not looked at. Afterwards ``used`` tells how much of the
        piece belongs to the archive, without the end mark.
        """
        at = self.used = 0
        while at < len(data) and not self.ended:
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at = self.used = at + step
                continue
            if self._missing:
                step = min(self._missing, len(data) - at)
                self._collected += data[at : at + step]
                self._missing -= step
                at += step
                member = None if self._missing else self._finish()
            else:
                member = self._header(bytes(data[at : at + RECORD]))
                at += RECORD
            if not self.ended:
                self.used = at
            if member:
                yield member

    def close(self) -> None:
        """Raises TarError when the stream ended before the archive did."""
        if not self.ended:
            raise TarError("the tar archive is cut short: its end mark is missing")

    def _header(self, raw: bytes) -> Member | None:
        if self._sparse_map:  # continuation of the map of an old GNU sparse file
            self._sparse_map = bool(raw[504])
            if not self._sparse_map:
                self._skip, self._after_map = self._after_map, 0
            return None
        if len(raw) < RECORD:
            raise TarError("the tar archive is cut short within a member header")
        if raw == _EMPTY:
            self.ended = True
            return None
        if _number(raw[148:156]) != sum(raw) - sum(raw[148:156]) + 8 * 32:
            raise TarError("damaged or foreign tar archive: wrong checksum of a member header")
        kind, size = raw[156:157], _number(raw[124:136])
        if kind in b"xgLK":
            self._collect(kind, size)
            return None
        return self._start_member(raw, kind, size)

    def _collect(self, kind: bytes, size: int) -> None:
        if size > MAX_META:
            raise TarError(
                f"tar archive with an extended header of {size} bytes; more than {MAX_META} are not accepted"
            )
        self._meta, self._collected = kind, bytearray()
        self._missing = -(-size // RECORD) * RECORD
        self._length = size

    def _finish(self) -> Member | None:
        """All data of an extended header or of a wanted file is there."""
        raw = bytes(self._collected[: self._length])
        if self._member:
            member, self._member = self._member, None
            return Member(member.name, member.kind, member.link, member.size, raw)
        if self._meta == b"L":
            self._overrides.setdefault("path", _text(raw))
        elif self._meta == b"K":
            self._overrides.setdefault("linkpath", _text(raw))
        elif self._meta == b"x":
            self._overrides.update(_pax_records(raw))
        elif {"path", "linkpath", "size", "GNU.sparse.name"} & _pax_records(raw).keys():
            raise TarError("tar archive with a global header that names files")
        return None

    def _start_member(self, raw: bytes, kind: bytes, size: int) -> Member | None:
        if kind not in _KINDS:
            raise TarError(f"tar archive with a member of unknown type {kind!r}")
        extra, self._overrides = self._overrides, {}
        prefix = _text(raw[345:500]) if raw[257:263] == b"ustar\0" else ""
        name = _text(raw[:100])
        name = extra.get("GNU.sparse.name") or extra.get("path") or (f"{prefix}/{name}" if prefix else name)
        link = extra.get("linkpath") or _text(raw[157:257])
        if "size" in extra:
            size = int(extra["size"]) if extra["size"].isdigit() else -1
        if size < 0:
            raise TarError(f"damaged tar archive: wrong size of member '{name}'")
        stored = 0 if kind == b"1" else -(-size // RECORD) * RECORD
        shown = "directory" if _KINDS[kind] == "file" and name.endswith("/") else _KINDS[kind]
        member = Member(name, shown, link, size)
        if shown == "file" and name in self._wanted and kind != b"S":
            self._collect(b"", size)
            self._member = member
            return None if size else self._finish()
        if kind == b"S" and raw[482]:
            self._sparse_map, self._after_map = True, stored
        else:
            self._skip = stored
        return member


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _leaves_tree(path: str) -> bool:
    return path.startswith("/") or ".." in path.split("/")


class Rules:
    """What may be unpacked into a container's root folder.

    Args:
        devices: whether device nodes are allowed; an unprivileged container cannot have any. Those below ``dev`` are
            never unpacked and so always fine.
    """

    def __init__(self, *, devices: bool) -> None:
        self._devices = devices
        self._links: set[str] = set()  # symlinks that lead out of their folder

    def check(self, member: Member) -> None:
        """Look at the next member.

        Raises:
            TarError: it or what it links to lies outside of the archive's tree, or it is a forbidden device node.
        """
        name = member.name
        if _leaves_tree(name):
            raise TarError(f"archive member '{name}' points outside of the container's root folder")
        parts = _parts(name)
        self._check_parents(name, parts)
        if member.kind == "symlink" and _leaves_tree(member.link):
            self._links.add("/".join(parts))
        elif member.kind == "hard link":
            self._check_hard_link(member, "/".join(parts))
        elif member.kind in ("character device", "block device") and not self._devices and parts[:1] != ["dev"]:
            raise TarError(f"archive member '{name}' is a {member.kind}, which an unprivileged container cannot have")

    def _check_parents(self, name: str, parts: list[str]) -> None:
        """A member must not be reached through a link that leads elsewhere: the data would land there."""
        if not self._links:
            return
        path = ""
        for part in parts[:-1]:
            path = f"{path}/{part}" if path else part
            if path in self._links:
                raise TarError(f"archive member '{name}' lies behind the link '{path}', which points elsewhere")

    def _check_hard_link(self, member: Member, path: str) -> None:
        if _leaves_tree(member.link):
            raise TarError(
                f"archive member '{member.name}' is a hard link to '{member.link}' "
                "outside of the container's root folder"
            )
        target = _parts(member.link)
        self._check_parents(member.link, target)
        if "/".join(target) in self._links:
            self._links.add(path)
