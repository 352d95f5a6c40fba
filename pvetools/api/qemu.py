"""Virtual machines: which there are, how they do, starting and stopping them."""

from __future__ import annotations

from typing import Any

from pvetools.api.common import GuestParams, NodeParams, refuse
from pvetools.api.tree import method
from pvetools.schema import formats
from pvetools.schema.core import field
from pvetools.schema.kinds import boolean, choice, integer, string

_POWER = ("/vms/{vmid}", "VM.PowerMgmt")
_AUDIT = ("/vms/{vmid}", "VM.Audit")
_STATUS = "/nodes/{node}/qemu/{vmid}/status"
_TEXT = {"type": "string", "optional": 1}
_FLAG = {"type": "boolean", "optional": 1}
_NUMBER = {"type": "number", "optional": 1}
_BYTES = {"type": "integer", "optional": 1, "renderer": "bytes"}
_PROPERTIES = {
    "vmid": {"type": "integer", "minimum": 100, "maximum": 999_999_999},
    "status": {"type": "string", "enum": ["stopped", "running"]},
    **dict.fromkeys(("name", "lock", "tags", "qmpstatus", "running-machine", "running-qemu"), _TEXT),
    **dict.fromkeys(("template", "serial"), _FLAG),
    **dict.fromkeys(("cpu", "cpus"), _NUMBER),
    **dict.fromkeys(
        ("disk", "diskread", "diskwrite", "maxdisk", "maxmem", "mem", "memhost", "netin", "netout", "balloon"), _BYTES
    ),
    "pid": {"type": "integer", "optional": 1},
    "uptime": {"type": "integer", "optional": 1, "renderer": "duration"},
}
_ROW = {"type": "object", "properties": _PROPERTIES}
_CURRENT = {"type": "object", "properties": {**_PROPERTIES, "agent": _FLAG, "ha": {"type": "object"}}}


def _links(*names: str) -> list[dict[str, str]]:
    return [{"subdir": name} for name in names]


class ListParams(NodeParams):
    """Parameters of the list."""

    full: bool = field(boolean, "Ask the hypervisor for the figures of the running ones too.", default=False)


@method("GET", "/nodes/{node}/qemu", ListParams, permission=("user",),
        returns={"type": "array", "items": _ROW, "links": [{"rel": "child", "href": "{vmid}"}]})  # fmt: skip
def vm_list(p: ListParams) -> list[dict[str, Any]]:
    """List the virtual machines of the node."""
    from pvetools.guest.qemu import status

    return status.listing(full=p.full)


@method("GET", "/nodes/{node}/qemu/{vmid}", GuestParams, permission=("user",))
def vm_index(p: GuestParams) -> list[dict[str, str]]:
    """List what can be asked about a virtual machine."""
    from pvetools.config import guest

    guest.load("qemu", p.vmid)
    return _links("config", "pending", "status", "resize", "unlink", "monitor")


@method("GET", _STATUS, GuestParams, permission=("user",))
def vm_status_index(p: GuestParams) -> list[dict[str, str]]:
    """List what can be done to a virtual machine's state."""
    return _links("current", "start", "stop", "reset", "shutdown", "suspend", "resume", "reboot")


@method("GET", f"{_STATUS}/current", GuestParams, permission=_AUDIT, returns=_CURRENT)
def vm_status(p: GuestParams) -> dict[str, Any]:
    """Show a virtual machine's state and what it uses."""
    from pvetools.guest.qemu import status

    return status.current(p.vmid)


class SkipLockParams(GuestParams):
    """Methods that can be told to ignore a lock."""

    skiplock: bool = field(boolean, "Ignore a lock in the configuration.", default=False)


class StartParams(SkipLockParams):
    """Parameters of starting."""

    timeout: int | None = field(integer(0), "Seconds after which the start is given up.", note="no limit")
    machine: str | None = field(
        string(r"[a-z0-9.+-]+(,.*)?", max_length=200), "Machine type for this start, such as q35 or pc-i440fx-7.2."
    )
    force_cpu: str | None = field(string(), "QEMU's -cpu argument, used as it is.", name="force-cpu")
    migratedfrom: str | None = field(formats.node, "Node that the guest comes from.")
    migration_network: str | None = field(formats.cidr, "Network of the migration.")
    migration_type: str | None = field(choice("secure", "insecure"), "Whether the migration is encrypted.")
    nets_host_mtu: str | None = field(
        string(r"net\d+=\d+(,net\d+=\d+)*"), "MTU of the cards at the source.", name="nets-host-mtu"
    )
    stateuri: str | None = field(string(max_length=128), "Where the saved state comes from.")
    targetstorage: str | None = field(string(), "Storages of the migrated disks.")
    with_conntrack_state: bool = field(
        boolean, "Take the firewall's connections along.", name="with-conntrack-state", default=False
    )


