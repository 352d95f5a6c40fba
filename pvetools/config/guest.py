"""One reader and writer for the configuration files of virtual machines and containers.

A file has a current part, an optional part of pending changes, special parts (virtual machines) and one part a
snapshot. Reading is lenient: unknown keys and parts are kept, and a file that nobody changed is written back byte
for byte. A changed file is written in the one canonical form: description as ``#`` lines, keys sorted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pvetools.schema.kinds import boolean
from pvetools.system import files, lock, paths
from pvetools.system.errors import ConfigError, DigestMismatch, Exists, Locked, NotFound, PveError

if TYPE_CHECKING:
    from pvetools.schema.core import Record

_KEY = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*):\s*(.+?)\s*", re.ASCII)
_COMMON = re.compile(
    r"^(?!lxc\.|delete:|description:)([A-Za-z][A-Za-z0-9_.-]*): (\S(?:.*\S)?)$", re.ASCII | re.MULTILINE
)
_NAMING = re.compile(r"^(?!unused)(\w+):[ \t]*(\S.*?)\s*$", re.ASCII | re.MULTILINE)
PLACE = re.compile(r"\s*(?:[\w-]+=)?(/.*?|[a-zA-Z][\w.-]*:.+?)\s*", re.ASCII)  # what a part of a line names
_PARTS = re.compile(r"\n(?=\[)")
_RAW_LXC = re.compile(r"(lxc\.[a-z0-9_.-]+)(?::|\s*=)\s*(.*?)\s*", re.ASCII)
_HEADER = re.compile(r"\[([^\]]*)\]\s*", re.ASCII)
_SNAPSHOT = re.compile(r"[a-z][a-z0-9_-]+", re.ASCII | re.IGNORECASE)
_QUICK = re.compile(r"^([A-Za-z][A-Za-z0-9_.-]*):[ \t]*(.*[^\s])", re.ASCII | re.MULTILINE)
_FILE = re.compile(r"([1-9][0-9]{2,8})\.conf", re.ASCII)
# what a writer must escape to be read back as it was: control and non-ASCII bytes, the colon, and a literal escape
_UNSAFE = re.compile(rb"[^\x20-\x39\x3b-\x7e]|%(?=[0-9A-Fa-f]{2})")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BLANK = " \t\r\f\v"

PENDING_HEADER = {"qemu": "PENDING", "lxc": "pve:pending"}
SPECIAL = "special:"
_SPECIAL_NAMES = ("cloudinit", "fleecing")
_WORD = {"qemu": "VM", "lxc": "CT"}
_TOOL = {"qemu": "qm", "lxc": "pct"}


class Section(dict[str, str]):
    """Keys and values of one part of a file; ``lxc`` holds the raw ``lxc.*`` lines of a container in their order."""

    def __init__(self, values: Mapping[str, str] | None = None, lxc: list[tuple[str, str]] | None = None) -> None:
        super().__init__(values or {})
        self.lxc: list[tuple[str, str]] = list(lxc or [])

    def copy(self) -> Section:
        return Section(self, self.lxc)

    def __eq__(self, other: object) -> bool:
        own = self.lxc == (other.lxc if isinstance(other, Section) else [])
        return own and dict.__eq__(self, other) is True

    __hash__ = None

    def __bool__(self) -> bool:
        return len(self) > 0 or bool(self.lxc)


class Problem(NamedTuple):
    """Something wrong in a file: line number (from 1; 0 = unknown) and the reason."""

    line: int
    reason: str


@dataclass
class GuestConfig:
    """A guest's configuration file, parsed.

    ``description`` values end with a line feed when they come from a file. ``unknown`` holds parts with names that
    this version does not know, verbatim. ``problems`` are the damaged lines that a lenient reading left out.
    """

    kind: str
    vmid: int
    path: Path
    digest: str = ""
    current: Section = field(default_factory=Section)
    pending: Section = field(default_factory=Section)
    snapshots: dict[str, Section] = field(default_factory=dict)
    special: dict[str, Section] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    raw: str | None = None

    @property
    def lxc(self) -> list[tuple[str, str]]:
        """The raw ``lxc.*`` lines of the current part."""
        return self.current.lxc

    @property
    def lock(self) -> str:
        """The lock that is written in the file, or an empty string."""
        return self.current.get("lock", "")

    def _content(self) -> tuple[object, ...]:
        special = {name: part for name, part in self.special.items() if part}
        return (self.current, self.pending, self.snapshots, special, self.unknown)

    def touched(self) -> bool:
        """Whether the parts differ from what the file says."""
        if self.raw is None:
            return True
        return parse(self.kind, self.vmid, self.raw, self.path)._content() != self._content()

    def text(self) -> str:
        """The file's text: the very same bytes when nothing was changed, else the canonical form."""
        return self.raw if self.raw is not None and not self.touched() else self.canonical()

    def canonical(self) -> str:
        """The canonical form of the whole file.

        Raises:
            PveError: a value that a file cannot hold (empty, or with a line feed).
        """
        parts = [_section_text(self.current)]
        if self.pending:
            parts.append(f"[{PENDING_HEADER[self.kind]}]\n" + _section_text(self.pending, pending=True))
        parts += [f"[{SPECIAL}{name}]\n" + _section_text(part) for name, part in sorted(self.special.items()) if part]
        parts += [f"[{name}]\n" + "".join(line + "\n" for line in lines) for name, lines in self.unknown.items()]
        parts += [f"[{name}]\n" + _section_text(part) for name, part in sorted(self.snapshots.items())]
        return "\n".join(parts)


