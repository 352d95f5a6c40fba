"""An example of a storage backend of another package: one shelf of a directory that several storages share.

Its entry point, in the package's metadata:

    [project.entry-points."pvetools.storage"]
    shelf = "pvetools_shelf:Shelf"
"""

from __future__ import annotations

from pathlib import Path

from pvetools.options.storage import StorageType
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import string
from pvetools.storage import secrets
from pvetools.storage.folders import FolderStorage
from pvetools.system.errors import PveError


class ShelfOptions(Record):
    """Options that only this type has."""

    shelf: str = field(string("[a-z]+"), "Name of the shelf.")
    shelf_key: str = field(string(), "Key of the shelf's lock; kept in a file of its own.", name="shelf-key")


class Shelf(FolderStorage):
    """One storage of type ``shelf``."""

    OPTIONS = ShelfOptions
    TYPE = StorageType(
        options=frozenset({"content", "disable", "format", "nodes", "path", "shared", "shelf", "shelf-key"}),
        required=frozenset({"path", "shelf"}),
        fixed=frozenset({"path"}),
        content=frozenset({"images", "iso"}),
        default_content=frozenset({"images"}),
        formats=frozenset({"raw", "qcow2"}),
        default_format="qcow2",
        sensitive=frozenset({"shelf-key"}),
        select_existing=False,
    )
    info = FolderStorage.info._replace(alloc=frozenset({"raw", "qcow2"}))

    @property
    def base(self) -> str:
        return f"{super().base}/{self.definition.options.given['shelf']}"

    def attach(self) -> None:
        lock = Path(f"{super().base}/{self.definition.options.given['shelf']}.lock")
        key = secrets.read(self.id, self.definition.type, "shelf-key")
        if lock.exists() and lock.read_text() != key:
            raise PveError(f"storage '{self.id}': the key does not fit")