@method("POST", f"{_STATUS}/start", StartParams, permission=_POWER, task="qmstart")
def vm_start(p: StartParams) -> None:
    """Start a virtual machine; pending changes come into force."""
    from pvetools.guest.qemu import lifecycle

    refuse(p, "force-cpu", "migratedfrom", "migration_network", "migration_type", "nets-host-mtu", "stateuri",
           "targetstorage", "with-conntrack-state")  # fmt: skip
    how = lifecycle.StartOptions(skip_lock=p.skiplock, timeout=p.timeout or None, machine=p.machine or "")
    lifecycle.start(p.vmid, how)


class StopParams(SkipLockParams):
    """Parameters of stopping."""

    timeout: int | None = field(integer(0), "Seconds to wait for the end of the process.", note="10")
    overrule_shutdown: bool = field(
        boolean, "End a shutdown task of this machine that is waiting.", name="overrule-shutdown", default=False
    )
    keep_active: bool = field(boolean, "Leave the storage volumes activated.", name="keepActive", default=False)
    migratedfrom: str | None = field(formats.node, "Node that the guest comes from.")


@method("POST", f"{_STATUS}/stop", StopParams, permission=_POWER, task="qmstop")
def vm_stop(p: StopParams) -> None:
    """Stop a virtual machine at once, as if its plug were pulled."""
    from pvetools.guest.qemu import lifecycle

    refuse(p, "keepActive", "migratedfrom")
    if p.overrule_shutdown:
        lifecycle.end_shutdowns(p.vmid)
    lifecycle.stop(p.vmid, skip_lock=p.skiplock, timeout=p.timeout)


class ShutdownParams(SkipLockParams):
    """Parameters of shutting down."""

    timeout: int | None = field(integer(0), "Seconds to wait.", note="down of the startup option, else 60")
    force_stop: bool = field(boolean, "Stop it when it did not shut down in time.", name="forceStop", default=False)
    keep_active: bool = field(boolean, "Leave the storage volumes activated.", name="keepActive", default=False)


@method("POST", f"{_STATUS}/shutdown", ShutdownParams, permission=_POWER, task="qmshutdown")
def vm_shutdown(p: ShutdownParams) -> None:
    """Shut a virtual machine down: its system is asked to end everything in order."""
    from pvetools.guest.qemu import lifecycle

    refuse(p, "keepActive")
    lifecycle.shutdown(p.vmid, timeout=p.timeout, force=p.force_stop, skip_lock=p.skiplock)


class RebootParams(GuestParams):
    """Parameters of rebooting."""

    timeout: int | None = field(integer(0), "Seconds to wait for the shutdown.", note="60")


@method("POST", f"{_STATUS}/reboot", RebootParams, permission=_POWER, task="qmreboot")
def vm_reboot(p: RebootParams) -> None:
    """Shut a virtual machine down and start it again; pending changes come into force."""
    from pvetools.guest.qemu import lifecycle

    lifecycle.reboot(p.vmid, timeout=p.timeout)


@method("POST", f"{_STATUS}/reset", SkipLockParams, permission=_POWER, task="qmreset")
def vm_reset(p: SkipLockParams) -> None:
    """Reset a virtual machine, as its reset button would."""
    from pvetools.guest.qemu import lifecycle

    lifecycle.reset(p.vmid, skip_lock=p.skiplock)


class SuspendParams(SkipLockParams):
    """Parameters of suspending."""

    todisk: bool = field(boolean, "Save the memory on a storage and end the process.", default=False)
    statestorage: str | None = field(formats.storage_id, "Storage for the saved memory.", requires="todisk")


@method("POST", f"{_STATUS}/suspend", SuspendParams, permission=_POWER, task="qmsuspend")
def vm_suspend(p: SuspendParams) -> None:
    """Stop the processors of a virtual machine; its memory stays."""
    from pvetools.guest.qemu import lifecycle

    refuse(p, "todisk", "statestorage")
    lifecycle.suspend(p.vmid, skip_lock=p.skiplock)


class ResumeParams(SkipLockParams):
    """Parameters of resuming."""

    nocheck: bool = field(boolean, "Do not look for the configuration on this node.", default=False)


@method("POST", f"{_STATUS}/resume", ResumeParams, permission=_POWER, task="qmresume")
def vm_resume(p: ResumeParams) -> None:
    """Let a suspended virtual machine run again."""
    from pvetools.guest.qemu import lifecycle

    refuse(p, "nocheck")
    lifecycle.resume(p.vmid, skip_lock=p.skiplock)


class MonitorParams(GuestParams):
    """Parameters of a monitor command."""

    command: str = field(string(), "Command of QEMU's human monitor, such as info block.", required=True)


@method("POST", "/nodes/{node}/qemu/{vmid}/monitor", MonitorParams, permission=(), returns={"type": "string"})
def monitor(p: MonitorParams) -> str:
    """Run a command of QEMU's human monitor."""
    from pvetools.guest.qemu import hypervisor, lifecycle

    lifecycle.require_running(p.vmid)
    return hypervisor.hmp(p.vmid, p.command)
