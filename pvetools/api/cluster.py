"""Methods about all nodes together; today there is one node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pvetools.api import tree
from pvetools.api.nodes import NoParams, as_row
from pvetools.api.tree import method
from pvetools.schema import formats
from pvetools.schema.core import PropertyString, Record, field
from pvetools.schema.kinds import choice, integer
from pvetools.system import files, paths, task
from pvetools.system.errors import ParamErrors, PveError

_GUEST_KEYS = (
    "vmid", "name", "cpu", "maxcpu", "mem", "maxmem", "disk", "maxdisk", "diskread", "diskwrite", "netin", "netout",
    "uptime", "template", "tags", "lock",
)  # fmt: skip


class ResourcesParams(Record):
    type: str | None = field(choice("vm", "storage", "node", "sdn"), "Only resources of this type.")


class NextIdParams(Record):
    vmid: int | None = field(formats.vmid, "Check that this id is free.")


class NextIdRange(PropertyString):
    """Value of ``next-id`` in ``datacenter.cfg``: where free ids are looked for, ``upper`` excluded."""

    lower: int = field(integer(100, 999_999_999), "First id.", default=100)
    upper: int = field(integer(100, 1_000_000_000), "End of the range.", default=1_000_000)


def _items(**renderers: str) -> dict[str, Any]:
    properties = {key: {"type": "integer", "renderer": renderer} for key, renderer in renderers.items()}
    return {"type": "array", "items": {"type": "object", "properties": properties}}


@method(
    "GET",
    "/cluster/resources",
    ResourcesParams,
    permission=("user",),
    returns=_items(maxmem="bytes", maxdisk="bytes", uptime="duration"),
)
def resources(params: ResourcesParams) -> list[dict[str, Any]]:
    """List guests, storages and nodes with their state."""
    found: list[dict[str, Any]] = []
    if params.type in (None, "vm"):
        found += [row for kind in paths.CONFIG_FOLDER for row in _guests(kind)]
    if params.type in (None, "node"):
        from pvetools.api import host

        found.append(host.summary())
    if params.type in (None, "storage"):
        found += _storages()
    return found


def _listed(module: str, path: str) -> list[dict[str, Any]]:
    tree.load(module)
    row, variables = tree.find("GET", path)
    return list(tree.call(row, variables))


def _guests(kind: str) -> Iterator[dict[str, Any]]:
    for listed in _listed(kind, f"/nodes/{paths.node()}/{kind}"):
        row = {key: listed[key] for key in _GUEST_KEYS if listed.get(key) is not None}
        row |= {"id": f"{kind}/{listed['vmid']}", "type": kind, "node": paths.node(), "status": listed["status"]}
        if "cpus" in listed:
            row["maxcpu"] = listed["cpus"]
        yield {"template": 0, **row}


def _storages() -> Iterator[dict[str, Any]]:
    for listed in _listed("storage", f"/nodes/{paths.node()}/storage"):
        yield {
            "id": f"storage/{paths.node()}/{listed['storage']}",
            "type": "storage",
            "node": paths.node(),
            "storage": listed["storage"],
            "plugintype": listed["type"],
            "content": listed["content"],
            "shared": listed.get("shared", 0),
            "status": "available" if listed.get("active") else "unavailable" if listed.get("enabled") else "unknown",
            "disk": listed.get("used", 0),
            "maxdisk": listed.get("total", 0),
        }


@method("GET", "/cluster/nextid", NextIdParams, permission=("user",), returns={"type": "integer"})
def next_id(params: NextIdParams) -> int:
    """Show the lowest free guest id, or check that one is free."""
    from pvetools.config import guest as config

    used = config.cluster_guests()
    if params.vmid is not None:
        if params.vmid in used:
            node, kind = used[params.vmid]
            raise ParamErrors({"vmid": f"{'VM' if kind == 'qemu' else 'CT'} {params.vmid} already exists on '{node}'"})
        return params.vmid
    limits = _next_id_range()
    free = next((vmid for vmid in range(limits.lower, limits.upper) if vmid not in used), None)
    if free is None:
        raise PveError(f"no free guest id from {limits.lower} to {limits.upper - 1}")
    return free


def _next_id_range() -> NextIdRange:
    """Limits from ``datacenter.cfg``.

    Raises:
        PveError: a malformed ``next-id`` there.
    """
    path = paths.etc_pve() / "datacenter.cfg"
    for line in (files.read_text(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key == "next-id":
            try:
                return NextIdRange.parse(value.strip())
            except ValueError as error:
                raise PveError(f"{path}: next-id: {error}") from None
    return NextIdRange()


@method(
    "GET",
    "/cluster/tasks",
    NoParams,
    permission=("user",),
    returns=_items(starttime="timestamp", endtime="timestamp"),
)
def tasks(params: NoParams) -> list[dict[str, Any]]:
    """List running and recent tasks of all nodes."""
    return [as_row(entry) for entry in sorted(task.active(), key=lambda entry: -entry.upid.starttime)]


@method("GET", "/cluster/status", NoParams, permission=("/", "Sys.Audit"), returns=_items())
def status(params: NoParams) -> list[dict[str, Any]]:
    """Show the nodes as members; a host of its own has just itself."""
    name = paths.node()
    return [{"id": f"node/{name}", "type": "node", "name": name, "nodeid": 0, "local": 1, "online": 1, "level": ""}]
