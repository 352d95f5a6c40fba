"""Notes of an archive, made from a one-line template."""

from __future__ import annotations

import re
from collections.abc import Mapping

VARIABLES = ("cluster", "guestname", "node", "vmid")
_ESCAPES = {"\\n": "\n", "\\\\": "\\"}
_ESCAPE = re.compile(r"\\.?", re.DOTALL)
_VARIABLE = re.compile(r"\{\{([^}]+)\}\}")


def _unescape(template: str) -> str:
    def plain(match: re.Match[str]) -> str:
        if match[0] not in _ESCAPES:
            raise ValueError(f"'{match[0]}' is not an escape, only '\\n' and '\\\\' are")
        return _ESCAPES[match[0]]

    return _ESCAPE.sub(plain, template)


def check(template: str) -> None:
    """Accept a template.

    Raises:
        ValueError: a line break, an unknown escape or an unknown variable.
    """
    if "\n" in template:
        raise ValueError("the template must be one line; write line breaks as '\\n'")
    for name in _VARIABLE.findall(_unescape(template)):
        if name not in VARIABLES:
            known = ", ".join(f"{{{{{word}}}}}" for word in VARIABLES)
            raise ValueError(f"unknown variable '{{{{{name}}}}}', expected one of {known}")


def render(template: str, values: Mapping[str, str]) -> str:
    """The notes: escapes are replaced first, then variables, whose values stay as they are.

    Raises:
        ValueError: see ``check``.
    """
    check(template)
    return _VARIABLE.sub(lambda match: values[match[1]], _unescape(template))
