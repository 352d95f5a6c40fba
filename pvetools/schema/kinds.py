"""The kinds of values: each a parser, a writer and a JSON schema. Errors are reasons without the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pvetools.schema.core import Kind

_TRUE, _FALSE = {"1", "on", "yes", "true"}, {"0", "off", "no", "false"}


def _parse_boolean(text: str) -> bool:
    low = text.strip().lower()
    if low in _TRUE:
        return True
    if low in _FALSE:
        return False
    raise ValueError(f"type check ('boolean') failed - got '{text}'")


boolean = Kind(_parse_boolean, lambda value: "1" if value else "0", {"type": "boolean"})


def string(pattern: str = "", *, min_length: int = 0, max_length: int = 0, complete: str = "", form: str = "") -> Kind:
    """Text, optionally with a pattern (whole value) and a length in characters. ``form`` names it in schemas."""

    def parse(text: str) -> str:
        if len(text) < min_length:
            raise ValueError(f"value must be at least {min_length} characters long")
        if max_length and len(text) > max_length:
            raise ValueError(f"value may only be {max_length} characters long")
        if pattern and not re.fullmatch(pattern, text, re.ASCII):  # compiled at first use: imports stay fast
            raise ValueError(f"value '{text}' does not match the regex pattern '{pattern}'")
        return text

    limits = {"pattern": pattern, "minLength": min_length, "maxLength": max_length, "format": form}
    return Kind(parse, str, {"type": "string", **{key: value for key, value in limits.items() if value}}, complete)


def _check_range(value: float, minimum: float | None, maximum: float | None) -> None:
    if minimum is not None and value < minimum:
        raise ValueError(f"value must have a minimum value of {minimum}")
    if maximum is not None and value > maximum:
        raise ValueError(f"value must have a maximum value of {maximum}")


def _range_schema(type_: str, minimum: float | None, maximum: float | None) -> dict[str, Any]:
    limits = {"minimum": minimum, "maximum": maximum}
    return {"type": type_, **{key: value for key, value in limits.items() if value is not None}}


def integer(minimum: int | None = None, maximum: int | None = None, *, complete: str = "") -> Kind:
    """A whole number within limits (both included)."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
            raise ValueError(f"type check ('integer') failed - got '{text}'")
        value = int(text)
        _check_range(value, minimum, maximum)
        return value

    return Kind(parse, str, _range_schema("integer", minimum, maximum), complete)


def _format_number(value: float) -> str:
    """Shortest form that reads back as the same number, without an exponent."""
    if value == int(value):
        return str(int(value))
    text = repr(float(value))
    return f"{value:.20f}".rstrip("0") if "e" in text else text


def number(minimum: float | None = None, maximum: float | None = None) -> Kind:
    """A decimal number within limits (both included)."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[+-]?[0-9]{0,20}\.?[0-9]{1,20}|[+-]?[0-9]{1,20}\.", text):
            raise ValueError(f"type check ('number') failed - got '{text}'")
        value = float(text)
        _check_range(value, minimum, maximum)
        return value

    return Kind(parse, _format_number, _range_schema("number", minimum, maximum))


def choice(*values: str) -> Kind:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"value '{text}' does not have a value in the enumeration '{', '.join(values)}'")
        return text

    return Kind(parse, str, {"type": "string", "enum": list(values)})


def split_list(text: str) -> list[str]:
    """Parts of a list written with commas, semicolons, blanks or NUL bytes."""
    return [part for part in re.split(r"[,;\s\0]+", text) if part]


def listing(kind: Kind, separator: str = ",") -> Kind:
    """A list in one string; an empty string is an empty list. All separators are read, one is written."""

    def parse(text: str) -> list[Any]:
        return [kind.parse(part) for part in split_list(text)]

    schema = {**kind.json, "type": "string"}
    if "format" in schema:
        schema["format"] = f"{schema['format']}-list"
    return Kind(parse, lambda value: separator.join(kind.format(part) for part in value), schema, kind.complete)


def checked(form: str, check: Callable[[str], object], *, complete: str = "", max_length: int = 0) -> Kind:
    """Text that a function accepts or refuses with ValueError; ``form`` is the format's public name, if it has one."""

    def parse(text: str) -> str:
        if max_length and len(text) > max_length:
            raise ValueError(f"value may only be {max_length} characters long")
        try:
            check(text)
        except ValueError as error:
            raise ValueError(f"invalid format - {error}") from None
        return text

    schema: dict[str, Any] = {"type": "string", **({"format": form} if form else {})}
    if max_length:
        schema["maxLength"] = max_length
    return Kind(parse, str, schema, complete)


def by_pattern(form: str, pattern: str, what: str, *, complete: str = "", max_length: int = 0) -> Kind:
    """Text with a public format name and a pattern; ``what`` says in words what is expected."""

    def check(text: str) -> None:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"value '{text}' does not look like {what}")

    return checked(form, check, complete=complete, max_length=max_length)


def either(first: Kind, second: Kind) -> Kind:
    """A value of one kind or another; the second one's reason is reported."""

    def parse(text: str) -> Any:
        try:
            return first.parse(text)
        except ValueError:
            return second.parse(text)

    return second._replace(parse=parse, complete=first.complete or second.complete)
