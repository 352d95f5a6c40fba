"""Storages on what is made of disks: defined together with it, and removed together with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from pvetools.config import guest
from pvetools.storage import defining, definition
from pvetools.storage.definition import Definition
from pvetools.system import files, log, paths
from pvetools.system.errors import Exists, NotFound, Refused

Match = Callable[[Definition], bool]
_WORD = {"qemu": "VM", "lxc": "CT"}
GUESTS = "images,rootdir"


class New:
    """A storage that is defined once its place has been made; what is wrong with it is told before that.

    Raises:
        ParamErrors: wrong options. Exists: the name is used by another storage.
    """

    def __init__(self, name: str, type_: str, options: Mapping[str, str]) -> None:
        self.name, self.type = name, type_
        self.options = {**options, "nodes": paths.node()}
        wanted = definition.check(name, type_, self.options)
        self._present = _present(name)
        if self._present and not self._same(self._present):
            raise Exists(f"storage '{name}' exists already, and is another one")
        del wanted

    def _same(self, present: Definition) -> bool:
        """Whether a storage of another node is the very same thing there."""
        have = present.options.texts()
        fixed = [key for key in self.options if key not in ("nodes", "content")]
        return (
            present.type == self.type
            and bool(present.options.nodes)
            and not present.on_node(paths.node())
            and all(have.get(key) == self.options[key] for key in fixed)
        )

    def add(self) -> None:
        """Define it, or add this node to the storage of that name on other nodes."""
        if self._present:
            nodes = ",".join([*(self._present.options.nodes or ()), paths.node()])
            defining.update(self.name, {"nodes": nodes})
        else:
            defining.add(self.name, self.type, self.options)
        log.emit(f"Storage '{self.name}' is defined")


def _present(name: str) -> Definition | None:
    try:
        return definition.get(name)
    except NotFound:
        return None


def in_group(name: str) -> Match:
    """Whether a storage lies on a volume group."""
    return lambda found: found.options.vgname == name


def matching(match: Match) -> list[Definition]:
    """The storages of this node that lie on something."""
    return [found for found in definition.every()[0].values() if found.on_node(paths.node()) and match(found)]


def require_unused(match: Match, *, below: Collection[str] = ()) -> None:
    """Refuse to destroy what guests have disks on: those of this node, and of all nodes where the storage is shared.

    Args:
        match: whether a storage lies on it. Those whose definition is damaged may.
        below: what the paths begin with that lie on it, such as ``/dev/GROUP/``.

    Raises:
        Refused: naming guest and volume.
    """
    known = definition.every()[0]
    here = {found.id for found in matching(match)} | (definition.load().ids().keys() - known.keys())
    shared = {name for name in here if name in known and known[name].shared}
    for vmid, (node, kind) in guest.cluster_guests().items():
        mine = node == paths.node()
        for key, place in guest.places(files.read_text(paths.guest_config(kind, vmid, node)) or ""):
            storage = place.partition(":")[0]
            lies_there = place.startswith(tuple(below)) if place.startswith("/") else storage in here
            if lies_there and (mine or storage in shared):
                where = "" if mine else f" of node '{node}'"
                raise Refused(f"volume '{place}' belongs to {_WORD[kind]} {vmid}{where} ({key}); remove that first")


def forget(match: Match) -> None:
    """Remove the definitions of storages that lay on something; storages of other nodes too stay for these."""
    for found in matching(match):
        others = [node for node in _nodes(found) if node != paths.node()]
        if others:
            defining.update(found.id, {"nodes": ",".join(others)})
            log.emit(f"Storage '{found.id}' stays for {', '.join(others)}")
        elif not found.implicit:
            defining.remove(found.id)
            log.emit(f"Storage '{found.id}' is removed")


def _nodes(found: Definition) -> list[str]:
    if found.options.nodes:
        return list(found.options.nodes)
    folder = paths.etc_pve() / "nodes"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
