"""The command ``qm``: virtual machines."""

from __future__ import annotations

from typing import Any, NoReturn

from pvetools.cli import app
from pvetools.render.command import LOCAL_NODE, Command, Local, Tool
from pvetools.schema import formats
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, choice, integer, string

_HERE = {"node": LOCAL_NODE}
_GUEST = ("vmid",)


class VmParams(Record):
    """Commands on one virtual machine."""

    vmid: int = field(formats.vmid, "Id of the virtual machine.", required=True)


class StatusParams(VmParams):
    """Parameters of ``qm status``."""

    verbose: bool = field(boolean, "Show all that is known.", default=False)


def _status(p: StatusParams) -> dict[str, Any]:
    """Show the state of a virtual machine."""
    if p.verbose:
        from pvetools.guest.qemu import status

        return status.current(p.vmid)
    from pvetools.guest.qemu import running

    return {"status": "running" if running.is_running(p.vmid) else "stopped"}


STATUS = Local(StatusParams, _status)


class WaitParams(VmParams):
    """Parameters of ``qm wait``."""

    timeout: int | None = field(integer(1), "Seconds to wait.", note="no limit")


def _wait(p: WaitParams) -> None:
    """Wait until a virtual machine has stopped."""
    from pvetools.guest.qemu import lifecycle

    lifecycle.wait(p.vmid, p.timeout)


WAIT = Local(WaitParams, _wait)


def _unlock(p: VmParams) -> None:
    """Remove the lock that a command left in the configuration."""
    from pvetools.backup.unlock import unlock
    from pvetools.guest.qemu.kind import QEMU
    from pvetools.system import paths

    paths.ensure_tree()
    unlock(QEMU, p.vmid)


UNLOCK = Local(VmParams, _unlock)


class ShowCommandParams(VmParams):
    """Parameters of ``qm showcmd``."""

    pretty: bool = field(boolean, "Put each option on a line of its own.", default=False)
    snapshot: str | None = field(formats.snapshot_name, "Use the configuration of a snapshot.")


def _show_command(p: ShowCommandParams) -> str:
    """Show the command line with which QEMU would be started."""
    from pvetools.guest.qemu import showcmd

    return showcmd.command_line(p.vmid, pretty=p.pretty, snapshot=p.snapshot or "")


SHOW_COMMAND = Local(ShowCommandParams, _show_command)


class TerminalParams(VmParams):
    """Parameters of ``qm terminal``."""

    iface: str | None = field(
        choice("serial0", "serial1", "serial2", "serial3"), "Serial port.", note="the only one there is"
    )
    escape: str = field(string(), "Key that leaves the terminal: ^A to ^Z, a character, or none.", default="^O")


def _terminal(p: TerminalParams) -> None:
    """Connect this terminal to a serial port of a virtual machine."""
    from pvetools.guest.qemu import terminal

    terminal.open_terminal(p.vmid, p.iface or "", p.escape)


TERMINAL = Local(TerminalParams, _terminal)


class ImportParams(VmParams):
    """Parameters of ``qm disk import``."""

    source: str = field(string(complete="file"), "Image: a path or a volume id.", required=True)
    storage: str = field(formats.storage_id, "Storage for the new volume.", required=True)
    format_: str | None = field(choice("raw", "qcow2", "vmdk"), "Format of the new volume.", note="the storage's")
    target_disk: str | None = field(
        string(r"(ide|sata|scsi|virtio|unused)[0-9]{1,3}|efidisk0|tpmstate0"),
        "Disk to attach it as.",
        name="target-disk",
        note="unused",
    )


def _import_disk(p: ImportParams) -> None:
    """Copy a disk image into a new volume of a virtual machine."""
    from pvetools.guest.qemu import disk
    from pvetools.system import paths, task

    paths.ensure_tree()
    wanted = disk.Import(p.source, p.storage, p.format_ or "", p.target_disk or "")
    task.run("qmdiskimport", str(p.vmid), lambda: disk.import_disk(p.vmid, wanted))


IMPORT_DISK = Local(ImportParams, _import_disk)


