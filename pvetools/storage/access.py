"""Who may do what with storages: rules over a user's privileges, which are given as data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pvetools.storage.names import VolumeName
from pvetools.system.errors import Forbidden, Refused

# Content that belongs to no guest: who may look at the storage may use it.
_COMMON = frozenset({"iso", "vztmpl", "import"})
_OF_GUESTS = frozenset({"images", "rootdir"})


@dataclass(frozen=True, slots=True)
class Privileges:
    """What one user may do: privileges by path. A path without an entry has those of the nearest path above it."""

    by_path: Mapping[str, Collection[str]] = field(default_factory=dict)
    everything: bool = False

    def have(self, path: str, *wanted: str) -> bool:
        """Whether the user holds one of the privileges on a path."""
        return self.everything or bool({*wanted} & {*self._on(path)})

    def _on(self, path: str) -> Collection[str]:
        while path not in self.by_path and path != "/":
            path = path.rpartition("/")[0] or "/"
        return self.by_path.get(path, ())


ROOT = Privileges(everything=True)


def check_volume(
    privileges: Privileges, storage: str, volume: VolumeName, vmid: int | None = None, content: str = ""
) -> None:
    """Refuse a volume to those who may not use it.

    Args:
        privileges: the user's.
        storage: its storage.
        volume: what its name says.
        vmid: guest that it is to be used for.
        content: content type that is needed; a folder for containers may be any image.

    Raises:
        Refused: another content type. Forbidden.
    """
    if content and volume.content != content and (content, volume.content) != ("rootdir", "images"):
        raise Refused(f"unable to use volume '{storage}:{volume.name}' - content type needs to be '{content}'")
    if not _may_use(privileges, f"/storage/{storage}", volume, vmid):
        raise Forbidden(f"missing privileges to access volume '{storage}:{volume.name}'")


def _may_use(privileges: Privileges, path: str, volume: VolumeName, vmid: int | None) -> bool:
    if privileges.have(path, "Datastore.Allocate"):
        return True
    if volume.content in _COMMON:
        return privileges.have(path, "Datastore.AllocateSpace", "Datastore.Audit")
    if volume.vmid is None:
        return False
    if volume.vmid == vmid:
        return True
    guest = f"/vms/{volume.vmid}"
    if volume.content == "backup":
        return privileges.have(path, "Datastore.AllocateSpace") and privileges.have(guest, "VM.Backup")
    if volume.content in _OF_GUESTS:
        return privileges.have(path, "Datastore.Audit") and privileges.have(guest, "VM.Config.Disk")
    return False


class Limits(NamedTuple):
    """Limits of bandwidth by operation, in KiB per second; 0 is unlimited. ``default`` is for all without their own."""

    by_operation: Mapping[str, float]

    def of(self, operation: str) -> float | None:
        """Limit of an operation; None when nothing is said about it."""
        return self.by_operation.get(operation, self.by_operation.get("default"))


def bandwidth(
    operation: str,
    storages: Mapping[str, Limits],
    general: Limits,
    override: float | None = None,
    privileges: Privileges = ROOT,
) -> int:
    """Limit in KiB per second for an operation; 0 is unlimited.

    The lowest limit of the storages that take part counts; the general ones count for operations without a storage,
    and for storages that have none. Whoever may change a limit may ask for another one; others only for a lower one.

    Args:
        operation: clone, migration, move, restore.
        storages: limits of the storages that take part.
        general: those of the datacenter.
        override: limit that the user asks for.
        privileges: the user's.
    """
    asked = override is not None
    if asked and storages and privileges.have("/storage", "Datastore.Allocate"):
        return _lowest([override])
    bound = [
        limits.of(operation)
        for storage, limits in storages.items()
        if not (asked and privileges.have(f"/storage/{storage}", "Datastore.Allocate"))
    ]
    if (None in bound or not storages) and not (asked and privileges.have("/", "Sys.Modify")):
        bound.append(general.of(operation))
    return _lowest([override, *bound])


def _lowest(limits: Iterable[float | None]) -> int:
    lowest = min((limit for limit in limits if limit), default=0)
    return max(int(lowest), 1) if lowest else 0
