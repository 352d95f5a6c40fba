"""What smartctl says, read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.storage.disks import smart

SECTION = "=== START OF READ SMART DATA SECTION ===\n"
HEALTH = "SMART overall-health self-assessment test result: PASSED\n"
TABLE = f"{SECTION}{HEALTH}\nVendor Specific SMART Attributes with Thresholds:\n"


def row(name: str, value: int, threshold: str = "010") -> str:
    return f"177 {name:24}PO--C-   {value:03}   099   {threshold}    -    12 (3 4)\n"


def test_a_table_of_attributes() -> None:
    report = smart.parse(TABLE + row("Wear_Leveling_Count", 97) + row("Other", 1, "---"))
    assert (report.health, report.type, report.text, report.left) == ("PASSED", "ata", "", 97)
    assert report.attributes[0] == {
        "id": "177", "name": "Wear_Leveling_Count", "flags": "PO--C-", "value": 97, "normalized": 97, "worst": 99,
        "threshold": 10, "fail": "-", "raw": "12 (3 4)",
    }  # fmt: skip
    assert report.attributes[1]["threshold"] == 0


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("Percentage Used:                    31%\n", 69),
        ("Percentage used endurance indicator: 0.5%\n", 99.5),
        ("Percentage Used:  255%\n", -155),
        ("nothing\n", None),
    ],
)
def test_life_in_lines_for_people(lines: str, left: float | None) -> None:
    report = smart.parse(f"{SECTION}SMART Health Status: OK\n{lines}")
    assert (report.health, report.type, report.left) == ("OK", "text", left)
    assert report.text == lines
    assert ("wearout" in report.as_data()) == (left is not None)


def test_the_most_trusted_attribute_tells_the_life() -> None:
    report = smart.parse(TABLE + row("Perc_Rated_Life_Used", 12) + row("Media_Wearout_Indicator", 88))
    assert report.left == 88


def test_nothing_known() -> None:
    assert smart.parse("").as_data() == {"health": "UNKNOWN"}
    assert smart.parse("SMART Disabled. Use option -s with argument 'on' to enable it.\n").health == "SMART Disabled"


@given(st.integers(0, 999), st.integers(0, 999), st.from_regex(r"\S[ -~]{0,30}\S", fullmatch=True))
def test_attributes_come_through(number: int, value: int, raw: str) -> None:
    line = f"{number:3} Some_Name               -O--CK   {value:03}   100   000    NOW  {raw}\n"
    (found,) = smart.parse(TABLE + line).attributes
    assert (int(found["id"]), found["value"], found["raw"], found["fail"]) == (number, value, raw, "NOW")
