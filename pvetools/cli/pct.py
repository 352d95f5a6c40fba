"""``pct``: manage containers."""

from __future__ import annotations

from typing import Any, NoReturn

from pvetools.cli import app
from pvetools.render.command import LOCAL_NODE, Command, Local, Tool
from pvetools.schema import formats
from pvetools.schema.core import Record, array, field
from pvetools.schema.kinds import boolean, choice, string
from pvetools.system import log


class VmidParams(Record):
    """The container that a command is about."""

    vmid: int = field(formats.vmid, "Id of the container.", required=True)


class StatusParams(VmidParams):
    """Parameters of ``pct status``."""

    verbose: bool = field(boolean, "Show everything that is known.", default=False)


def _status(params: StatusParams) -> dict[str, Any]:
    """Show whether a container runs."""
    from pvetools.system import paths

    if params.verbose:
        from pvetools.guest.lxc import stats

        return stats.current(params.vmid)
    if not paths.guest_config("lxc", params.vmid).exists():
        from pvetools.config import guest

        guest.load("lxc", params.vmid)  # says what is wrong
    from pvetools.guest.lxc import running

    return {"status": "running" if running.is_running(params.vmid) else "stopped"}


def _unlock(params: VmidParams) -> None:
    """Clear a container's lock, which a killed command left behind."""
    from pvetools.backup.unlock import unlock
    from pvetools.guest.lxc.kind import LXC
    from pvetools.system import paths

    paths.ensure_tree()
    unlock(LXC, params.vmid)


class RescanParams(Record):
    """Parameters of ``pct rescan``."""

    vmid: int | None = field(formats.vmid, "Only this container.")
    dryrun: bool = field(boolean, "Only tell what would be changed.", default=False)


def _rescan(params: RescanParams) -> None:
    """Find volumes that no configuration names, and correct sizes in the configurations."""
    from pvetools.config import guest
    from pvetools.guest.common import rescan
    from pvetools.guest.lxc.kind import LXC

    vmids = [vmid for vmid, kind in guest.all_guests().items() if kind == "lxc"]
    rescan.rescan(LXC, vmids if params.vmid is None else [params.vmid], dry_run=params.dryrun)


class EnterParams(VmidParams):
    """Parameters of ``pct enter``."""

    keep_env: bool = field(boolean, "Keep the environment of the caller.", name="keep-env", default=True)


class ExecParams(EnterParams):
    """Parameters of ``pct exec``."""

    extra_args: list[str] = field(array(string()), "Command and its arguments.", name="extra-args", required=True)


def _attach(vmid: int, command: list[str], *, keep_env: bool) -> NoReturn:
    import os

    from pvetools.guest.lxc import inside
    from pvetools.system import run

    words = inside.attach_command(vmid, command, keep_env=keep_env)
    run.become(words, os.environ if keep_env else None)


def _enter(params: EnterParams) -> None:
    """Open a shell in a running container."""
    _attach(params.vmid, [], keep_env=params.keep_env)


def _exec(params: ExecParams) -> None:
    """Run a command in a running container; its exit status is that of this command."""
    _attach(params.vmid, params.extra_args, keep_env=params.keep_env)


class ConsoleParams(VmidParams):
    """Parameters of ``pct console``."""

    escape: str = field(string(r"\^?[a-z]"), "Prefix key of the console: ESCAPE q leaves it.", default="^a")


def _console(params: ConsoleParams) -> None:
    """Open a container's console."""
    from pvetools.guest.lxc import inside
    from pvetools.system import run

    run.become(inside.console_command(params.vmid, params.escape))


class CopyParams(VmidParams):
    """What copying in and out have in common."""

    user: str | None = field(string(), "Owner of the copy, by name or number.")
    group: str | None = field(string(), "Group of the copy, by name or number.")
    perms: str | None = field(string(), "Permissions of the copy, octal.", note="0644")


class PushParams(CopyParams):
    """Parameters of ``pct push``."""

    file: str = field(string(complete="file"), "File on the host.", required=True)
    destination: str = field(string(), "Path in the container.", required=True)


class PullParams(CopyParams):
    """Parameters of ``pct pull``."""

    path: str = field(string(), "File in the container.", required=True)
    destination: str = field(string(complete="file"), "Path on the host.", required=True)


def _push(params: PushParams) -> None:
    """Copy a file of the host into a running container."""
    from pvetools.guest.lxc import inside

    access = inside.Access(params.perms, params.user, params.group)
    inside.push(params.vmid, params.file, params.destination, access)


def _pull(params: PullParams) -> None:
    """Copy a file out of a running container."""
    from pvetools.guest.lxc import inside

    access = inside.Access(params.perms, params.user, params.group)
    inside.pull(params.vmid, params.path, params.destination, access)


def _df(params: VmidParams) -> list[dict[str, Any]]:
    """Show the space of a container's volumes."""
    from pvetools.guest.lxc import inside

    return inside.space(params.vmid)


def _mount(params: VmidParams) -> None:
    """Mount a stopped container's volumes on the host and lock it meanwhile."""
    from pvetools.guest.lxc import upkeep

    log.emit(f"mounted CT {params.vmid} in '{upkeep.mount(params.vmid)}'")


