"""Sizes as users and tools write them. Bytes inside, always.

Fractions are imported where they are needed: with decimals below them they cost every command 3 ms.
"""

from __future__ import annotations

import re

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_DISK_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT])?", re.ASCII)
_CONVERT = {"b": 1, "kb": KIB, "mb": MIB, "gb": GIB, "tb": TIB, "pb": 1 << 50}
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a disk size such as ``4G``, ``1.5T`` or ``512K`` (no suffix: bytes).

    Raises:
        ValueError: not a size.
    """
    match = _DISK_SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"invalid size '{text}', expected a number with an optional suffix K, M, G or T")
    number, factor = match[1], _FACTORS[match[2] or ""]
    if "." not in number:
        return int(number) * factor
    from fractions import Fraction

    return int(Fraction(number) * factor)


def format_size(size: int) -> str:
    """Shortest exact form with one of the suffixes K, M, G, T (``size=32G`` in drive lines)."""
    for suffix, factor in (("T", TIB), ("G", GIB), ("M", MIB), ("K", KIB)):
        if size and size % factor == 0:
            return f"{size // factor}{suffix}"
    return str(size)


def human_size(size: int) -> str:
    """Rounded size for people: ``1.50 GiB``."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):  # noqa: B007 - the unit reached is the result
        if value < 1024:
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.2f} {unit}"


def convert_size(value: str | float | None, source: str, target: str, *, round_up: bool = True) -> int:
    """Convert between binary units named ``b kb mb gb tb pb``; partial target units are rounded up.

    Raises:
        ValueError: a negative or malformed number, or an unknown unit.
    """
    text = "" if value is None else str(value)
    if not text:
        raise ValueError("no value given")
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"value '{text}' is not a valid, positive number")
    for unit in (source, target):
        if unit not in _CONVERT:
            raise ValueError(f"unknown unit '{unit}', expected one of {', '.join(_CONVERT)}")
    from fractions import Fraction

    scaled = Fraction(text if not text.endswith(".") else text[:-1]) * _CONVERT[source] / _CONVERT[target]
    whole = scaled.numerator // scaled.denominator
    return whole + 1 if round_up and scaled != whole else whole
