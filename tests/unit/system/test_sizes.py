"""Sizes as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.system import units


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1K", 1024), ("4G", 4 << 30), ("1.5T", 3 << 39), ("0.5K", 512), ("32M", 32 << 20)],
)
def test_a_size_is_a_number_with_an_optional_suffix(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1g", "1GB", "1 G", "1e3", "1..5G", ".5G", "１G", "1G\n"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        units.parse_size(text)


@given(st.integers(0, 1 << 60))
def test_a_written_size_reads_as_the_same_number(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


_UNITS = st.sampled_from(["b", "kb", "mb", "gb", "tb"])


@given(st.integers(0, 1 << 40), _UNITS, _UNITS)
def test_a_conversion_rounds_up_to_at_most_one_unit_more(value: int, source: str, target: str) -> None:
    up = units.convert_size(value, source, target)
    down = units.convert_size(value, source, target, round_up=False)
    assert up - down in (0, 1)
    assert (up == down) == (units.convert_size(down, target, source) == value)


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown unit 'xb'"):
        units.convert_size(1, "xb", "kb")


def test_a_size_for_people_is_rounded() -> None:
    assert [units.human_size(size) for size in (0, 1023, 1024, 3 << 29)] == ["0 B", "1023 B", "1.00 KiB", "1.50 GiB"]
