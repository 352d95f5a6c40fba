"""Storage definitions: the sections of ``storage.cfg`` with typed options, and the rules for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pvetools.config import sections
from pvetools.options.storage import TYPES, StorageOptions
from pvetools.schema.core import NestedErrors
from pvetools.storage import secrets
from pvetools.system import paths
from pvetools.system.errors import ConfigError, Exists, NotFound, ParamErrors, Refused

LOCAL = "local"
# What `local` takes when nobody configured it: everything, so that a fresh host can hold guests at once.
LOCAL_CONTENT = "backup,images,import,iso,rootdir,snippets,vztmpl"
# Declared, kept and shown, but no code gives it an effect yet.
NOT_SERVED = ("snapshot-as-volume-chain",)


@dataclass(frozen=True, slots=True)
class Definition:
    """One storage as it is defined. ``implicit``: it stands in no file (``local`` only)."""

    id: str
    type: str
    options: StorageOptions
    implicit: bool = False

    @property
    def content(self) -> frozenset[str]:
        """Content types that it may hold."""
        given = self.options.content
        return TYPES[self.type].default_content if given is None else frozenset(given) - {"none"}

    @property
    def enabled(self) -> bool:
        return not self.options.disable

    @property
    def shared(self) -> bool:
        return bool(self.options.shared)

    def on_node(self, node: str) -> bool:
        """Whether it exists on a node."""
        return not self.options.nodes or node in self.options.nodes

    def as_data(self) -> dict[str, Any]:
        """Options as texts, for output; ``content`` is always there, secrets never are."""
        texts = self.options.texts()
        for key in TYPES[self.type].sensitive:
            texts.pop(key, None)
        texts["content"] = ",".join(sorted(self.content)) or "none"
        return texts


def _local() -> Definition:
    raw = {"storage": LOCAL, "type": "dir", "path": str(paths.local_storage()), "content": LOCAL_CONTENT}
    return Definition(LOCAL, "dir", StorageOptions.read(raw), implicit=True)


def load() -> sections.SectionFile:
    """The file ``storage.cfg``; missing is empty."""
    return sections.load(paths.storage_config())


def _read(file: sections.SectionFile, section: sections.Section) -> Definition:
    if section.type not in TYPES:
        raise ConfigError(file.path, section.line, f"storage '{section.id}': unsupported type '{section.type}'")
    raw = {key: section.get(key) for key in section.values} | {"storage": section.id, "type": section.type}
    try:
        return Definition(section.id, section.type, StorageOptions.read(raw))
    except NestedErrors as error:
        why = "; ".join(f"{key}: {reason}" for key, reason in error.errors.items())
        raise ConfigError(file.path, section.line, f"storage '{section.id}': {why}") from None


def get(name: str) -> Definition:
    """The definition of one storage.

    Raises:
        NotFound: there is none. ConfigError: its definition is damaged.
    """
    file = load()
    section = file.get(name)
    if section is not None:
        return _read(file, section)
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
            found[section.id] = _read(file, section)
        except ConfigError as error:
            damaged.append(str(error))
    return found, damaged


def check(name: str, type_: str, raw: Mapping[str, str]) -> StorageOptions:
    """Check all options of a storage that is to be defined, and report everything that is wrong.

    Raises:
        ParamErrors: by option. Refused: an option without effect in this version.
    """
    errors: dict[str, str] = {}
    kind = TYPES.get(type_)
    if kind is None:
        raise ParamErrors({"type": f"value '{type_}' does not have a value in the enumeration '{', '.join(TYPES)}'"})
    try:
        options = StorageOptions.check({**raw, "storage": name, "type": type_})
    except NestedErrors as error:
        errors, options = dict(error.errors), StorageOptions.read({"storage": LOCAL, "type": type_})
    errors |= {key: f"unexpected property for storage type '{type_}'" for key in raw if key not in kind.options}
    errors |= {key: "property is missing and it is not optional" for key in kind.required if key not in raw}
    for content in options.content or ():
        if content not in kind.content:
            errors["content"] = f"storage type '{type_}' does not support content type '{content}'"
    if options.format_ and options.format_ not in kind.formats:
        errors["format"] = f"storage type '{type_}' does not support format '{options.format_}'"
    if errors:
        raise ParamErrors(errors)
    return options


def _refuse_unserved(name: str, options: StorageOptions, keys: Iterable[str]) -> None:
    for key in NOT_SERVED:
        if key in keys and options.given[key]:
            raise Refused(f"option '{key}' has no effect in this version, so storage '{name}' can't have it")


def add(name: str, type_: str, raw: Mapping[str, str]) -> Definition:
    """Define a storage, once it has proven to be usable where it is meant for this node.

    Its secrets get files of their own.

    Raises:
        ParamErrors, Refused: wrong options or a type that is not served. Exists: the name is used.
        Errors of the storage.
    """
    from pvetools.storage import registry

    options = check(name, type_, raw)
    registry.require(type_)
    _refuse_unserved(name, options, raw)
    made = Definition(name, type_, options)
    with contextlib.ExitStack() as undo, sections.editing(paths.storage_config()) as file:
        if name == LOCAL and file.get(name) is None:
            raise Exists("storage 'local' is built in; change it with: pvesm set local ...")
        texts = options.texts()
        del texts["storage"], texts["type"]
        hidden = {key: texts.pop(key) for key in TYPES[type_].sensitive & texts.keys()}
        file.add(type_, name, texts)
        undo.callback(secrets.remove, name, type_, TYPES[type_].sensitive)
        secrets.write(name, type_, hidden)
        if made.enabled and made.on_node(paths.node()):
            registry.driver(made).activate()
        undo.pop_all()
    return made


def update(name: str, raw: Mapping[str, str], delete: Sequence[str] = (), digest: str = "") -> Definition:
    """Change and delete options of a storage; of the implicit ``local`` this writes the definition.

    Raises:
        ParamErrors, Refused: wrong options, or fixed ones. NotFound. DigestMismatch.
    """
    with sections.editing(paths.storage_config(), digest) as file:
        section = file.get(name)
        if section is None:
            implicit = get(name)
            texts = implicit.options.texts()
            section = file.add(implicit.type, name, {key: texts[key] for key in ("path", "content")})
        _check_change(section, raw, delete)
        values = {key: value for key, value in section.values.items() if key not in delete}
        values |= raw
        plain = {key: value if isinstance(value, str) else value[-1] for key, value in values.items()}
        options = check(name, section.type, plain)
        _refuse_unserved(name, options, raw)
        canonical = options.texts()
        sensitive = TYPES[section.type].sensitive
        section.values = {
            key: canonical[key] if key in raw else value for key, value in values.items() if key not in sensitive
        }
        secrets.write(name, section.type, {key: canonical[key] for key in sensitive & raw.keys()})
        secrets.remove(name, section.type, sensitive & {*delete})
    return Definition(name, section.type, options)


def _check_change(section: sections.Section, raw: Mapping[str, str], delete: Sequence[str]) -> None:
    kind = TYPES.get(section.type)
    if kind is None:
        raise Refused(f"storage '{section.id}': unsupported type '{section.type}'")
    errors: dict[str, str] = {}
    for key, value in raw.items():
        if key in kind.fixed and value != section.get(key):
            errors[key] = f"can't change value of fixed parameter '{key}'"
    for key in delete:
        if key not in kind.options:
            errors["delete"] = f"unknown option '{key}' for storage type '{section.type}'"
        elif key in kind.required or key in kind.fixed:
            errors["delete"] = f"unable to delete required or fixed option '{key}'"
        elif key in raw:
            errors[key] = f"unable to set and delete option '{key}' at the same time"
    if errors:
        raise ParamErrors(errors)


def remove(name: str) -> None:
    """Delete a storage's definition and its secrets; its data stays.

    Raises:
        NotFound. Refused: ``local`` cannot be removed while it stands in no file.
    """
    with sections.editing(paths.storage_config()) as file:
        if file.get(name) is None and name == LOCAL:
            raise Refused(
                "storage 'local' is built in and can't be removed; disable it with: pvesm set local --disable 1"
            )
        section = file.get(name)
        if section is None:
            raise NotFound(f"storage '{name}' does not exist")
        file.remove(name)
        if section.type in TYPES:
            secrets.remove(name, section.type, TYPES[section.type].sensitive)
