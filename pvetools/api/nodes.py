"""Methods of the node itself: what it is, how it does, its tasks, starting and stopping all of its guests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pvetools.api.common import NodeParams
from pvetools.api.tree import NULL, method
from pvetools.schema import formats
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, checked, choice, integer, listing, string
from pvetools.system import task
from pvetools.system.errors import NotFound, PveError, Refused

if TYPE_CHECKING:
    from pvetools.system.task import Entry, Upid

RELEASE = "9.0"  # of the interface that we serve
_AUDIT = ("/nodes/{node}", "Sys.Audit")


def _object(**properties: str) -> dict[str, Any]:
    """Schema of an object; each property is ``type`` or ``type:renderer``."""
    return {"type": "object", "properties": {name.replace("_", "-"): _value(kind) for name, kind in properties.items()}}


def _value(kind: str) -> dict[str, str]:
    type_, _, renderer = kind.partition(":")
    return {"type": type_, "renderer": renderer} if renderer else {"type": type_}


def _list_of(item: dict[str, Any], link: str) -> dict[str, Any]:
    return {"type": "array", "items": item, "links": [{"rel": "child", "href": f"{{{link}}}"}]}


# -- version and state -------------------------------------------------------------------------------------------------

_VERSION = _object(release="string", repoid="string", version="string")


class NoParams(Record):
    """A method without parameters."""


def _version() -> dict[str, str]:
    return {"release": RELEASE, "version": f"{RELEASE}.0", "repoid": b"pvetools".hex()}


@method("GET", "/version", NoParams, permission=("user",), returns=_VERSION)
def version(params: NoParams) -> dict[str, str]:
    """Show which version of the interface is served."""
    return _version()


@method("GET", "/nodes/{node}/version", NodeParams, permission=("user",), returns=_VERSION)
def node_version(params: NodeParams) -> dict[str, str]:
    """Show which version of the interface the node serves."""
    return _version()


@method(
    "GET",
    "/nodes",
    NoParams,
    permission=("user",),
    returns=_list_of(
        _object(
            node="string",
            status="string",
            cpu="number:fraction_as_percentage",
            maxcpu="integer",
            mem="integer:bytes",
            maxmem="integer:bytes",
            uptime="integer:duration",
        ),
        "node",
    ),
)
def node_list(params: NoParams) -> list[dict[str, Any]]:
    """List the nodes with their load."""
    from pvetools.api import host

    return [host.summary()]


@method("GET", "/nodes/{node}/status", NodeParams, permission=_AUDIT, returns=_object(uptime="integer:duration"))
def node_status(params: NodeParams) -> dict[str, Any]:
    """Show processors, memory, load and kernel of the node."""
    from pvetools.api import host

    return {**host.status(), "pveversion": f"pve-manager/{_version()['version']}/{_version()['repoid']}"}


@method(
    "GET",
    "/nodes/{node}/time",
    NodeParams,
    permission=_AUDIT,
    returns=_object(time="integer:timestamp", localtime="integer:timestamp_gmt", timezone="string"),
)
def node_time(params: NodeParams) -> dict[str, Any]:
    """Show the node's time and time zone."""
    from pvetools.api import host

    return host.clock()


@method("GET", "/nodes/{node}/dns", NodeParams, permission=_AUDIT, returns=_object(search="string", dns1="string"))
def node_dns(params: NodeParams) -> dict[str, str]:
    """Show the node's name servers and search domain."""
    from pvetools.api import host

    return host.name_servers()


# -- tasks -------------------------------------------------------------------------------------------------------------

STATUS_WORDS = ("ok", "error", "warning", "unknown")


def _status_word(text: str) -> None:
    if text not in STATUS_WORDS:
        raise ValueError(f"unknown status '{text}', expected one of {', '.join(STATUS_WORDS)}")


class TasksParams(NodeParams):
    errors: bool = field(boolean, "Only tasks that failed.", default=False)
    limit: int = field(integer(0), "Number of tasks to list; 0 lists all.", default=50)
    since: int | None = field(integer(), "Only tasks begun at or after this time (seconds since 1970).")
    source: str = field(choice("archive", "active", "all"), "Ended tasks, running ones, or both.", default="archive")
    start: int = field(integer(0), "Number of tasks to skip.", default=0)
    statusfilter: list[str] = field(
        listing(checked("pve-task-status-type", _status_word)),
        f"Only tasks with one of these results: {', '.join(STATUS_WORDS)}.",
        default=[],
    )
    typefilter: str = field(string(), "Only tasks of this type, such as vzdump or qmstart.", default="")
    until: int | None = field(integer(), "Only tasks begun at or before this time (seconds since 1970).")
    userfilter: str = field(string(), "Only tasks of users whose name contains this.", default="")
    vmid: int | None = field(formats.vmid, "Only tasks that worked on this guest.")


class TaskParams(NodeParams):
    upid: str = field(string(complete="upid"), "Id of the task.", required=True)


class TaskLogParams(TaskParams):
    download: bool = field(boolean, "Send the whole log as a file (web interface only).", default=False)
    limit: int = field(integer(0), "Number of lines to show; 0 shows all.", default=50)
    start: int = field(integer(0), "Number of lines to skip.", default=0)


_TASK = _object(
    upid="string",
    node="string",
    pid="integer",
    pstart="integer",
    starttime="integer:timestamp",
    endtime="integer:timestamp",
    type="string",
    id="string",
    user="string",
    status="string",
)


