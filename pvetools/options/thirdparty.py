"""Types of storages that other Python packages bring along, by the entry point group ``pvetools.storage``.

An entry point's name is the type, its value ``module:Class``. The class is the backend (see ``storage/driver.py``). It
has the attribute ``TYPE``, a ``StorageType`` that says which options the type takes, and it may have ``OPTIONS``, a
``Record`` with the options that are its own. Packages are only asked about types and options that are not built in:
that keeps the tools' start fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pvetools.schema.core import Field
from pvetools.system.errors import PveError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pvetools.options.storage import StorageType

GROUP = "pvetools.storage"


@cache
def entries() -> Mapping[str, EntryPoint]:
    """Entry points by type."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def backend(type_: str) -> Any:
    """The backend class of a type; None for a type that nobody brings along.

    Raises:
        PveError: its package is broken.
    """
    point = entries().get(type_)
    if point is None:
        return None
    try:
        found = point.load()
    except Exception as error:  # whatever another package does wrong
        raise PveError(f"storage type '{type_}': can't load '{point.value}': {error}") from error
    if not hasattr(found, "TYPE"):
        raise PveError(f"storage type '{type_}': '{point.value}' does not say which options it takes (TYPE)")
    return found


def kind(type_: str) -> StorageType | None:
    """What storages of a type can take; None for a type that nobody brings along."""
    found = backend(type_)
    return found.TYPE if found else None


def own_field(name: str) -> Field | None:
    """The row of an option that one of the packages declares."""
    for type_ in entries():
        options = getattr(backend(type_), "OPTIONS", None)
        if options and (row := options.FIELDS.get(name)):
            return row  # type: ignore[no-any-return]
    return None