def encode_text(text: str) -> str:
    """Escape one line of a description as the file holds it (``:`` becomes ``%3A``)."""
    raw = text.encode("utf-8", "surrogateescape")
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], raw).decode("ascii")


def decode_text(text: str) -> str:
    """Undo the escapes of a description line."""
    raw = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), text.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def _section_text(section: Section, *, pending: bool = False) -> str:
    lines: list[str] = []
    description = section.get("description", "")
    if description:
        lines += ["#" + encode_text(line) for line in description.removesuffix("\n").split("\n")]
    elif pending and "description" in section:
        lines.append("#")  # a description that is to become empty
    for key in sorted(section.keys() - {"description"}):
        lines.append(f"{key}: {_checked(key, section[key])}")
    lines += [f"{key}: {_one_line(key, value)}" for key, value in section.lxc]
    return "".join(line + "\n" for line in lines)


def _checked(key: str, value: str) -> str:
    if not value.strip():
        raise PveError(f"property '{key}' must not be empty; delete it instead")
    return _one_line(key, value)


def _one_line(key: str, value: str) -> str:
    if "\n" in value:
        raise PveError(f"detected invalid newline inside property '{key}'")
    return value


class _Parser:
    """Walks over the lines of one file and fills a GuestConfig."""

    def __init__(self, config: GuestConfig) -> None:
        self.config = config
        self.section: Section | None = config.current
        self.verbatim: list[str] | None = None
        self.seen: set[str] = set()

    def run(self, text: str) -> None:
        number = 1
        for part in _PARTS.split(text):
            lines = part.split("\n")
            if part.startswith("["):
                self.header(number, lines[0])
            if self.verbatim is not None:
                self.verbatim += [line for line in lines[1:] if line]
            elif self.section is not None:
                self.body(number, lines, self.section)
            number += len(lines)

    def body(self, number: int, lines: list[str], section: Section) -> None:
        start = 1 if lines[0].startswith("[") else 0
        while start < len(lines) and lines[start].startswith("#"):
            self.entry(number + start, lines[start], section)
            start += 1
        rest = "\n".join(lines[start:]).strip("\n")
        common = _COMMON.findall(rest)
        if rest and len(common) == rest.count("\n") + 1:  # nothing but ``key: value``: four times faster at once
            section.update(common)
        else:
            for index in range(start, len(lines)):
                self.entry(number + index, lines[index], section)
        if self.config.kind == "qemu" and "cdrom" in section and "ide2" not in section:
            section["ide2"] = section.pop("cdrom")  # the name in old files

    def problem(self, number: int, reason: str) -> None:
        self.config.problems.append(Problem(number, reason))

    def header(self, number: int, line: str) -> None:
        self.section = self.verbatim = None
        match = _HEADER.fullmatch(line)
        if not match:
            self.problem(number, f"unable to parse config: {line}")
            return
        name, label = match[1], self.label(match[1])
        if label in self.seen:
            self.problem(number, f"duplicate section: {label}")
        self.seen.add(label)
        self.open(name, label)

    def label(self, name: str) -> str:
        low = name.lower()
        if low == PENDING_HEADER[self.config.kind].lower():
            return "pending"
        if self.config.kind == "qemu" and low.removeprefix(SPECIAL) in _SPECIAL_NAMES and low.startswith(SPECIAL):
            return low.removeprefix(SPECIAL)
        return name

    def open(self, name: str, label: str) -> None:
        config = self.config
        if label == "pending" and name.lower() == PENDING_HEADER[config.kind].lower():
            config.pending = self.section = Section()
        elif label != name and name.lower().startswith(SPECIAL):
            config.special[label] = self.section = Section()
        elif _SNAPSHOT.fullmatch(name):
            config.snapshots[name] = self.section = Section()
        else:
            config.unknown[name] = self.verbatim = []

    def entry(self, number: int, line: str, section: Section) -> None:
        if not line.strip(_BLANK):
            return
        if line.startswith("#"):
            section["description"] = section.get("description", "") + decode_text(line[1:].rstrip("\r")) + "\n"
            return
        raw = _RAW_LXC.fullmatch(line) if self.config.kind == "lxc" else None
        if raw:
            section.lxc.append((raw[1], raw[2]))
            return
        match = _KEY.fullmatch(line)
        if not match:
            self.problem(number, f"unable to parse config: {line}")
        elif match[1] == "delete" and section is not self.config.pending:
            self.problem(number, f"property 'delete' is only allowed in [{PENDING_HEADER[self.config.kind]}]")
        elif match[1] == "description":  # the form of old files
            section["description"] = decode_text(match[2]).removesuffix("\n") + "\n"
        else:
            section[match[1]] = match[2]


