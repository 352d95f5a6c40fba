"""A small XML writer: elements with attributes, text and children, in the order in which they are added."""

from __future__ import annotations

import re

_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}
_SPECIAL = re.compile(r'[&<>"\n\t\r]')


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], text)


class Element:
    """One element. Attributes whose value is None are left out; numbers are written as they are."""

    def __init__(self, tag: str, text: object = "", /, **attributes: object) -> None:
        self.tag, self.content = tag, str(text)
        self.attributes = {name: str(value) for name, value in attributes.items() if value is not None}
        self.children: list[Element] = []

    def add(self, tag: str, text: object = "", /, **attributes: object) -> Element:
        """Append a new child and return it."""
        return self.append(Element(tag, text, **attributes))

    def append(self, child: Element) -> Element:
        """Append a child and return it."""
        self.children.append(child)
        return child

    def find(self, tag: str) -> Element | None:
        """The first child of that name."""
        return next((child for child in self.children if child.tag == tag), None)

    def one(self, tag: str) -> Element:
        """The only child of that name, made when it is not there yet."""
        return self.find(tag) or self.add(tag)

    def serialise(self, indent: str = "") -> str:
        """The element as indented text."""
        head = self.tag + "".join(f' {name}="{_escaped(value)}"' for name, value in self.attributes.items())
        if not self.children and not self.content:
            return f"{indent}<{head}/>\n"
        if not self.children:
            return f"{indent}<{head}>{_escaped(self.content)}</{self.tag}>\n"
        inner = "".join(child.serialise(indent + "  ") for child in self.children)
        return f"{indent}<{head}>\n{inner}{indent}</{self.tag}>\n"
