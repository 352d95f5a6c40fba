"""Compare declarations with the public interface tables (``PVETOOLS_SPEC``, default ``../shared/spec``)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pvetools.schema.core import Field, Kind, PropertyString, Record

_ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("PVETOOLS_SPEC") or _ROOT.parent / "shared" / "spec")
_SCHEMA_KEYS = ("type", "minimum", "maximum", "minLength", "maxLength", "pattern")
_TRUE, _FALSE = ("1", "yes", "true", "on"), ("0", "no", "false", "off")


def load(name: str) -> Any:
    """A table, or skip what needs it."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no interface tables in {FOLDER}", allow_module_level=True)
    return json.loads(path.read_text())


def _property_strings() -> dict[str, Any]:
    formats = load("formats")["formats"]
    return {name: row["format"] for name, row in formats.items() if row["kind"] == "property-string"}


def missing_and_extra(record: type[Record], keys: Iterator[str] | list[str]) -> list[str]:
    wanted, have = set(keys), set(record.FIELDS)
    return [f"missing {key}" for key in sorted(wanted - have)] + [f"extra {key}" for key in sorted(have - wanted)]


def differences(row: Field, spec: Mapping[str, Any], *, in_property_string: bool = False) -> Iterator[str]:
    """What a row says differently from its table entry."""
    kind_spec, list_note = spec, row.kind.array
    if list_note or spec.get("type") == "array":
        if not list_note or spec.get("type") != "array":
            yield "only one of both is a repeated option"
        kind_spec = spec["items"]
    yield from _kind(row.kind, kind_spec)
    yield from _default(row, spec)
    index = (spec["index_min"], spec["index_max"]) if "index_min" in spec else None
    if index != ((row.start, row.start + row.count - 1) if row.count else None):
        yield f"index range {index}, declared {row.start} + {row.count}"
    if row.requires != spec.get("requires", ""):
        yield f"requires {spec.get('requires')}, declared {row.requires}"
    if row.required == bool(spec.get("optional")):
        yield f"optional {spec.get('optional')}, declared required={row.required}"
    if row.bare != bool(spec.get("default_key")) and in_property_string:
        yield f"default key {spec.get('default_key')}, declared bare={row.bare}"
    if "apply" in spec and spec["apply"]["mode"] != row.apply:
        yield f"apply {spec['apply']['mode']}, declared {row.apply}"
    if not row.help.endswith((".", ". ")):
        yield f"help is not a sentence: {row.help}"


def _kind(kind: Kind, spec: Mapping[str, Any]) -> Iterator[str]:
    for key in _SCHEMA_KEYS:
        if kind.json.get(key) != spec.get(key):
            yield f"{key} {spec.get(key)}, declared {kind.json.get(key)}"
    if [str(value) for value in kind.json.get("enum", ())] != [str(value) for value in spec.get("enum", ())]:
        yield f"enum {spec.get('enum')}, declared {kind.json.get('enum')}"
    form = spec.get("format")
    structure = form if isinstance(form, Mapping) else _property_strings().get(form or "")
    if not isinstance(form, Mapping) and kind.json.get("format") != form:
        yield f"format {form}, declared {kind.json.get('format')}"
    if form == "pve-startup-order":
        return  # a property string in all but name
    if (structure is None) != (kind.record is None):
        yield "only one of both is a property string"
    elif structure is not None and kind.record is not None:
        yield from property_string(kind.record, {**structure, **spec.get("alloc_format_extra", {})})


def property_string(record: type[PropertyString], spec: Mapping[str, Any]) -> Iterator[str]:
    """What a property string says differently from its table entry."""
    own = {key: entry for key, entry in spec.items() if "alias" not in entry}
    aliases = {key: entry["alias"] for key, entry in spec.items() if "alias" in entry and "keyAlias" not in entry}
    key_aliases = {key: (entry["keyAlias"], entry["alias"]) for key, entry in spec.items() if "keyAlias" in entry}
    yield from missing_and_extra(record, list(own))
    if dict(record.ALIASES) != aliases:
        yield f"aliases {aliases}, declared {record.ALIASES}"
    if {key: record.KEY_ALIAS.get(key) for key in key_aliases} != key_aliases:
        yield f"key aliases {key_aliases}, declared {record.KEY_ALIAS}"
    for key in own.keys() & record.FIELDS.keys():
        for text in differences(record.FIELDS[key], own[key], in_property_string=True):
            yield f"{key}: {text}"


def _default(row: Field, spec: Mapping[str, Any]) -> Iterator[str]:
    wanted = spec.get("default")
    if isinstance(wanted, str) and wanted.startswith("@"):
        if row.default is not None or not row.note:
            yield f"the default is a rule ({wanted}), so it belongs into the note"
        return
    have = None if row.default is None else row.kind.format(row.default)
    if isinstance(row.default, Record) and wanted is None:
        if any(row.default.FIELDS[key].default != value for key, value in row.default.given.items()):
            yield f"default {have} is not made of its parts' defaults"
    elif row.kind.json["type"] == "boolean" and wanted is not None:
        if str(wanted) not in (_TRUE if row.default else _FALSE) or row.default is None:
            yield f"default {wanted}, declared {row.default}"
    elif have != (None if wanted is None else str(wanted)):
        yield f"default {wanted}, declared {have}"