class ImportOvfParams(VmParams):
    """Parameters of ``qm importovf``."""

    manifest: str = field(string(complete="file"), "OVF descriptor; its disks lie beside it.", required=True)
    storage: str = field(formats.storage_id, "Storage for the disks.", required=True)
    format_: str | None = field(choice("raw", "qcow2", "vmdk"), "Format of the disks.", note="the storage's")
    dryrun: bool = field(boolean, "Only show what would be made.", default=False)


def _import_ovf(p: ImportOvfParams) -> Any:
    """Make a virtual machine from an OVF descriptor and its disks."""
    from pvetools.guest.qemu import importovf
    from pvetools.system import paths, task

    if p.dryrun:
        return importovf.shown(importovf.read(p.manifest))
    paths.ensure_tree()
    task.run("qmcreate", str(p.vmid), lambda: importovf.import_ovf(p.vmid, p.manifest, p.storage, p.format_ or ""))
    return None


IMPORT_OVF = Local(ImportOvfParams, _import_ovf)


class RescanParams(Record):
    """Parameters of ``qm disk rescan``."""

    vmid: int | None = field(formats.vmid, "Only this virtual machine.")
    dryrun: bool = field(boolean, "Only tell what would be changed.", default=False)


def _rescan(p: RescanParams) -> None:
    """Bring disk sizes and unused volumes in line with the storages."""
    from pvetools.guest.qemu import disk
    from pvetools.system import log, paths

    paths.ensure_tree()
    if p.dryrun:
        log.emit("NOTE: running in dry-run mode, won't write changes out!")
    disk.rescan(p.vmid, dry_run=p.dryrun)


RESCAN = Local(RescanParams, _rescan)


def _on(row: str, *positional: str, text: str = "none", **more: Any) -> Command:
    """A command on one virtual machine, or on what else its position says, that a method of the tree serves."""
    return Command(row, positional or _GUEST, fixed=_HERE, text=text, **more)


TOOL = Tool(
    "qm",
    "Manage virtual machines.",
    {
        "create": _on("api.qemu_config:create_vm", file_params=("sshkeys",), prompted=("cipassword",)),
        "destroy": _on("api.qemu_config:destroy_vm"),
        "set": _on("api.qemu_config:update_vm", file_params=("sshkeys",), prompted=("cipassword",)),
        "config": _on("api.qemu_config:vm_config", text="render.guests:config"),
        "pending": _on("api.qemu_config:vm_pending", text="render.guests:pending"),
        "list": Command("api.qemu:vm_list", fixed=_HERE, text="render.guests:qm_list"),
        "status": Command("cli.qm:STATUS", _GUEST, text="render.guests:status"),
        "start": _on("api.qemu:vm_start"),
        "stop": _on("api.qemu:vm_stop"),
        "shutdown": _on("api.qemu:vm_shutdown"),
        "reboot": _on("api.qemu:vm_reboot"),
        "reset": _on("api.qemu:vm_reset"),
        "suspend": _on("api.qemu:vm_suspend"),
        "resume": _on("api.qemu:vm_resume"),
        "wait": Command("cli.qm:WAIT", _GUEST, text="none"),
        "unlock": Command("cli.qm:UNLOCK", _GUEST, text="none"),
        "showcmd": Command("cli.qm:SHOW_COMMAND", _GUEST, text="render.guests:line"),
        "terminal": Command("cli.qm:TERMINAL", _GUEST, text="none"),
        "disk import": Command("cli.qm:IMPORT_DISK", ("vmid", "source", "storage"), text="none"),
        "importovf": Command("cli.qm:IMPORT_OVF", ("vmid", "manifest", "storage")),
        "disk resize": _on("api.qemu_config:resize_vm", "vmid", "disk", "size"),
        "disk unlink": _on("api.qemu_config:unlink"),
        "disk rescan": Command("cli.qm:RESCAN", text="none"),
    },
    aliases={
        "importdisk": "disk import",
        "resize": "disk resize",
        "unlink": "disk unlink",
        "rescan": "disk rescan",
    },
)


def main() -> NoReturn:
    """Run the tool."""
    app.main(TOOL)


if __name__ == "__main__":
    main()