def parse(kind: str, vmid: int, text: str, path: Path | None = None, *, strict: bool = False) -> GuestConfig:
    """Parse the text of a configuration file.

    Raises:
        ConfigError: ``strict`` and a line is damaged or a part stands twice. Without it these are listed in
            ``problems``; of a part that stands twice the last one counts.
    """
    config = GuestConfig(kind, vmid, path or paths.guest_config(kind, vmid), raw=text)
    _Parser(config).run(text)
    if strict and config.problems:
        raise ConfigError(config.path, *config.problems[0])
    return config


def _line_of(config: GuestConfig, part: str, key: str) -> int:
    """Line number of a key, for messages; 0 when the text is not known."""
    found, inside = 0, part == ""
    for number, line in enumerate((config.raw or "").split("\n"), 1):
        if line.startswith("["):
            inside = part != "" and line.rstrip().strip("[]").lower() == part.lower()
        elif inside and line.startswith(f"{key}:"):
            found = number
    return found


def _parts(config: GuestConfig) -> Iterator[tuple[str, Section]]:
    yield "", config.current
    yield PENDING_HEADER[config.kind], config.pending
    yield from config.snapshots.items()


def verify(config: GuestConfig, *, strict: bool = True) -> list[str]:
    """Check the values of all known options against the option tables, for files of foreign origin.

    With ``strict`` the first wrong thing is an error. Without it, wrong values and unknown parts are taken out and
    returned as warnings. Unknown keys are wrong in strict mode and kept otherwise.

    Raises:
        ConfigError: naming file, line and reason.
    """
    found = list(config.problems)
    for name in list(config.unknown):
        line = next((n for n, text in enumerate((config.raw or "").split("\n"), 1) if text.startswith(f"[{name}]")), 0)
        found.append(Problem(line, f"skipping unknown section: '{name}'"))
        if not strict:
            del config.unknown[name]
    for part, section in _parts(config):
        for key, reason in _wrong_values(config.kind, section, unknown=strict).items():
            found.append(Problem(_line_of(config, part, key), f"unable to parse value of '{key}' - {reason}"))
            if not strict:
                del section[key]
    found.sort()
    if strict and found:
        raise ConfigError(config.path, *found[0])
    return [f"{config.path} line {line}: {reason}" for line, reason in found]


def _wrong_values(kind: str, section: Section, *, unknown: bool) -> dict[str, str]:
    from pvetools.schema.core import parse_value

    table = _table(kind)
    wrong: dict[str, str] = {}
    for key, value in section.items():
        row = table.find(table.ALIASES.get(key, key))
        if row is None:
            if unknown and key not in ("delete", "snapstate", "description"):
                wrong[key] = f"unknown setting '{key}'"
            continue
        try:
            parse_value(row[0].kind, value)
        except ValueError as error:
            wrong[key] = str(error)
    return wrong


def _table(kind: str) -> type[Record]:
    if kind == "qemu":
        from pvetools.options.qemu import QemuOptions

        return QemuOptions
    from pvetools.options.lxc import LxcOptions

    return LxcOptions


def load(kind: str, vmid: int, node: str = "") -> GuestConfig:
    """Read a guest's configuration file, leniently.

    Raises:
        NotFound: there is no such guest of that kind on the node (default: this one).
    """
    path = paths.guest_config(kind, vmid, node)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(_missing(kind, vmid, path)) from None
    config = parse(kind, vmid, data.decode("utf-8", "surrogateescape"), path)
    config.digest = digest_of(data)
    return config