def _unmount(params: VmidParams) -> None:
    """Unmount a container's volumes and clear the lock."""
    from pvetools.guest.lxc import upkeep

    upkeep.unmount(params.vmid)


class FsckParams(VmidParams):
    """Parameters of ``pct fsck``."""

    device: str = field(choice("rootfs", *(f"mp{index}" for index in range(256))), "Volume to check.", default="rootfs")
    force: bool = field(boolean, "Check it even if it seems clean.", default=False)


def _fsck(params: FsckParams) -> None:
    """Check and mend the file system of a stopped container."""
    from pvetools.guest.lxc import upkeep

    log.emit(upkeep.fsck(params.vmid, params.device, force=params.force).rstrip("\n"))


class FstrimParams(VmidParams):
    """Parameters of ``pct fstrim``."""

    ignore_mountpoints: bool = field(
        boolean, "Only trim the root file system.", name="ignore-mountpoints", default=False
    )


def _fstrim(params: FstrimParams) -> None:
    """Give unused space of a running container back to the storage."""
    from pvetools.guest.lxc import upkeep

    upkeep.fstrim(params.vmid, ignore_mountpoints=params.ignore_mountpoints)


def _cpusets(params: Record) -> dict[str, Any]:
    """Show on which CPUs running containers are held."""
    from pvetools.guest.lxc import upkeep

    return {"containers": upkeep.cpusets(), "cpus": upkeep.cpus_of_host()}


class NoParams(Record):
    """A command without parameters."""


STATUS = Local(StatusParams, _status)
UNLOCK = Local(VmidParams, _unlock)
RESCAN = Local(RescanParams, _rescan)
ENTER = Local(EnterParams, _enter)
EXEC = Local(ExecParams, _exec)
CONSOLE = Local(ConsoleParams, _console)
PUSH = Local(PushParams, _push)
PULL = Local(PullParams, _pull)
DF = Local(VmidParams, _df)
MOUNT = Local(VmidParams, _mount)
UNMOUNT = Local(VmidParams, _unmount)
FSCK = Local(FsckParams, _fsck)
FSTRIM = Local(FstrimParams, _fstrim)
CPUSETS = Local(NoParams, _cpusets)

_NODE = {"node": LOCAL_NODE}
_VMID = ("vmid",)


def _power(name: str) -> Command:
    return Command(f"api.lxc:{name}", _VMID, fixed=_NODE, text="none")


def _own(name: str, *positional: str, text: str = "none") -> Command:
    return Command(f"cli.pct:{name}", positional, text=text)


TOOL = Tool(
    "pct",
    "Manage containers.",
    {
        "list": Command("api.lxc:vm_list", fixed=_NODE, text="render.containers:listing"),
        "start": _power("vm_start"),
        "stop": _power("vm_stop"),
        "shutdown": _power("vm_shutdown"),
        "reboot": _power("vm_reboot"),
        "suspend": _power("vm_suspend"),
        "resume": _power("vm_resume"),
        "create": Command(
            "api.lxc_config:vm_create", ("vmid", "ostemplate"), fixed=_NODE, text="none",
            file_params=("ssh-public-keys",), prompted=("password",),
        ),
        "restore": Command(
            "api.lxc_config:vm_create", ("vmid", "ostemplate"), fixed={**_NODE, "restore": "1"}, text="none",
            file_params=("ssh-public-keys",), prompted=("password",),
        ),
        "destroy": Command("api.lxc_config:vm_destroy", _VMID, fixed=_NODE, text="none"),
        "config": Command("api.lxc_config:vm_config", _VMID, fixed=_NODE, text="render.guests:config"),
        "pending": Command("api.lxc_config:vm_pending", _VMID, fixed=_NODE, text="render.guests:pending"),
        "set": Command("api.lxc_config:vm_update", _VMID, fixed=_NODE, text="none"),
        "resize": Command("api.lxc_config:vm_resize", ("vmid", "disk", "size"), fixed=_NODE, text="none"),
        "status": _own("STATUS", "vmid", text="render.guests:status"),
        "unlock": _own("UNLOCK", "vmid"),
        "rescan": _own("RESCAN"),
        "enter": _own("ENTER", "vmid"),
        "exec": _own("EXEC", "vmid", "extra-args..."),
        "console": _own("CONSOLE", "vmid"),
        "push": _own("PUSH", "vmid", "file", "destination"),
        "pull": _own("PULL", "vmid", "path", "destination"),
        "df": _own("DF", "vmid", text="render.containers:space"),
        "mount": _own("MOUNT", "vmid"),
        "unmount": _own("UNMOUNT", "vmid"),
        "fsck": _own("FSCK", "vmid"),
        "fstrim": _own("FSTRIM", "vmid"),
        "cpusets": _own("CPUSETS", text="render.containers:cpusets"),
    },
)  # fmt: skip


def main() -> NoReturn:
    """Entry point of the program."""
    app.main(TOOL)


if __name__ == "__main__":
    main()
