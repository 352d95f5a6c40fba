"""Defining storages, changing and removing definitions: what is new has to prove that it works before it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

from pvetools.config import sections
from pvetools.options.storage import StorageOptions, kind_of
from pvetools.storage import probe, registry, secrets
from pvetools.storage.definition import LOCAL, Definition, check, get, load, placed, read, required_kind
from pvetools.system import lock, log, paths
from pvetools.system.errors import ConfigError, DigestMismatch, Exists, NotFound, ParamErrors, Refused

# Options that say how the storage is reached: a change of one is tried out before it is written.
CONNECTION = frozenset(
    {
        "domain", "encryption-key", "fingerprint", "fs-name", "fuse", "is_mountpoint", "keyring", "krbd", "monhost",
        "namespace", "options", "password", "pool", "port", "portal", "server", "skip-cert-verification", "smbversion",
        "subdir", "target", "username",
    }
)  # fmt: skip


def _defining(name: str) -> contextlib.AbstractContextManager[None]:
    """Held while a storage is tried out, which may take long: the file itself is locked only to be written."""
    return lock.locked(
        paths.lock_dir() / f"define-{name}.lock", 60.0, what=f"the definition of storage '{name}'", in_turn=True
    )


def add(name: str, type_: str, raw: Mapping[str, str]) -> Definition:
    """Define a storage, once it has proven to be usable where it is meant for this node.

    Its secrets get files of their own.

    Raises:
        ParamErrors, Refused: wrong options or a type that is not served. Exists: the name is used.
        Errors of the storage: nothing of it is left then.
    """
    options = check(name, type_, raw)
    registry.require(type_)
    texts = placed(name, required_kind(type_), options.texts())
    hidden = {key: texts.pop(key) for key in required_kind(type_).sensitive & texts.keys()}
    made = Definition(name, type_, StorageOptions.read(texts))
    del texts["storage"], texts["type"]
    with _defining(name), contextlib.ExitStack() as undo:
        _check_new(name)
        # a password that is there already is of a storage whose removal was killed; a keyring may lie there on purpose
        left = {"password"} & required_kind(type_).sensitive - hidden.keys()
        secrets.change(name, type_, hidden, left, undo)
        if _is_here(made):
            _prove(made, undo)
        with sections.editing(paths.storage_config()) as file:
            file.add(type_, name, texts)
        undo.pop_all()
    return made


def _check_new(name: str) -> None:
    file = load()
    if file.get(name):
        raise Exists(f"'{name}' is already defined in {file.path}")
    if name == LOCAL:
        raise Exists("storage 'local' is built in; change it with: pvesm set local ...")


def _is_here(found: Definition) -> bool:
    return found.enabled and found.on_node(paths.node())


def _prove(made: Definition, undo: contextlib.ExitStack) -> None:
    """Activate a new storage and ask it for its space; undone, it is let go again."""
    registry.driver(made).prepare()
    undo.callback(probe.release, made)
    probe.prove(made, probe.space)


def update(name: str, raw: Mapping[str, str], delete: Sequence[str] = (), digest: str = "") -> Definition:
    """Change and delete options of a storage; of the implicit ``local`` this writes the definition.

    A change of the way to its server has to prove that it works, and counts at once where nobody uses the storage.

    Raises:
        ParamErrors, Refused: wrong options, or fixed ones. NotFound. DigestMismatch.
        Errors of the storage: all is as it was before.
    """
    with _defining(name), contextlib.ExitStack() as undo:
        file = load()
        if digest and digest != file.digest:
            raise DigestMismatch(file.path.name)
        before = _before(file, name)
        made, hidden = _change(file, name, raw, delete)
        secrets.change(name, made.type, hidden, made.kind.sensitive & {*delete}, undo)
        if _is_here(made) and CONNECTION & {*raw, *delete}:
            _renew(before, made)
        with sections.editing(paths.storage_config(), digest) as file:
            _change(file, name, raw, delete)
        undo.pop_all()
    return made


def _before(file: sections.SectionFile, name: str) -> Definition | None:
    """What is defined; None when that is damaged, which a change may mend."""
    try:
        return get(name) if file.get(name) is None else read(file, _section(file, name))
    except ConfigError:
        return None


def _section(file: sections.SectionFile, name: str) -> sections.Section:
    """The section of a storage; of the implicit ``local`` it is made."""
    section = file.get(name)
    if section is None:
        implicit = get(name)
        texts = implicit.options.texts()
        section = file.add(implicit.type, name, {key: texts[key] for key in ("path", "content")})
    return section


def _change(
    file: sections.SectionFile, name: str, raw: Mapping[str, str], delete: Sequence[str]
) -> tuple[Definition, dict[str, str]]:
    """Change a section; gives what is defined then, and the new secrets, which do not stand in it."""
    section = _section(file, name)
    _check_change(section, raw, delete)
    values = {key: section.get(key) for key in section.values if key not in delete} | dict(raw)
    _check_known(section, values.keys() - raw.keys())
    options = check(name, section.type, values)
    canonical, kind = options.texts(), required_kind(section.type)
    hidden = {key: canonical[key] for key in kind.sensitive & canonical.keys()}
    section.values = {
        key: canonical[key] if key in raw else value for key, value in values.items() if key not in kind.sensitive
    }
    shown = {key: text for key, text in canonical.items() if key not in kind.sensitive}
    return Definition(name, section.type, StorageOptions.read(placed(name, kind, shown))), hidden


def _renew(before: Definition | None, made: Definition) -> None:
    """Let a storage that is to be reached in another way prove itself, and take that way if nobody uses the old one."""
    probe.prove(made, probe.verified)
    busy = probe.released(before) if before else ""
    probe.prove(made, probe.space)
    if busy:
        log.warn(f"{busy}; the change counts from the next time that the storage is activated")


def _check_change(section: sections.Section, raw: Mapping[str, str], delete: Sequence[str]) -> None:
    kind = kind_of(section.type)
    if kind is None:
        raise Refused(f"storage '{section.id}': unsupported type '{section.type}'")
    errors: dict[str, str] = {}
    for key, value in raw.items():
        if key in kind.fixed and value != section.get(key):
            errors[key] = f"can't change value of fixed parameter '{key}'"
    refused: list[str] = []
    for key in delete:
        if key not in kind.options and key not in section.values:
            refused.append(f"unknown option '{key}' for storage type '{section.type}'")
        elif key in kind.required or key in kind.fixed:
            refused.append(f"unable to delete required or fixed option '{key}'")
        elif key in raw:
            errors[key] = f"unable to set and delete option '{key}' at the same time"
    if refused:
        errors["delete"] = "; ".join(refused)
    if errors:
        raise ParamErrors(errors)


def _check_known(section: sections.Section, kept: Collection[str]) -> None:
    """Refuse to write a section with properties that its type does not have."""
    unknown = sorted({*kept} - required_kind(section.type).options)
    if unknown:
        what = f"is no property of storage type '{section.type}', but stands in storage.cfg"
        raise ParamErrors({key: f"{what}; --delete {key} removes it" for key in unknown})


def remove(name: str) -> None:
    """Delete a storage's definition and its secrets, and deactivate it; its data stays.

    What hinders the deactivation is told in a warning.

    Raises:
        NotFound. Refused: another storage lies on it; ``local`` cannot be removed while it stands in no file.
    """
    with _defining(name):
        with sections.editing(paths.storage_config()) as file:
            section = _removable(file, name)
            file.remove(name)
        kind = kind_of(section.type)
        if kind is None:
            return
        with contextlib.suppress(ConfigError):
            probe.release(read(file, section))
        secrets.remove(name, section.type, kind.sensitive)


def _removable(file: sections.SectionFile, name: str) -> sections.Section:
    section = file.get(name)
    if section is None and name == LOCAL:
        raise Refused("storage 'local' is built in and can't be removed; disable it with: pvesm set local --disable 1")
    if section is None:
        raise NotFound(f"storage '{name}' does not exist")
    for other in file.sections:
        if other.get("base").startswith(f"{name}:"):
            raise Refused(
                f"storage '{name}' can't be removed: storage '{other.id}' lies on its volume '{other.get('base')}'"
            )
    return section