def _missing(kind: str, vmid: int, path: Path) -> str:
    sentence = f"Configuration file '{path.relative_to(paths.etc_pve())}' does not exist"
    other = kind_of(vmid)
    if other and other != kind:
        sentence += f"; guest {vmid} is a {'virtual machine' if other == 'qemu' else 'container'}: use {_TOOL[other]}"
    return sentence


def digest_of(data: bytes) -> str:
    """SHA-1 of a file's bytes, by which lost updates are found."""
    import hashlib  # loads OpenSSL: 3 ms that quick commands need not pay

    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def check_digest(config: GuestConfig, digest: str | None) -> None:
    """Compare with the digest that a user handed in; None or empty skips the check.

    Raises:
        DigestMismatch: the file is another one than the user saw.
    """
    if digest and digest != config.digest:
        raise DigestMismatch


def save(config: GuestConfig) -> None:
    """Write a configuration back, atomically; the caller holds the guest's lock. Updates ``digest``.

    Raises:
        DigestMismatch: the file was changed or removed since it was read.
        ConfigError: the file has damaged lines, which a rewrite would lose.
    """
    try:
        now = config.path.read_bytes()
    except FileNotFoundError:
        raise DigestMismatch from None
    if digest_of(now) != config.digest:
        raise DigestMismatch
    if not config.touched():
        return
    if config.problems:
        line, reason = config.problems[0]
        raise ConfigError(config.path, line, f"{reason} (mend the file first: a rewrite would lose this)")
    _write(config, config.canonical())


def _write(config: GuestConfig, text: str) -> None:
    files.write_atomic(config.path, text)
    _remember(config, text)


def _remember(config: GuestConfig, text: str) -> None:
    """Take over what a reader would see now, such as descriptions that end with a line feed."""
    fresh = parse(config.kind, config.vmid, text, config.path)
    config.raw, config.digest = text, digest_of(text.encode("utf-8", "surrogateescape"))
    config.current, config.pending, config.snapshots = fresh.current, fresh.pending, fresh.snapshots
    config.special, config.unknown, config.problems = fresh.special, fresh.unknown, fresh.problems


def create(kind: str, vmid: int, current: Mapping[str, str], lxc: list[tuple[str, str]] | None = None) -> GuestConfig:
    """Write the file of a new guest; the caller holds the guest's lock.

    Raises:
        Exists: the id is used, by any kind of guest on any node.
    """
    check_unused(vmid)
    config = GuestConfig(kind, vmid, paths.guest_config(kind, vmid), current=Section(current, lxc))
    text = config.canonical()
    config.path.parent.mkdir(parents=True, exist_ok=True)
    _remove_half_written(config.path)
    beside = config.path.with_name(f".{vmid}.conf.new.{os.getpid()}")
    try:
        files.write_atomic(beside, text)
        os.link(beside, config.path)  # fails when the file exists, unlike a rename
    except FileExistsError:
        raise Exists(_used(vmid, kind)) from None
    finally:
        files.remove(beside)
    _remember(config, text)
    return config


def check_unused(vmid: int) -> None:
    """Refuse an id that any guest of the cluster has.

    Raises:
        Exists: naming the guest.
    """
    for node, kind in (found for number, found in _cluster() if number == vmid):
        raise Exists(_used(vmid, kind, node))


def _used(vmid: int, kind: str, node: str = "") -> str:
    sentence = f"unable to create guest {vmid}: {_WORD[kind]} {vmid} already exists"
    try:
        held = quick(paths.guest_config(kind, vmid, node)).get("lock")
    except FileNotFoundError:
        held = None
    return f"{sentence}; it {_lock_sentence(kind, vmid, held)}" if held else sentence


def _remove_half_written(path: Path) -> None:
    """Remove what killed commands began to write beside a guest's file; the caller holds the guest's lock."""
    with os.scandir(path.parent) as entries:
        found = [entry.path for entry in entries if entry.name.startswith((f".{path.name}.", f"..{path.name}."))]
    for name in found:
        files.remove(Path(name))


def remove(kind: str, vmid: int) -> None:
    """Delete a guest's configuration file; the caller holds the guest's lock.

    Raises:
        NotFound: there is none.
    """
    path = paths.guest_config(kind, vmid)
    if not files.remove(path):
        raise NotFound(_missing(kind, vmid, path))
    _remove_half_written(path)


