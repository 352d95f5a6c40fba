"""The marked part of a text file that belongs to us; everything around it belongs to the container."""

from __future__ import annotations

import re
from typing import Literal

BEGIN, END = "# --- BEGIN PVE ---", "# --- END PVE ---"
_SECTION = re.compile(rf"^{re.escape(BEGIN)}[ \t]*\n(.*?)^{re.escape(END)}[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)


def wrapped(body: str) -> str:
    """A marked part."""
    return f"{BEGIN}\n{body}{END}\n" if body else ""


def outside(text: str) -> str:
    """A text without its marked part."""
    return _SECTION.sub("", text)


def updated(text: str, body: str, otherwise: Literal["append", "replace"]) -> str:
    """Put a new marked part in place of the old one; a file without one is appended to, or replaced as a whole."""
    if _SECTION.search(text):
        return _SECTION.sub(lambda _: wrapped(body), text, count=1)
    if otherwise == "replace":
        return wrapped(body)
    if text and not text.endswith("\n"):
        text += "\n"
    return text + wrapped(body)
