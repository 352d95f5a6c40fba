"""Volumes on servers that QEMU talks to itself."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pvetools.storage.driver import Source


@runtime_checkable
class Remote(Protocol):
    """A backend that knows how QEMU reaches a volume without having to ask the server."""

    def told(self, name: str) -> Source:
        """How QEMU would reach a volume, which need not exist; nothing is activated, mapped or logged in to."""