def _ids(folder: Path) -> Iterator[int]:
    try:
        with os.scandir(folder) as entries:
            found = [_FILE.fullmatch(entry.name) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (int(match[1]) for match in found if match)


def all_guests(node: str = "") -> dict[int, str]:
    """Guests of a node (default: this one): id to kind, in the order of the ids."""
    found = {vmid: kind for kind in paths.CONFIG_FOLDER for vmid in _ids(paths.guest_dir(kind, node))}
    return dict(sorted(found.items()))


def _cluster() -> Iterator[tuple[int, tuple[str, str]]]:
    folder = paths.etc_pve() / "nodes"
    for node in sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else ():
        for vmid, kind in all_guests(node).items():
            yield vmid, (node, kind)


def cluster_guests() -> dict[int, tuple[str, str]]:
    """Guests of all nodes: id to (node, kind), in the order of the ids."""
    return dict(sorted(_cluster()))


def kind_of(vmid: int, node: str = "") -> str | None:
    """``qemu`` or ``lxc``, or None when the node (default: this one) has no such guest."""
    return next((kind for kind in paths.CONFIG_FOLDER if paths.guest_config(kind, vmid, node).exists()), None)


def quick(path: Path | str) -> dict[str, str]:
    """Keys and values of the current part only, without description: for lists of many guests.

    Raises:
        FileNotFoundError: the guest has gone.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, 1 << 16)
        while len(data) % (1 << 16) == 0 and (more := os.read(fd, 1 << 16)):
            data += more
    finally:
        os.close(fd)
    end = data.find(b"\n[")
    text = (data if end < 0 else data[: end + 1]).decode("utf-8", "surrogateescape")
    return {} if text.startswith("[") else dict(_QUICK.findall(text))


def places(text: str) -> Iterator[tuple[str, str]]:
    """Key and place (an absolute path, or a volume id) of all that a configuration may have as a disk, in any part.

    It takes everything for a disk that looks like one, and lines with other blanks than ours; not ``unusedN``.
    """
    for key, value in _NAMING.findall(text):
        for word in value.split(","):
            if match := PLACE.fullmatch(word):
                yield key, match[1]


def is_on(section: Mapping[str, str], key: str) -> bool:
    """Whether a switch is on, in whatever way it is written; what is no boolean is not."""
    try:
        return bool(boolean.parse(section.get(key, "0")))
    except ValueError:
        return False


def lock_kinds(kind: str) -> tuple[str, ...]:
    """The words that ``lock`` may hold for a kind of guest."""
    return tuple(_table(kind).FIELDS["lock"].kind.json["enum"])


def check_lock(config: GuestConfig, *allowed: str) -> None:
    """Refuse a guest that is locked, unless by one of the ``allowed`` locks.

    Raises:
        Locked: with the task that did it, as far as that is known, and the command that clears the lock.
    """
    held = config.lock
    if held and held not in allowed:
        raise Locked(f"{_WORD[config.kind]} {_lock_sentence(config.kind, config.vmid, held)}")


def _lock_sentence(kind: str, vmid: int, held: str) -> str:
    from pvetools.system import task

    clear = f"{_TOOL[kind]} {'unmount' if held == 'mounted' else 'unlock'} {vmid}"
    owner = task.owner_of(vmid, held)
    if owner is None:
        return f"is locked ({held}) - if no task works on guest {vmid}, run '{clear}'"
    if task.is_alive(owner.upid):
        return f"is locked ({held}) by the task '{owner.upid}', which is at work"
    return f"is locked ({held}) by the task '{owner.upid}', which was killed; look at the guest, then run '{clear}'"


def set_lock(kind: str, vmid: int, name: str) -> GuestConfig:
    """Write a lock into a guest's file, holding the guest's lock file meanwhile.

    Raises:
        Locked: it has a lock. ValueError: no such kind of lock.
    """
    if name not in lock_kinds(kind):
        raise ValueError(f"unknown lock '{name}', expected one of {', '.join(lock_kinds(kind))}")
    with lock.guest_lock(vmid):
        config = load(kind, vmid)
        check_lock(config)
        config.current["lock"] = name
        save(config)
        return config


def clear_lock(kind: str, vmid: int, name: str = "") -> bool:
    """Take the lock out of a guest's file: any lock, or only the named one. False when there was nothing to do."""
    with lock.guest_lock(vmid):
        config = load(kind, vmid)
        if not config.lock or (name and config.lock != name):
            return False
        del config.current["lock"]
        save(config)
        return True
