"""XML that others have written: read without a document type, so without entities, which could read files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from pvetools.system.errors import PveError, Refused

_DEEPEST = 100


@dataclass
class Node:
    """An element; names stand without their namespace, as some programs forget to declare it."""

    name: str
    attributes: Mapping[str, str]
    children: list[Node] = field(default_factory=list)
    text: str = ""

    def all(self, name: str) -> list[Node]:
        """Children with a name."""
        return [child for child in self.children if child.name == name]

    def first(self, name: str) -> Node | None:
        return next(iter(self.all(name)), None)

    def at(self, *names: str) -> Node | None:
        """The element at the end of a path, first come first served."""
        found: Node | None = self
        for name in names:
            found = found.first(name) if found else None
        return found

    def value(self, name: str) -> str:
        """Text of a child; empty when there is none."""
        found = self.first(name)
        return found.text.strip() if found else ""

    def number(self, name: str) -> int | None:
        """Whole number in a child; None when there is none."""
        text = self.value(name)
        return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def parse(data: bytes, what: str) -> Node:
    """Read a document; ``what`` names it in errors.

    Raises:
        PveError: malformed. Refused: it has a document type.
    """
    top = Node("", {})
    path = [top]

    def start(name: str, attributes: dict[str, str]) -> None:
        node = Node(_local(name), {_local(key): text for key, text in attributes.items()})
        path[-1].children.append(node)
        path.append(node)
        if len(path) > _DEEPEST:
            raise PveError(f"{what}: elements are nested too deep")

    def text(data: str) -> None:
        path[-1].text += data

    def refuse(*_: object) -> None:
        raise Refused(f"{what}: a document type or an entity is declared, which is not allowed")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: path.pop()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two of encodings
        raise PveError(f"{what} is not valid XML: {error}") from None
    return top.children[0]
