"""Whatever a declared class can hold is written to a text that reads back as the same."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvetools.options.backup import VzdumpOptions
from pvetools.options.lxc import LxcOptions
from pvetools.options.qemu import QemuOptions
from pvetools.options.storage import StorageOptions
from pvetools.schema.core import Field, NestedErrors, PropertyString, Record
from tests.unit.schema import strategies

TABLES: list[type[Record]] = [QemuOptions, LxcOptions, VzdumpOptions, StorageOptions]
_ALL = {f"{table.__name__}.{label}": row for table in TABLES for label, row in table.FIELDS.items()}
PROPERTY_STRINGS = {row.kind.record.__name__: row.kind.record for row in _ALL.values() if row.kind.record is not None}
PLAIN = {name: row for name, row in _ALL.items() if row.kind.record is None}
_quick = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.mark.parametrize("name", PROPERTY_STRINGS)
def test_a_property_string_survives_writing_and_reading(name: str) -> None:
    declared = PROPERTY_STRINGS[name]

    @_quick
    @given(strategies.records(declared))
    def survives(record: PropertyString) -> None:
        if not record.given:  # an empty line is no line: nothing is written for it
            assert record.format() == ""
            return
        again = declared.parse(record.format())
        assert again == record
        assert again.format() == record.format()

    survives()


@pytest.mark.parametrize("name", PLAIN)
def test_an_option_survives_writing_and_reading(name: str) -> None:
    row: Field = PLAIN[name]

    @_quick
    @given(strategies.texts(row.kind))
    def survives(text: str) -> None:
        value = row.kind.parse(text)
        assert row.kind.parse(row.kind.format(value)) == value

    survives()


@pytest.mark.parametrize("table", TABLES)
@_quick
@given(st.dictionaries(st.text(max_size=12), st.text(max_size=30), max_size=5))
def test_nonsense_is_refused_by_name_and_never_crashes(table: type[Record], raw: dict[str, str]) -> None:
    try:
        record = table.check(raw)
    except NestedErrors as error:
        assert error.errors
    else:
        assert set(record.given) <= set(raw)


@pytest.mark.parametrize("name", PROPERTY_STRINGS)
def test_a_damaged_property_string_is_refused_or_read_but_never_crashes(name: str) -> None:
    declared = PROPERTY_STRINGS[name]
    keys = st.sampled_from([*declared.FIELDS, *declared.ALIASES, *declared.KEY_ALIAS, "", "x"])
    pairs = st.builds("{}={}".format, keys, st.text(max_size=8)) | st.text(max_size=8)

    @_quick
    @given(st.lists(pairs, max_size=4).map(",".join))
    def survives(text: str) -> None:
        try:
            record = declared.parse(text)
        except ValueError as error:
            assert str(error)
        else:
            assert declared.parse(record.format()) == record if record.given else True

    survives()
