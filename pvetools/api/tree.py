"""The tree of methods: rows of (verb, path, parameters, permission, returns) behind the tools, ``pvesh`` and REST."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from pvetools.schema.core import NestedErrors, Raw, Record
from pvetools.system import paths
from pvetools.system.errors import NotImplementedMethod, ParamErrors

# modules below pvetools.api that hold rows
MODULES = (
    "cluster", "nodes", "qemu", "qemu_config", "lxc", "lxc_config", "storage", "backup", "transfer", "disks", "scan",
)  # fmt: skip
VERBS = {"get": "GET", "set": "PUT", "create": "POST", "delete": "DELETE"}

P = TypeVar("P", bound=Record)
Permission = tuple[str, ...]
Handler = Callable[[Any], Any]


class Method(NamedTuple):
    """One row.

    ``permission`` is (path template, privilege, ...) as the access rules will check it; empty means root@pam only,
    ``("user",)`` any login. ``returns`` is a JSON schema. ``task`` names the task type under which the handler runs, or
    is a function that tells it from the parameters: then the caller gets a UPID. ``task_id`` is the parameter that
    identifies what the task works on, or a function as well. Who says how long to wait (``delay``) gets no UPID: a task
    is over when its call returns.
    """

    verb: str
    path: str
    params: type[Record]
    handler: Handler
    permission: Permission
    returns: Mapping[str, Any]
    task: str | Callable[[Any], str]
    task_id: str | Callable[[Any], str]

    @property
    def help(self) -> str:
        """First paragraph of the handler's docstring."""
        return " ".join((self.handler.__doc__ or "").strip().split("\n\n")[0].split())


ROWS: dict[tuple[str, str], Method] = {}
ANY: Mapping[str, Any] = {"type": "any"}
NULL: Mapping[str, Any] = {"type": "null"}
UPID: Mapping[str, Any] = {"type": "string"}


def method(
    verb: str,
    path: str,
    params: type[P],
    *,
    permission: Permission = (),
    returns: Mapping[str, Any] = ANY,
    task: str | Callable[[P], str] = "",
    task_id: str | Callable[[P], str] = "vmid",
) -> Callable[[Callable[[P], Any]], Method]:
    """Add a function to the tree; the name then stands for the row."""

    def add(handler: Callable[[P], Any]) -> Method:
        row = Method(verb, path, params, handler, permission, UPID if task else returns, task, task_id)
        ROWS[verb, path] = row
        return row

    return add


def load(*names: str) -> None:
    """Import modules that hold rows; all of them when none is named."""
    for name in names or MODULES:
        importlib.import_module(f"pvetools.api.{name}")


# The modules that serve a part of the tree, so that a call there imports no others; ``*`` is any node.
_SUBTREES: Mapping[str, tuple[str, ...]] = {
    "version": ("nodes",),
    "cluster": ("cluster",),
    "storage": ("storage",),
    "nodes/*/qemu": ("qemu", "qemu_config"),
    "nodes/*/lxc": ("lxc", "lxc_config"),
    "nodes/*/storage": ("storage", "backup", "transfer"),
    "nodes/*/query-oci-repo-tags": ("transfer",),
    "nodes/*/query-url-metadata": ("transfer",),
    "nodes/*/disks": ("disks",),
    "nodes/*/scan": ("scan",),
    "nodes/*/vzdump": ("backup",),
    "nodes/*/tasks": ("nodes",),
    "nodes/*/status": ("nodes",),
}


def load_for(path: str) -> None:
    """Import the modules whose rows may lie at or below a path."""
    words = parts(path)
    part = ["nodes", "*", *words[2:3]] if words[:1] == ["nodes"] else words[:1]
    load(*_SUBTREES.get("/".join(part), ()))


def load_all() -> None:
    """Import every module that holds rows."""
    load()


def parts(path: str) -> list[str]:
    """The words of a path between its slashes."""
    return [part for part in path.split("/") if part]


def _match(template: str, path: str) -> dict[str, str] | None:
    """Path variables when a concrete path fits a template; ``{name:*}`` takes the rest, slashes included."""
    wanted, given = parts(template), parts(path)
    if wanted and wanted[-1].endswith(":*}") and len(given) > len(wanted):
        given = [*given[: len(wanted) - 1], "/".join(given[len(wanted) - 1 :])]
    if len(wanted) != len(given):
        return None
    variables: dict[str, str] = {}
    for part, word in zip(wanted, given, strict=True):
        if part.startswith("{"):
            variables[part[1:-1].removesuffix(":*")] = word
        elif part != word:
            return None
    return variables


