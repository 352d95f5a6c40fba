"""Storage definitions: the sections of ``storage.cfg`` with typed options, and the rules for them; read only."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pvetools.config import sections
from pvetools.options.backup import keep_all_conflict
from pvetools.options.storage import StorageOptions, StorageType, kind_of
from pvetools.schema.core import NestedErrors
from pvetools.system import paths
from pvetools.system.errors import ConfigError, NotFound, ParamErrors, PveError, Refused

FOLDERS = {
    "images": "images", "rootdir": "private", "iso": "template/iso", "vztmpl": "template/cache", "backup": "dump",
    "snippets": "snippets", "import": "import",
}  # fmt: skip
LOCAL = "local"
# What `local` takes when nobody configured it: everything, so that a fresh host can hold guests at once.
LOCAL_CONTENT = "backup,images,import,iso,rootdir,snippets,vztmpl"


@dataclass(frozen=True, slots=True)
class Definition:
    """One storage as it is defined. ``implicit``: it stands in no file (``local`` only)."""

    id: str
    type: str
    options: StorageOptions
    implicit: bool = False

    @property
    def kind(self) -> StorageType:
        """What storages of its type can take."""
        return required_kind(self.type)

    @property
    def content(self) -> frozenset[str]:
        """Content types that it may hold."""
        given = self.options.content
        return self.kind.default_content if given is None else frozenset(given) - {"none"}

    @property
    def content_text(self) -> str:
        """The same as one word."""
        return ",".join(sorted(self.content)) or "none"

    def folder(self, content: str) -> str:
        """The folder of a content type, below that of the storage. PveError: there is no such type."""
        if content not in FOLDERS:
            raise PveError(f"unknown vtype '{content}'")
        return (self.options.content_dirs or {}).get(content, FOLDERS[content])

    @property
    def folder_conflict(self) -> str:
        """Which content types would share a folder, in words; empty: none."""
        used: dict[str, str] = {}
        for content in sorted(self.content & FOLDERS.keys()) if self.options.content_dirs else ():
            folder = posixpath.normpath(self.folder(content).strip("/"))
            if folder in used:
                return f"'{used[folder]}' and '{content}' would share the folder '{folder}'"
            used[folder] = content
        return ""

    @property
    def enabled(self) -> bool:
        return not self.options.disable

    @property
    def shared(self) -> bool:
        """Whether it is the same on all its nodes."""
        return self.kind.shared or bool(self.options.shared)

    def on_node(self, node: str) -> bool:
        """Whether it exists on a node."""
        return not self.options.nodes or node in self.options.nodes

    @property
    def default_format(self) -> str:
        """Image format when nobody asks for one."""
        chained = self.options.snapshot_as_volume_chain
        return self.options.format_ or (self.kind.chained_format if chained else self.kind.default_format)

    def as_data(self) -> dict[str, Any]:
        """Options for output, numbers as such; ``content`` is always there, secrets never are."""
        numbers = {key: int(value) for key, value in self.options.given.items() if isinstance(value, int)}
        data = {**self.options.texts(), **numbers}
        for key in self.kind.sensitive:
            data.pop(key, None)
        if self.kind.shared:
            data["shared"] = 1
        data["content"] = self.content_text
        return data


def required_kind(type_: str) -> StorageType:
    """What is known of a type. Refused: nothing."""
    kind = kind_of(type_)
    if kind is None:
        raise Refused(f"unsupported type '{type_}'")
    return kind


def _local() -> Definition:
    raw = {"storage": LOCAL, "type": "dir", "path": str(paths.local_storage()), "content": LOCAL_CONTENT}
    return Definition(LOCAL, "dir", StorageOptions.read(raw), implicit=True)


def load() -> sections.SectionFile:
    """The file ``storage.cfg``; missing is empty."""
    return sections.load(paths.storage_config())


def read(file: sections.SectionFile, section: sections.Section) -> Definition:
    """The definition in a section. ConfigError: it is damaged."""
    raw = {key: section.get(key) for key in section.values} | {"storage": section.id, "type": section.type}
    try:
        kind = required_kind(section.type)
        known = {key: text for key, text in raw.items() if key in kind.options or key in StorageOptions.FIELDS}
        return Definition(section.id, section.type, StorageOptions.read(placed(section.id, kind, known)))
    except NestedErrors as error:
        why = "; ".join(f"{key}: {reason}" for key, reason in error.errors.items())
        raise ConfigError(file.path, section.line, f"storage '{section.id}': {why}") from None
    except PveError as error:
        raise ConfigError(file.path, section.line, f"storage '{section.id}': {error}") from None


def placed(name: str, kind: StorageType, raw: Mapping[str, str]) -> dict[str, str]:
    """With the mount point that storages of a server get when none is given."""
    mounted = "path" in kind.options - kind.required
    return {**({"path": str(paths.mount_dir() / name)} if mounted else {}), **raw}


def get(name: str) -> Definition:
    """The definition of one storage.

    Raises:
        NotFound: there is none. ConfigError: its definition is damaged.
    """
    file = load()
    section = file.get(name)
    if section is not None:
        return read(file, section)
    if name == LOCAL:
        return _local()
    raise NotFound(f"storage '{name}' does not exist")


def every() -> tuple[dict[str, Definition], list[str]]:
    """All storages by id in the order of the file, ``local`` first when it stands in no file; and what is damaged."""
    file = load()
    found: dict[str, Definition] = {} if file.get(LOCAL) else {LOCAL: _local()}
    damaged = [f"{file.path} line {line}: {reason}" for line, reason in file.problems]
    for section in file.ids().values():
        try:
            found[section.id] = read(file, section)
        except ConfigError as error:
            damaged.append(str(error))
        else:
            damaged += [f"{file.path} line {section.line}: storage '{section.id}': {why}" for why in _oddities(section)]
    return found, damaged


def _oddities(section: sections.Section) -> list[str]:
    """What of a section counts only in part or not at all."""
    twice = [f"'{key}' stands there several times, the first counts" for key, value in section.values.items()
             if not isinstance(value, str)]  # fmt: skip
    kind = kind_of(section.type)
    unknown = section.values.keys() - kind.options if kind else ()
    return twice + [f"'{key}' is no property of storage type '{section.type}'" for key in sorted(unknown)]


def check(name: str, type_: str, raw: Mapping[str, str]) -> StorageOptions:
    """Check all options of a storage that is to be defined, and report everything that is wrong.

    Raises:
        ParamErrors: by option.
    """
    errors: dict[str, str] = {}
    try:
        options = StorageOptions.check({**raw, "storage": name, "type": type_})
    except NestedErrors as error:
        errors, options = dict(error.errors), StorageOptions.read({"storage": LOCAL})
    if "type" in errors:
        raise ParamErrors(errors)
    kind = required_kind(type_)
    errors |= {key: f"unexpected property for storage type '{type_}'" for key in raw if key not in kind.options}
    errors |= {key: "property is missing and it is not optional" for key in kind.required if key not in raw}
    errors |= {key: "the value must not be empty" for key, text in options.texts().items() if not text.strip()}
    for content in options.content or ():
        if content not in kind.content:
            errors["content"] = f"storage type '{type_}' does not support content type '{content}'"
        elif content == "none" and len(options.content or ()) > 1:
            errors["content"] = "'none' can't be combined with other content types"
    if options.prune_backups and (conflict := keep_all_conflict(options.prune_backups.given)):
        errors["prune-backups"] = conflict
    if not errors and (conflict := Definition(name, type_, options).folder_conflict):
        errors["content-dirs"] = conflict
    if options.format_ and options.format_ not in kind.formats:
        errors["format"] = f"storage type '{type_}' does not support format '{options.format_}'"
    if errors:
        raise ParamErrors(errors)
    return options