def as_row(entry: Entry) -> dict[str, Any]:
    """A task as the lists show it."""
    row: dict[str, Any] = {"upid": str(entry.upid), **entry.upid._asdict()}
    if entry.endtime:
        return {**row, "endtime": entry.endtime, "status": entry.status}
    return {**row, "status": "RUNNING"}


def result_word(entry: Entry) -> str:
    """One of ``STATUS_WORDS``; empty while the task runs."""
    if not entry.endtime:
        return ""
    if entry.status == task.NO_RESULT:
        return "unknown"
    if entry.status.startswith("WARNINGS: "):
        return "warning"
    return "ok" if entry.status == "OK" else "error"


def _entries(source: str) -> Iterator[Entry]:
    if source != "archive":
        yield from sorted(
            (entry for entry in task.active() if not entry.endtime), key=lambda entry: -entry.upid.starttime
        )
    if source != "active":
        yield from task.ended()


def _wanted(entry: Entry, params: TasksParams) -> bool:
    upid, result = entry.upid, result_word(entry)
    return not (
        (params.errors and result not in ("error", "unknown"))
        or (params.statusfilter and result not in params.statusfilter)
        or (params.since is not None and upid.starttime < params.since)
        or (params.until is not None and upid.starttime > params.until)
        or (params.typefilter and upid.type != params.typefilter)
        or (params.userfilter and params.userfilter not in upid.user)
        or (params.vmid is not None and upid.id != str(params.vmid))
    )


@method("GET", "/nodes/{node}/tasks", TasksParams, permission=("user",), returns=_list_of(_TASK, "upid"))
def task_list(params: TasksParams) -> list[dict[str, Any]]:
    """List tasks, newest first."""
    from itertools import islice

    wanted = (entry for entry in _entries(params.source) if _wanted(entry, params))
    return [
        as_row(entry) for entry in islice(wanted, params.start, params.start + params.limit if params.limit else None)
    ]


def _local_upid(params: TaskParams) -> Upid:
    from pvetools.system import paths

    upid = task.parse_upid(params.upid)
    if upid.node != paths.node():
        raise NotFound(f"task '{upid}' belongs to node '{upid.node}'; this one is '{paths.node()}'")
    return upid


@method("DELETE", "/nodes/{node}/tasks/{upid}", TaskParams, permission=("user",), returns=NULL)
def task_stop(params: TaskParams) -> None:
    """Stop a running task; it undoes what it began."""
    task.stop(_local_upid(params))


@method(
    "GET",
    "/nodes/{node}/tasks/{upid}/status",
    TaskParams,
    permission=("user",),
    returns=_object(upid="string", status="string", exitstatus="string", starttime="integer:timestamp"),
)
def task_status(params: TaskParams) -> dict[str, Any]:
    """Show whether a task runs, and how it ended."""
    entry = task.entry_of(_local_upid(params))
    row = {"upid": str(entry.upid), **entry.upid._asdict(), "status": "stopped" if entry.endtime else "running"}
    return {**row, "exitstatus": entry.status} if entry.endtime else row


@method(
    "GET",
    "/nodes/{node}/tasks/{upid}/log",
    TaskLogParams,
    permission=("user",),
    returns={"type": "array", "items": _object(n="integer", t="string")},
)
def task_log(params: TaskLogParams) -> list[dict[str, Any]]:
    """Show the log of a task."""
    from itertools import islice

    if params.download:
        raise Refused("download: there is no web server that could send the file; use limit=0 for the whole log")
    try:
        with task.log_path(_local_upid(params)).open(encoding="utf-8", errors="replace") as file:
            lines = enumerate(islice(file, params.start, params.start + params.limit if params.limit else None))
            found = [{"n": number + params.start + 1, "t": line.rstrip("\n")} for number, line in lines]
    except FileNotFoundError:
        raise NotFound(f"no such task '{params.upid}'") from None
    except OSError as error:
        raise PveError(f"can't read the log of task '{params.upid}': {error.strerror}") from None
    return found or [{"n": 1, "t": "no content"}]


# -- all guests --------------------------------------------------------------------------------------------------------


class AllGuestsParams(NodeParams):
    max_workers: int | None = field(
        integer(1, 64),
        "How many guests with the same place in the order are handled at a time.",
        name="max-workers",
        note="1 to start, 4 to stop",
    )
    vms: list[int] | None = field(formats.vmid_list, "Only these guests.")


class StartAllParams(AllGuestsParams):
    force: bool = field(boolean, "Start guests without onboot=1 too.", default=False)


class StopAllParams(AllGuestsParams):
    force_stop: bool = field(boolean, "Stop a guest that did not shut down in time.", name="force-stop", default=True)
    timeout: int = field(
        integer(0, 7200), "Seconds to wait for a guest whose startup option has no 'down'.", default=180
    )


@method("POST", "/nodes/{node}/startall", StartAllParams, permission=("user",), task="startall", task_id="")
def start_all(params: StartAllParams) -> None:
    """Start all guests that start at boot, in their order."""
    from pvetools.api import bulk

    bulk.start(params.vms, force=params.force, workers=params.max_workers or 1)


@method("POST", "/nodes/{node}/stopall", StopAllParams, permission=("user",), task="stopall", task_id="")
def stop_all(params: StopAllParams) -> None:
    """Shut down all running guests, in the reverse order."""
    from pvetools.api import bulk

    bulk.stop(params.vms, force=params.force_stop, timeout=params.timeout, workers=params.max_workers or 4)
