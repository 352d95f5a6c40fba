"""Public cases of schema checks, property strings, named formats and rendered values."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pvetools.render.values import rendered
from pvetools.schema import formats
from pvetools.schema.core import NestedErrors, parse_value
from pvetools.schema.kinds import split_list
from tests.conformance import declare, loader

_FORMAT_CASES = loader.table("common/format")[0]
_KINDS = {"configid": formats.config_id, "storage-id": formats.storage_id, "vmid": formats.vmid}


def _errors(call: Any) -> dict[str, str]:
    """Reasons by property; "" for an error about the whole."""
    try:
        call()
    except NestedErrors as error:
        return error.errors
    except ValueError as error:
        return {"": str(error)}
    return {}


def _expressible(build: Any) -> Any:
    try:
        return build()
    except declare.Inexpressible as reason:
        pytest.skip(str(reason))


def _raw(value: Any) -> dict[str, Any]:
    return {key: item if isinstance(item, list) else str(item) for key, item in value.items() if item is not None}


@pytest.mark.parametrize("case", loader.table("common/json_schema")[0])
def test_a_value_is_accepted_or_refused_as_its_schema_says(case: dict[str, Any]) -> None:
    if "format" in case:
        declared = _expressible(lambda: declare.property_string(case["format"]))
        door, value = declared.parse, case["input"]
    else:
        declared = _expressible(lambda: declare.record(case["schema"]))
        door, value = declared.check, _raw(case["input"])
    errors, wanted = _errors(lambda: door(value)), case.get("must_fail")
    if wanted is None:
        assert errors == {}
        expected = case.get("expected")
        assert expected is None or door(value).given == expected
    elif "regex" in wanted:
        assert any(re.search(wanted["regex"], line, re.IGNORECASE) for line in _lines(errors)), errors
    else:
        assert errors.keys() == wanted.keys()
        assert all(re.search(wanted[key]["regex"], reason) for key, reason in errors.items())


def _lines(errors: dict[str, str]) -> Iterator[str]:
    return (f"{key}: {reason}" if key else reason for key, reason in errors.items())


@pytest.mark.parametrize("case", loader.table("common/api_parameter")[0])
def test_a_parameter_is_read_with_its_list_separators_or_as_a_repeated_option(case: dict[str, Any]) -> None:
    kind = _expressible(lambda: declare.kind(case["schema"]))
    expected = case["expected"]
    if case["schema"]["type"] == "string" and isinstance(expected, str):
        expected = split_list(expected)  # our values are typed: a list, however it was written
    assert parse_value(kind, case["value"]) == expected


@pytest.fixture
def case_timezone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC-1")  # POSIX: one hour east of UTC
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("case", _FORMAT_CASES)
@pytest.mark.usefixtures("case_timezone")
def test_a_format_is_checked_and_a_value_is_shown_for_people(case: dict[str, Any]) -> None:
    if case["kind"] == "render":
        assert rendered(case["renderer"], case["value"]) == case["expected"]
    elif case["kind"] in _KINDS:
        assert bool(_errors(lambda: _KINDS[case["kind"]].parse(case["value"]))) != bool(case["valid"])
    else:
        pytest.skip(f"no format of ours is called {case['kind']}")