def normalise(path: str) -> str:
    """``nodes/x/`` -> ``/nodes/x``."""
    return "/" + "/".join(parts(path))


def find(verb: str, path: str) -> tuple[Method, dict[str, str]]:
    """The row behind a concrete path, and the values of its path variables; inner nodes have an index to GET.

    Raises:
        NotImplementedMethod: nothing there.
    """
    wanted = normalise(path)
    fitting = [
        (template.count("{"), template, variables)
        for (row_verb, template) in ROWS
        if row_verb == verb and (variables := _match(template, wanted)) is not None
    ]
    if fitting:
        _, template, variables = min(fitting, key=lambda found: found[:2])
        return ROWS[verb, template], variables
    if verb == "GET" and (index := _index(wanted)):
        return index, _match(index.path, wanted) or {}
    raise NotImplementedMethod(f"Method '{verb} {wanted}' not implemented")


# How the children are called in the indexes of Proxmox VE, by the end of the path; `name` elsewhere.
_INDEX_KEYS: Mapping[str, str] = {
    "": "subdir",
    "{vmid}": "subdir",
    "status": "subdir",
    "{storage}": "subdir",
    "access": "subdir",
    "{snapname}": "cmd",
    "scan": "method",
}


def _index(path: str) -> Method | None:
    """The method that lists the children of an inner node for which no row exists."""
    below = [row for row in ROWS.values() if len(parts(row.path)) > len(parts(path)) and _leads_to(path, row.path)]
    names = children(path)
    if not below or any(name.startswith("{") for name in names):
        return None
    words = parts(below[0].path)[: len(parts(path))]
    needed = [word[1:-1] for word in words if word.startswith("{")]
    fields = {row.attr: row for name, row in below[0].params.FIELDS.items() if name in needed}
    key = _INDEX_KEYS.get(words[-1] if words else "", "name")
    schema = {
        "type": "array",
        "items": {"type": "object", "properties": {key: {"type": "string"}}},
        "links": [{"rel": "child", "href": f"{{{key}}}"}],
    }

    def index(params: Record) -> list[dict[str, str]]:
        """List what lies below."""
        return [{key: name} for name in sorted(names)]

    template = "/" + "/".join(words)
    return Method("GET", template, type("IndexParams", (Record,), fields), index, ("user",), schema, "", "")


def _leads_to(path: str, template: str) -> bool:
    """Whether a template lies below a concrete path."""
    return _match("/" + "/".join(parts(template)[: len(parts(path))]), path) is not None


def verbs_at(path: str) -> list[str]:
    """HTTP verbs that a concrete path serves."""
    wanted = normalise(path)
    found = {verb for verb, template in ROWS if _match(template, wanted) is not None}
    return sorted(found | ({"GET"} if "GET" not in found and _index(wanted) else set()))


def children(path: str) -> list[str]:
    """Next path parts below a concrete path, in the tree's own words (``{vmid}`` for a variable)."""
    depth = len(parts(path))
    below = [parts(template) for _, template in ROWS if _leads_to(path, template)]
    return list(dict.fromkeys(words[depth] for words in below if len(words) > depth))


def rows() -> Iterator[Method]:
    """All rows, by path and verb."""
    for key in sorted(ROWS, key=lambda key: (key[1], key[0])):
        yield ROWS[key]


def check(row: Method, raw: Raw) -> Record:
    """Check the parameters of a call.

    Raises:
        ParamErrors: all wrong ones.
    """
    try:
        params = row.params.check(raw)
    except NestedErrors as error:
        raise ParamErrors(error.errors) from None
    node = params.given.get("node")
    if node is not None and "{node}" in row.path and node not in ("localhost", paths.node()):
        raise ParamErrors({"node": f"no such node '{node}', this host is '{paths.node()}'"})
    return params


def call(row: Method, raw: Raw) -> Any:
    """Check parameters and run a method; rows with a task run as one and give its UPID.

    Raises:
        PveError: whatever went wrong.
    """
    return invoke(row, check(row, raw))


def invoke(row: Method, params: Record) -> Any:
    """Run a method whose parameters are checked."""
    if row.verb == "GET":
        return row.handler(params)
    from pvetools.system import task

    paths.ensure_tree()
    if not row.task:
        with task.interruptible():
            return row.handler(params)
    ident = row.task_id(params) if callable(row.task_id) else params.given.get(row.task_id, "")
    kind = row.task(params) if callable(row.task) else row.task
    upid = task.run(kind, str(ident).removeprefix("/dev/"), lambda: row.handler(params))
    return None if "delay" in params.given else upid
