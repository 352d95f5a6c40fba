"""Containers: making and removing them, their configuration."""

from __future__ import annotations

from typing import Any

from pvetools.api.common import FILE_ONLY, DigestParam, GuestParams, NodeParams
from pvetools.api.tree import NULL, method
from pvetools.options.lxc import LxcOptions
from pvetools.schema import formats
from pvetools.schema.core import field
from pvetools.schema.kinds import boolean, choice, listing, number, string
from pvetools.system.errors import ParamErrors, Refused

_AUDIT = ("/vms/{vmid}", "VM.Audit")
_KEYS = listing(formats.config_id)


class CreateParams(NodeParams, LxcOptions):
    """Parameters of creating and restoring."""

    LEAVES_OUT = FILE_ONLY

    vmid: int = field(formats.vmid, "Id of the new container.", required=True)
    ostemplate: str = field(
        string(max_length=255, complete="template"), "Template (or, to restore, backup): volume or path.", required=True
    )
    storage: str = field(formats.storage_id, "Storage of the root file system when rootfs is not given.",
                         default="local")  # fmt: skip
    password: str | None = field(string(min_length=5), "Password of root inside the container.")
    ssh_public_keys: str | None = field(
        string(), "Public SSH keys that may log in as root, one a line.", name="ssh-public-keys"
    )
    start: bool = field(boolean, "Start the container when it is made.", default=False)
    ignore_unpack_errors: bool = field(
        boolean, "Go on when single members cannot be unpacked.", name="ignore-unpack-errors", default=False
    )
    force: bool = field(boolean, "Overwrite an existing container (restore only).", default=False)
    restore: bool = field(boolean, "The archive is a backup.", default=False)
    unique: bool = field(boolean, "Give every interface a new MAC address.", requires="restore", default=False)
    bwlimit: float | None = field(number(0), "Limit in KiB a second for reading the backup.")
    pool: str | None = field(formats.pool_id, "Pool that the container joins.")
    ha_managed: bool = field(boolean, "Put the container under high availability.", name="ha-managed", default=False)


def _refuse_unserved(params: CreateParams) -> None:
    for option, given in (("pool", params.pool is not None), ("ha-managed", params.ha_managed)):
        if given:
            raise Refused(f"option '{option}' is not supported yet")


@method("POST", "/nodes/{node}/lxc", CreateParams, permission=("/vms/{vmid}", "VM.Allocate"),
        task=lambda params: "vzrestore" if params.restore else "vzcreate")  # fmt: skip
def vm_create(params: CreateParams) -> None:
    """Create a container from a template."""
    _refuse_unserved(params)
    if params.restore:
        _restore(params)
        return
    for option in ("force", "bwlimit"):
        if option in params.given:
            raise Refused(f"option '{option}' has no effect unless a backup is restored")
    from pvetools.guest.lxc import create, lifecycle

    keys = create.ssh_keys(params.ssh_public_keys or "")
    fill = create.from_template(params.ostemplate, ignore_errors=params.ignore_unpack_errors)
    access = create.Access(params.password or "", keys)
    usual = create.image_options(params.ostemplate, params.given)
    create.create(params.vmid, params, fill, storage=params.storage, access=access, usual=usual)
    if params.start:
        lifecycle.start(params.vmid)


def _restore(params: CreateParams) -> None:
    from pvetools.backup import restore_lxc

    for option in ("password", "ssh-public-keys"):
        if option in params.given:
            raise ParamErrors({option: "can't be given when a backup is restored: it has its own"})
    restore_lxc.restore(
        restore_lxc.Request(
            params.ostemplate, params.vmid, params, params.storage, force=params.force, unique=params.unique,
            start=params.start, bwlimit=None if params.bwlimit is None else int(params.bwlimit),
            ignore_errors=params.ignore_unpack_errors,
        )
    )  # fmt: skip


class DestroyParams(GuestParams):
    """Parameters of destroying."""

    force: bool = field(boolean, "Destroy it even if it runs.", default=False)
    purge: bool = field(boolean, "Also remove it from backup jobs.", default=False)
    destroy_unreferenced_disks: bool = field(
        boolean, "Also remove volumes of this id that its configuration does not name, on all storages.",
        name="destroy-unreferenced-disks", default=False,
    )  # fmt: skip


