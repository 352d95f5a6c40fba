"""Every declared option says the same as the public interface tables."""

from __future__ import annotations

import pytest

from pvetools.options.backup import VzdumpDefaults, VzdumpOptions
from pvetools.options.lxc import LxcOptions
from pvetools.options.qemu import QemuOptions
from pvetools.options.storage import TYPES, StorageOptions
from pvetools.schema.core import Record
from tests.unit.options import spec

_QEMU, _LXC = spec.load("qm.conf")["options"], spec.load("pct.conf")["options"]
_BACKUP, _STORAGE = spec.load("vzdump.conf")["options"], spec.load("storage.cfg")
_SNAPSHOT_KEYS = {"parent", "snaptime"}  # of containers: internal, named beside the table
_VZDUMP = next(
    row["parameters"] for row in spec.load("api") if row["path"] == "/nodes/{node}/vzdump" and row["method"] == "POST"
)

_TABLES: list[tuple[str, type[Record], dict]] = [
    ("qm.conf", QemuOptions, _QEMU),
    ("pct.conf", LxcOptions, _LXC),
    ("vzdump.conf", VzdumpDefaults, _BACKUP),
    ("vzdump", VzdumpOptions, _VZDUMP),
    ("storage.cfg", StorageOptions, _STORAGE["properties"]),
]
_ROWS = [
    pytest.param(record, label, entry, id=f"{table}-{label}")
    for table, record, entries in _TABLES
    for label, entry in entries.items()
]


@pytest.mark.parametrize(("record", "label", "entry"), _ROWS)
def test_option_has_the_public_type_range_default_and_apply_mode(record: type[Record], label: str, entry: dict) -> None:
    allowed = ["extra import-from"] if label == "cdrom" else []  # another name of ide2, and of its declaration
    if record is StorageOptions and label == "type":
        entry = {**entry, "enum": sorted({*entry["enum"]} | _OWN_TYPES)}
    assert list(spec.differences(record.FIELDS[label], entry)) == allowed


def test_no_option_is_missing_and_none_is_made_up() -> None:
    found = {table: spec.missing_and_extra(record, list(entries)) for table, record, entries in _TABLES}
    assert found.pop("pct.conf") == [f"extra {key}" for key in sorted(_SNAPSHOT_KEYS)]
    assert found == {"qm.conf": [], "vzdump.conf": [], "vzdump": [], "storage.cfg": []}


def test_internal_options_of_virtual_machines_are_marked() -> None:
    marked = {row.name for row in QemuOptions.FIELDS.values() if row.apply == "internal"}
    assert marked == set(spec.load("qm.conf")["internal_options"])
    assert {row.name for row in LxcOptions.FIELDS.values() if row.apply == "internal"} == _SNAPSHOT_KEYS


# What goes beyond the tables: a type, a login for targets, a mount point that need not be given.
_OWN_TYPES = {"nvmeof"}
_OWN_OPTIONS = {"iscsidirect": {"password", "username"}}
_PLACED = {"cephfs", "cifs", "nfs"}


@pytest.mark.parametrize("name", _STORAGE["types"])
def test_storage_type_takes_exactly_its_options(name: str) -> None:
    entry, ours, own = _STORAGE["types"][name], TYPES[name], _OWN_OPTIONS.get(name, set())
    options = entry["options"]
    assert ours.options == {*options} | own
    required = {key for key, flags in options.items() if flags.get("required")}
    assert ours.required == required - ({"path"} if name in _PLACED else set())
    assert ours.fixed == {key for key, flags in options.items() if flags.get("fixed")}
    assert ours.options <= StorageOptions.FIELDS.keys()
    assert ours.content == set(entry["content"]["allowed"])
    assert ours.default_content == set(entry["content"]["default"])
    assert ours.formats == set(entry.get("format", {}).get("allowed", ["raw"]))
    assert ours.default_format == entry.get("format", {}).get("default", "raw")
    assert ours.sensitive == {*entry["sensitive_properties"]} | (own & {"password"})
    assert ours.select_existing == bool(entry.get("select_existing"))


def test_every_storage_type_is_there() -> None:
    assert {*TYPES} == {*_STORAGE["types"]} | _OWN_TYPES
