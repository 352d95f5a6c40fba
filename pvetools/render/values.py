"""Values in a form for people, by the names that the method tree uses for it (``renderer``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def timestamp(value: float) -> str:
    """Seconds since 1970 in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


def timestamp_gmt(value: float) -> str:
    """Seconds since 1970 in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value))


def duration(value: float) -> str:
    """Seconds as ``2w 21h 22m 24s``, rounded to whole ones."""
    rest = int(value + 0.5)
    parts: list[str] = []
    for unit, length in _SPANS:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def fraction_as_percentage(value: float) -> str:
    """``0.412`` is ``41.20%``."""
    return f"{value * 100:.2f}%"


def size(value: float) -> str:
    """Bytes with the largest unit that leaves a number above 1."""
    number = 0
    while value > 1024 and number < len(_UNITS) - 1:
        value, number = value / 1024, number + 1
    return f"{value:.2f} {_UNITS[number]}"


RENDERERS: Mapping[str, Callable[[float], str]] = {
    "timestamp": timestamp,
    "timestamp_gmt": timestamp_gmt,
    "duration": duration,
    "fraction_as_percentage": fraction_as_percentage,
    "bytes": size,
}


def rendered(renderer: str, value: Any) -> str:
    """A value as a renderer shows it; a missing value counts as 0, an unknown renderer shows it as it is."""
    if renderer not in RENDERERS:
        return "" if value is None else str(value)
    return RENDERERS[renderer](float(value or 0))
