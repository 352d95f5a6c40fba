"""Section files such as ``storage.cfg``: a header ``type: id``, then one indented ``key value`` line a property.

A file that nobody changed is written back byte for byte; of a changed file only the changed sections are
rewritten, so comments and the other sections stay as they are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pvetools.config.guest import digest_of
from pvetools.system import files, lock
from pvetools.system.errors import ConfigError, DigestMismatch, Exists, NotFound, PveError

_HEADER = re.compile(r"(\S+):\s*(\S+)\s*", re.ASCII)
_PROPERTY = re.compile(r"\s+(\S+)(?:\s+(.*\S))?\s*", re.ASCII)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_BLANK = " \t\r\f\v"

Value = str | list[str]
Checker = Callable[[Mapping[str, Value]], object]


class Problem(NamedTuple):
    """Something wrong in a file: line number (from 1) and the reason."""

    line: int
    reason: str


@dataclass
class Section:
    """One section. A property that stands without a value is ``1``; one that stands several times is a list."""

    type: str
    id: str
    values: dict[str, Value] = field(default_factory=dict)
    line: int = 0
    lead: str = ""
    raw: str = ""
    original: dict[str, Value] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def get(self, key: str, default: str = "") -> str:
        """The text of a property; of a repeated one the first."""
        value = self.values.get(key, default)
        return value[0] if isinstance(value, list) else value

    def touched(self) -> bool:
        return not self.raw or self.values != self.original

    def canonical(self) -> str:
        """The section's text: comment and a bare ``disable`` first, then the others in their order."""
        lines = [f"{_word(self.type)}: {_word(self.id)}"]
        for key in sorted(self.values, key=lambda key: ("comment", "disable", key).index(key)):
            value = self.values[key]
            for text in value if isinstance(value, list) else [value]:
                bare = key == "disable" and text == "1"
                lines.append(f"\t{_word(key)}" if bare else f"\t{_word(key)} {_one_line(self.id, key, text)}")
        return "".join(line + "\n" for line in lines)


def _word(text: str) -> str:
    if not text or re.search(r"\s", text, re.ASCII):
        raise PveError(f"'{text}' cannot be written to a section file: it is empty or has blanks")
    return text


def _one_line(section: str, key: str, text: str) -> str:
    if "\n" in text or not text.strip(_BLANK):
        raise PveError(f"section '{section}': value of '{key}' is empty or has line feeds")
    return text


@dataclass
class SectionFile:
    """A section file, parsed. ``problems`` are damaged lines; they stay in the file until their section is changed."""

    path: Path
    digest: str = ""
    sections: list[Section] = field(default_factory=list)
    tail: str = ""
    problems: list[Problem] = field(default_factory=list)

    def ids(self) -> dict[str, Section]:
        """Sections by id, in the order of the file; of two with the same id the last one counts."""
        return {section.id: section for section in self.sections}

    def get(self, name: str) -> Section | None:
        return self.ids().get(name)

    def add(self, type_: str, name: str, values: Mapping[str, Value]) -> Section:
        """Append a section.

        Raises:
            Exists: the id is used.
        """
        if self.get(name):
            raise Exists(f"'{name}' is already defined in {self.path}")
        lead, self.tail = self.tail, ""
        if lead and not lead.endswith("\n"):
            lead += "\n"
        if lead.strip():
            lead += "\n"
        section = Section(type_, name, dict(values), lead=lead)
        self.sections.append(section)
        return section

    def remove(self, name: str) -> None:
        """Delete a section with the comment lines right above it.

        Raises:
            NotFound: there is no such id.
        """
        if not self.get(name):
            raise NotFound(f"'{name}' is not defined in {self.path}")
        kept: list[Section] = []
        lead = ""
        for section in self.sections:
            if section.id == name:
                lead += _above(section.lead)
            else:
                section.lead, lead = lead + section.lead, ""
                kept.append(section)
        self.sections, self.tail = kept, lead + self.tail
        if kept:
            kept[0].lead = kept[0].lead.lstrip("\n")

    def text(self) -> str:
        """The file's text; sections that were not changed keep their very bytes.

        Raises:
            ConfigError: a changed section has damaged lines, which a rewrite would lose.
        """
        out = ""
        for section in self.sections:
            if section.touched() and section.problems:
                line, reason = section.problems[0]
                raise ConfigError(self.path, line, f"{reason} (mend the file first: a rewrite would lose this)")
            body = section.canonical() if section.touched() else section.raw
            if out and not out.endswith("\n"):
                out += "\n"
            out += ("\n" if out and not section.lead else "") + section.lead + body
        return out + self.tail