@method("DELETE", "/nodes/{node}/lxc/{vmid}", DestroyParams, permission=("/vms/{vmid}", "VM.Allocate"),
        task="vzdestroy")  # fmt: skip
def vm_destroy(params: DestroyParams) -> None:
    """Destroy a container with all volumes that it owns."""
    from pvetools.guest.lxc import destroy

    destroy.destroy(params.vmid, force=params.force, purge=params.purge, unreferenced=params.destroy_unreferenced_disks)


class ConfigParams(GuestParams):
    """Parameters of showing a configuration."""

    current: bool = field(boolean, "Show the values in force instead of the pending ones.", default=False)
    snapshot: str | None = field(formats.snapshot_name, "Show the configuration of this snapshot.")


@method("GET", "/nodes/{node}/lxc/{vmid}/config", ConfigParams, permission=_AUDIT)
def vm_config(params: ConfigParams) -> dict[str, Any]:
    """Show a container's configuration, with pending changes applied."""
    from pvetools.guest.common import view
    from pvetools.guest.lxc.kind import LXC

    return view.show(LXC, params.vmid, current=params.current, snapshot=params.snapshot or "")


@method("GET", "/nodes/{node}/lxc/{vmid}/pending", GuestParams, permission=_AUDIT)
def vm_pending(params: GuestParams) -> list[dict[str, Any]]:
    """Show a container's configuration with current and pending values."""
    from pvetools.guest.common import view
    from pvetools.guest.lxc.kind import LXC

    return view.pending(LXC, params.vmid)


class UpdateParams(GuestParams, LxcOptions, DigestParam):
    """Parameters of changing a configuration."""

    LEAVES_OUT = FILE_ONLY

    delete: list[str] = field(_KEYS, "Options to remove.", default=[])
    revert: list[str] = field(_KEYS, "Pending changes to drop.", default=[])


@method("PUT", "/nodes/{node}/lxc/{vmid}/config", UpdateParams, permission=("/vms/{vmid}", "VM.Config.Options"),
        returns=NULL)  # fmt: skip
def vm_update(params: UpdateParams) -> None:
    """Change options of a container; what needs a restart stays pending while it runs."""
    from pvetools.config import guest
    from pvetools.guest.common import edit
    from pvetools.guest.lxc import kind, live, running

    before = guest.load("lxc", params.vmid).current
    _check_fixed(params, before)
    wanted = params.replaced(net=kind.with_addresses(params.net, before))
    edit.apply(kind.LXC, params.vmid, edit.Change(wanted, params.delete, params.revert, params.digest))
    if ("cores" in params.given or "cores" in params.delete) and running.is_running(params.vmid):
        live.apply_cores(params.vmid, params.cores)


def _check_fixed(params: UpdateParams, before: dict[str, str]) -> None:
    """Owners of all files depend on the id map: it cannot change afterwards."""
    from pvetools.config.guest import is_on

    now = is_on(before, "unprivileged")
    if "unprivileged" in params.delete or ("unprivileged" in params.given and params.unprivileged != now):
        raise ParamErrors({"unprivileged": "cannot be changed after creation; back the container up and restore it"})


class ResizeParams(GuestParams, DigestParam):
    """Parameters of growing a volume."""

    disk: str = field(choice("rootfs", *(f"mp{index}" for index in range(256))), "Volume to grow.", required=True)
    size: str = field(
        string(r"\+?\d+(\.\d+)?[KMGT]?"), "New size, or with a leading + what is to be added.", required=True
    )


@method("PUT", "/nodes/{node}/lxc/{vmid}/resize", ResizeParams, permission=("/vms/{vmid}", "VM.Config.Disk"),
        task="resize")  # fmt: skip
def vm_resize(params: ResizeParams) -> None:
    """Grow a volume with its file system, of a running container where the storage can do that."""
    from pvetools.guest.lxc import resize

    resize.resize(params.vmid, params.disk, params.size, params.digest)
