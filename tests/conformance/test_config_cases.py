"""Public cases of configuration files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvetools.config import guest, pending, sections
from pvetools.schema.core import Record
from pvetools.system.errors import ConfigError
from tests.conformance import declare, loader

VMID = 8006


@pytest.mark.parametrize("mode", ["strict", "non-strict"])
@pytest.mark.parametrize("folder", loader.folders("qemu-parse-config"))
def test_a_vm_file_is_rewritten_as_expected(folder: Path, mode: str) -> None:
    text = (folder / "input.conf").read_text()
    error = folder / f"{mode}.error"
    if error.exists():
        with pytest.raises(ConfigError) as caught:
            guest.verify(guest.parse("qemu", VMID, text))
        assert f"vm {VMID} - {caught.value.reason}" == error.read_text().rstrip("\n")
        return
    config = guest.parse("qemu", VMID, text, strict=mode == "strict")
    guest.verify(config, strict=mode == "strict")
    assert config.canonical() == (folder / "expected.conf").read_text()


def _texts(value: Any) -> Any:
    """Numbers and numeric texts are the same in these suites."""
    if isinstance(value, dict):
        return {key: _texts(item) for key, item in value.items()}
    return value if value is None else str(value)


def _forced(keys: dict[str, Any]) -> dict[str, bool]:
    return {key: bool(int(value["force"])) for key, value in keys.items()}


def _on_pending(case: dict[str, Any]) -> Any:
    config, *rest = case["params"]
    if case["function"] == "parse_pending_delete":
        return {key: {"force": int(force)} for key, force in pending.parse_delete(config).items()}
    if case["function"] == "print_pending_delete":
        return pending.format_delete(_forced(config))
    config = _texts(config)
    changes = config.setdefault("pending", {})
    if case["function"] == "add_to_pending_delete":
        pending.add_delete(changes, rest[0], force=bool(rest[1:] and rest[1]))
    elif case["function"] == "remove_from_pending_delete":
        pending.drop_delete(changes, rest[0])
    elif case["function"] == "cleanup_pending":
        pending.clean({key: value for key, value in config.items() if key != "pending"}, changes)
    else:
        pytest.skip(f"no counterpart of {case['function']}")
    return config


@pytest.mark.parametrize("case", loader.table("common/pending_changes")[0])
def test_pending_changes(case: dict[str, Any]) -> None:
    assert _texts(_on_pending(case)) == _texts(case["expected"])


def _section_types(suite: str, *, isolated: bool) -> dict[str, type[Record]]:
    """Each type's own record; types share the schemas of their properties unless these are isolated."""
    environment = loader.table(suite)[1]
    types = {}
    for name, entry in environment.get("types", {}).items():
        known = {**environment["shared_properties"], **({} if isolated else entry["properties"])}
        options = {key: {**known[key], **more} for key, more in entry["options"].items()}
        if isolated:
            options.update(entry["properties"])
        required = {} if isolated else {key: {"optional": 0} for key, more in entry["options"].items() if not more}
        types[name] = declare.record({key: {**schema, **required.get(key, {})} for key, schema in options.items()})
    return types


def _parsed_sections(case: dict[str, Any], types: dict[str, type[Record]]) -> sections.SectionFile:
    file = sections.parse(case["input"], Path("cases.cfg"), strict=True)
    checks = {name: record.check for name, record in types.items()}
    problems = sections.verify(file, checks, allow_unknown=bool(case.get("allow_unknown")))
    if problems:
        raise ConfigError(file.path, *problems[0])
    return file


def _as_expected(file: sections.SectionFile, types: dict[str, type[Record]]) -> dict[str, Any]:
    ids: dict[str, Any] = {}
    for section in file.sections:
        values: dict[str, Any] = dict(section.values)
        for key, value in section.values.items():
            found = types[section.type].find(key) if section.type in types else None
            if found and found[0].kind.array and isinstance(value, str):
                values[key] = [value]
        ids[section.id] = {**values, "type": section.type}
    return {"ids": ids, "order": {name: number for number, name in enumerate(ids, 1)}}


def _compare_sections(case: dict[str, Any], types: dict[str, type[Record]]) -> None:
    if case.get("must_fail"):
        with pytest.raises(ConfigError, match=r"cases\.cfg line"):
            _parsed_sections(case, types)
        return
    file = _parsed_sections(case, types)
    assert _texts(_as_expected(file, types)) == _texts(case["expected"])
    for section in file.sections:
        section.raw = ""  # written anew, not copied
    again = _parsed_sections({**case, "input": file.text()}, types)
    assert _as_expected(again, types) == _as_expected(file, types)


@pytest.mark.parametrize("case", loader.table("common/section_config")[0])
def test_section_files(case: dict[str, Any]) -> None:
    _compare_sections(case, _section_types("common/section_config", isolated=False))


@pytest.mark.parametrize("case", loader.table("common/section_config_isolation")[0])
def test_section_files_with_own_properties_by_type(case: dict[str, Any]) -> None:
    _compare_sections(case, _section_types("common/section_config_isolation", isolated=True))