def _above(lead: str) -> str:
    """What stands above a section and is not about it: comments that a blank line sets apart."""
    before = lead.rpartition("\n\n")[0]
    return before.rstrip("\n") + "\n" if before.strip() else ""


class _Parser:
    """Cuts a file into sections and keeps the text of each."""

    def __init__(self, file: SectionFile) -> None:
        self.file = file
        self.section: Section | None = None
        self.lead = ""

    def run(self, text: str) -> None:
        for number, line in enumerate(_LINE.findall(text), 1):
            bare = line.rstrip("\n")
            if self.section is None:
                self.outside(number, line, bare)
            elif not bare.strip(_BLANK):
                self.section, self.lead = None, line
            else:
                self.section.raw += line
                self.inside(number, bare, self.section)
        self.file.tail = self.lead
        for section in self.file.sections:
            section.original = {key: list(v) if isinstance(v, list) else v for key, v in section.values.items()}

    def problem(self, number: int, reason: str) -> None:
        problem = Problem(number, reason)
        self.file.problems.append(problem)
        if self.section:
            self.section.problems.append(problem)

    def outside(self, number: int, line: str, bare: str) -> None:
        header = None if bare.lstrip(_BLANK).startswith("#") else _HEADER.fullmatch(bare)
        if not header:
            self.lead += line
            if bare.strip(_BLANK) and not bare.lstrip(_BLANK).startswith("#"):
                self.problem(number, f"ignore config line: {bare}")
            return
        if header[2] in self.file.ids():
            self.problem(number, f"duplicate section: {header[2]}")
        self.section = Section(header[1], header[2], line=number, lead=self.lead, raw=line)
        self.file.sections.append(self.section)
        self.lead = ""

    def inside(self, number: int, bare: str, section: Section) -> None:
        if bare.lstrip(_BLANK).startswith("#"):
            return
        match = _PROPERTY.fullmatch(bare)
        if not match:
            self.problem(number, f"section '{section.id}' - ignore config line: {bare}")
            return
        key, text = match[1], match[2] or "1"
        before = section.values.get(key)
        if before is None:
            section.values[key] = text
        else:
            section.values[key] = [*(before if isinstance(before, list) else [before]), text]


def parse(text: str, path: Path, *, strict: bool = False) -> SectionFile:
    """Parse the text of a section file.

    Raises:
        ConfigError: ``strict`` and a line is damaged.
    """
    file = SectionFile(path, digest_of(text.encode("utf-8", "surrogateescape")))
    _Parser(file).run(text)
    if strict and file.problems:
        raise ConfigError(path, *file.problems[0])
    return file


def load(path: Path) -> SectionFile:
    """Read a section file, leniently; a missing file is an empty one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    return parse(data.decode("utf-8", "surrogateescape"), path)


def save(file: SectionFile) -> None:
    """Write a section file back, atomically; the caller holds its lock. Updates ``digest``.

    Raises:
        DigestMismatch: the file was changed since it was read.
    """
    if load(file.path).digest != file.digest:
        raise DigestMismatch(file.path.name)
    text = file.text()
    fresh = parse(text, file.path)
    if fresh.digest != file.digest:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(file.path, text)
    file.digest, file.sections, file.tail, file.problems = fresh.digest, fresh.sections, fresh.tail, fresh.problems


@contextlib.contextmanager
def editing(path: Path, digest: str = "") -> Iterator[SectionFile]:
    """Lock and read a file, let the block change it, write it when the block ends without an error.

    Raises:
        DigestMismatch: it is another one than the user, who handed in the digest, saw. LockTimeout.
    """
    with lock.config_lock(path.name):
        file = load(path)
        if digest and digest != file.digest:
            raise DigestMismatch(path.name)
        yield file
        save(file)


def verify(file: SectionFile, types: Mapping[str, Checker], *, allow_unknown: bool = False) -> list[Problem]:
    """Check all sections: each type has a function that raises ValueError for wrong properties.

    Returns:
        All problems, damaged lines included, in the order of the lines; unknown types are one unless allowed.
    """
    found = list(file.problems)
    for section in file.sections:
        check = types.get(section.type)
        if check is None:
            if not allow_unknown:
                found.append(Problem(section.line, f"section '{section.id}': unsupported type '{section.type}'"))
            continue
        try:
            check(section.values)
        except ValueError as error:
            found.append(Problem(section.line, f"section '{section.id}': {error}"))
    return sorted(found)
