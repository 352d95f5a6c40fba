"""Containers: which there are, how they do, starting and ending them."""

from __future__ import annotations

from typing import Any

from pvetools.api.common import GuestParams, NodeParams
from pvetools.api.tree import method
from pvetools.schema.core import field
from pvetools.schema.kinds import boolean, integer

_POWER = ("/vms/{vmid}", "VM.PowerMgmt")
_AUDIT = ("/vms/{vmid}", "VM.Audit")
_NUMBER = {"type": "number", "optional": 1}
_BYTES = {"type": "integer", "optional": 1, "renderer": "bytes"}
_STATUS = {
    "vmid": {"type": "integer"},
    "status": {"type": "string", "enum": ["stopped", "running"]},
    "name": {"type": "string", "optional": 1},
    "lock": {"type": "string", "optional": 1},
    "tags": {"type": "string", "optional": 1},
    "template": {"type": "boolean", "optional": 1},
    "uptime": {"type": "integer", "optional": 1, "renderer": "duration"},
    "cpu": _NUMBER,
    "cpus": _NUMBER,
    **{key: _BYTES for key in ("mem", "maxmem", "swap", "maxswap", "disk", "maxdisk", "diskread", "diskwrite", "netin",
                               "netout")},
}  # fmt: skip
_ROW = {"type": "object", "properties": _STATUS}


def _links(*names: str) -> list[dict[str, str]]:
    return [{"subdir": name} for name in names]


@method("GET", "/nodes/{node}/lxc", NodeParams, permission=("user",),
        returns={"type": "array", "items": _ROW, "links": [{"rel": "child", "href": "{vmid}"}]})  # fmt: skip
def vm_list(params: NodeParams) -> list[dict[str, Any]]:
    """List the containers of the node."""
    from pvetools.guest.lxc import stats

    return stats.listed()


@method("GET", "/nodes/{node}/lxc/{vmid}", GuestParams, permission=("user",))
def vm_index(params: GuestParams) -> list[dict[str, str]]:
    """List what can be asked about a container."""
    from pvetools.config import guest

    guest.load("lxc", params.vmid)
    return _links("config", "pending", "status", "interfaces", "resize")


@method("GET", "/nodes/{node}/lxc/{vmid}/status", GuestParams, permission=("user",))
def vm_status_index(params: GuestParams) -> list[dict[str, str]]:
    """List what can be done to a container's state."""
    return _links("current", "start", "stop", "shutdown", "suspend", "resume", "reboot")


@method("GET", "/nodes/{node}/lxc/{vmid}/status/current", GuestParams, permission=_AUDIT, returns=_ROW)
def vm_status(params: GuestParams) -> dict[str, Any]:
    """Show a container's state and what it uses."""
    from pvetools.guest.lxc import stats

    return stats.current(params.vmid)


@method("GET", "/nodes/{node}/lxc/{vmid}/interfaces", GuestParams, permission=_AUDIT)
def vm_interfaces(params: GuestParams) -> list[dict[str, Any]]:
    """Show the network interfaces of a running container with their addresses."""
    from pvetools.guest.lxc import inside

    return inside.interfaces(params.vmid)


class StartParams(GuestParams):
    """Parameters of starting."""

    debug: bool = field(boolean, "Write LXC's detailed log and show it when the start fails.", default=False)
    skiplock: bool = field(boolean, "Ignore a lock in the configuration.", default=False)


@method("POST", "/nodes/{node}/lxc/{vmid}/status/start", StartParams, permission=_POWER, task="vzstart")
def vm_start(params: StartParams) -> None:
    """Start a container."""
    from pvetools.guest.lxc import lifecycle

    lifecycle.start(params.vmid, debug=params.debug, skip_lock=params.skiplock)


class StopParams(GuestParams):
    """Parameters of stopping."""

    skiplock: bool = field(boolean, "Ignore a lock in the configuration.", default=False)
    overrule_shutdown: bool = field(
        boolean, "End a shutdown task of this container that is waiting.", name="overrule-shutdown", default=False
    )


@method("POST", "/nodes/{node}/lxc/{vmid}/status/stop", StopParams, permission=_POWER, task="vzstop")
def vm_stop(params: StopParams) -> None:
    """Stop a container at once: its processes are killed."""
    from pvetools.guest.lxc import lifecycle

    if params.overrule_shutdown:
        lifecycle.end_shutdowns(params.vmid)
    lifecycle.stop(params.vmid, skip_lock=params.skiplock)


class ShutdownParams(GuestParams):
    """Parameters of shutting down."""

    timeout: int = field(integer(0), "Seconds to wait.", default=60)
    force_stop: bool = field(boolean, "Stop it when it did not shut down in time.", name="forceStop", default=False)


@method("POST", "/nodes/{node}/lxc/{vmid}/status/shutdown", ShutdownParams, permission=_POWER, task="vzshutdown")
def vm_shutdown(params: ShutdownParams) -> None:
    """Shut a container down: its init is asked to end everything in order."""
    from pvetools.guest.lxc import lifecycle

    lifecycle.shutdown(params.vmid, timeout=params.timeout, force=params.force_stop)


class RebootParams(GuestParams):
    """Parameters of rebooting."""

    timeout: int | None = field(integer(0), "Seconds to wait for the shutdown.", note="60")


@method("POST", "/nodes/{node}/lxc/{vmid}/status/reboot", RebootParams, permission=_POWER, task="vzreboot")
def vm_reboot(params: RebootParams) -> None:
    """Shut a container down and start it again, with pending changes."""
    from pvetools.guest.lxc import lifecycle

    lifecycle.reboot(params.vmid, timeout=params.timeout)


@method("POST", "/nodes/{node}/lxc/{vmid}/status/suspend", GuestParams, permission=_POWER, task="vzsuspend")
def vm_suspend(params: GuestParams) -> None:
    """Freeze a container's processes; they stay in memory."""
    from pvetools.guest.lxc import lifecycle

    lifecycle.suspend(params.vmid)


@method("POST", "/nodes/{node}/lxc/{vmid}/status/resume", GuestParams, permission=_POWER, task="vzresume")
def vm_resume(params: GuestParams) -> None:
    """Let a frozen container go on."""
    from pvetools.guest.lxc import lifecycle

    lifecycle.resume(params.vmid)
