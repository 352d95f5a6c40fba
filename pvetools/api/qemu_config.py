"""Virtual machines: making them, their options and disks."""

from __future__ import annotations

from typing import Any

from pvetools.api.common import FILE_ONLY, DigestParam, GuestParams, refuse
from pvetools.api.tree import NULL, UPID, method
from pvetools.options.qemu import QemuOptions
from pvetools.schema import formats
from pvetools.schema.core import field
from pvetools.schema.kinds import boolean, choice, integer, listing, number, string

_GUEST = "/nodes/{node}/qemu/{vmid}"
_CHANGE = (
    "/vms/{vmid}", "VM.Config.Disk", "VM.Config.CDROM", "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Network",
    "VM.Config.HWType", "VM.Config.Options", "VM.Config.Cloudinit",
)  # fmt: skip
_DISK = ("/vms/{vmid}", "VM.Config.Disk")
DISKS = (
    *(f"ide{n}" for n in range(4)), *(f"scsi{n}" for n in range(31)), *(f"virtio{n}" for n in range(16)),
    *(f"sata{n}" for n in range(6)), "efidisk0", "tpmstate0",
)  # fmt: skip
option_name = formats.config_id


class CreateParams(QemuOptions, GuestParams):
    """Everything that can be said when a virtual machine is made or restored."""

    LEAVES_OUT = FILE_ONLY

    archive: str | None = field(string(max_length=255), "Restore from this backup: volume id, path, or - for stdin.")
    storage: str | None = field(formats.storage_id, "Storage for the restored disks.")
    force: bool = field(boolean, "Replace an existing virtual machine.", default=False, requires="archive")
    unique: bool = field(boolean, "Give the network cards new MAC addresses.", default=False, requires="archive")
    bwlimit: float | None = field(number(0), "Limit of the restore in KiB per second.", note="limits of the storages")
    live_restore: bool = field(
        boolean, "Start it at once and restore while it runs.", name="live-restore", default=False
    )
    pool: str | None = field(formats.pool_id, "Pool that the virtual machine is to join.")
    ha_managed: bool = field(boolean, "Have it managed by high availability.", name="ha-managed", default=False)
    import_working_storage: str | None = field(
        formats.storage_id, "Storage for what is unpacked during an import.", name="import-working-storage"
    )
    start: bool = field(boolean, "Start it afterwards.", default=False)


@method("POST", "/nodes/{node}/qemu", CreateParams, permission=("user",),
        task=lambda p: "qmrestore" if p.archive else "qmcreate")  # fmt: skip
def create_vm(p: CreateParams) -> None:
    """Make a virtual machine, or restore one from a backup."""
    refuse(p, "live-restore", "pool", "ha-managed")
    if p.archive:
        refuse(p, "import-working-storage")
        _restore(p, p.archive)
        return
    refuse(p, "storage", "bwlimit")
    from pvetools.guest.qemu import configure

    configure.create(p.vmid, p)
    if p.start:
        from pvetools.guest.qemu import lifecycle

        lifecycle.start(p.vmid)


def _restore(p: CreateParams, archive: str) -> None:
    from pvetools.backup import restore_qemu

    overrides = {key: text for key, text in p.texts().items() if QemuOptions.find(key)}
    request = restore_qemu.Request(
        archive, p.vmid, p.storage or "", force=p.force, unique=p.unique, start=p.start,
        bwlimit=None if p.bwlimit is None else int(p.bwlimit), overrides=overrides,
    )  # fmt: skip
    restore_qemu.restore(request)


class ShowParams(GuestParams):
    """Parameters of showing the configuration."""

    current: bool = field(boolean, "Show the values in force, without pending changes.", default=False)
    snapshot: str | None = field(formats.snapshot_name, "Show the configuration of a snapshot.")


@method("GET", f"{_GUEST}/config", ShowParams, permission=("/vms/{vmid}", "VM.Audit"), returns={"type": "object"})
def vm_config(p: ShowParams) -> dict[str, Any]:
    """Show the configuration of a virtual machine, with pending changes applied."""
    from pvetools.guest.common import view
    from pvetools.guest.qemu.kind import QEMU

    return view.show(QEMU, p.vmid, current=p.current, snapshot=p.snapshot or "")


@method("GET", f"{_GUEST}/pending", GuestParams, permission=("/vms/{vmid}", "VM.Audit"), returns={"type": "array"})
def vm_pending(p: GuestParams) -> list[dict[str, Any]]:
    """Show the configuration of a virtual machine, pending changes beside the values in force."""
    from pvetools.guest.common import view
    from pvetools.guest.qemu.kind import QEMU

    return view.pending(QEMU, p.vmid)


class ChangeParams(QemuOptions, GuestParams, DigestParam):
    """What can be said when options are changed."""

    LEAVES_OUT = FILE_ONLY

    delete: list[str] | None = field(listing(option_name), "Options to delete.")
    revert: list[str] | None = field(listing(option_name), "Pending changes to forget.")
    force: bool = field(
        boolean, "Remove the volumes of deleted disks instead of keeping them unused.", default=False, requires="delete"
    )
    skiplock: bool = field(boolean, "Ignore a lock in the configuration.", default=False)


@method("PUT", f"{_GUEST}/config", ChangeParams, permission=_CHANGE, returns=NULL)
def update_vm(p: ChangeParams) -> None:
    """Change options of a virtual machine."""
    from pvetools.guest.common.edit import Change
    from pvetools.guest.qemu import configure

    wanted = Change(
        delete=p.delete or (), revert=p.revert or (), digest=p.digest, force=p.force, skip_lock=p.skiplock
    )  # fmt: skip
    configure.change(p.vmid, p, wanted)


class ChangeLaterParams(ChangeParams):
    """Parameters of a change in a task."""

    background_delay: int | None = field(integer(1, 30), "Seconds to wait for the end of the task.")
    import_working_storage: str | None = field(
        formats.storage_id, "Storage for what is unpacked during an import.", name="import-working-storage"
    )


@method("POST", f"{_GUEST}/config", ChangeLaterParams, permission=_CHANGE, task="qmconfig")
def update_vm_async(p: ChangeLaterParams) -> None:
    """Change options of a virtual machine in a task, for changes that copy data."""
    refuse(p, "background_delay")
    update_vm.handler(p)


class DestroyParams(GuestParams):
    """Parameters of destroying."""

    purge: bool = field(boolean, "Remove it from backup jobs too.", default=False)
    unreferenced: bool = field(
        boolean,
        "Remove also disks with its id that its configuration does not name, on all enabled storages.",
        name="destroy-unreferenced-disks",
        default=False,
    )
    skiplock: bool = field(boolean, "Ignore a lock in the configuration.", default=False)


@method("DELETE", _GUEST, DestroyParams, permission=("/vms/{vmid}", "VM.Allocate"), task="qmdestroy")
def destroy_vm(p: DestroyParams) -> None:
    """Destroy a virtual machine and all of its volumes."""
    from pvetools.guest.common import destroy
    from pvetools.guest.qemu.kind import QEMU

    destroy.destroy(QEMU, p.vmid, purge=p.purge, unreferenced=p.unreferenced, skip_lock=p.skiplock)


class ResizeParams(GuestParams, DigestParam):
    """Parameters of growing a disk."""

    disk: str = field(choice(*DISKS), "Disk to grow.", required=True)
    size: str = field(
        string(r"\+?\d+(\.\d+)?[KMGT]?"), "New size, or with + what is added; bytes, or with suffix K, M, G, T.",
        required=True,
    )  # fmt: skip
    skiplock: bool = field(boolean, "Ignore a lock in the configuration.", default=False)


@method("PUT", f"{_GUEST}/resize", ResizeParams, permission=_DISK, returns=UPID, task="resize")
def resize_vm(p: ResizeParams) -> None:
    """Grow a disk of a virtual machine."""
    from pvetools.guest.qemu import disk

    disk.resize(p.vmid, disk.Resize(p.disk, p.size, p.digest, p.skiplock))


class UnlinkParams(GuestParams):
    """Parameters of detaching disks."""

    idlist: list[str] = field(listing(option_name), "Disks to detach.", required=True)
    force: bool = field(boolean, "Remove their volumes instead of keeping them unused.", default=False)


@method("PUT", f"{_GUEST}/unlink", UnlinkParams, permission=_DISK, returns=NULL)
def unlink(p: UnlinkParams) -> None:
    """Detach disks from a virtual machine; unused ones are removed."""
    from pvetools.guest.qemu import disk

    disk.unlink(p.vmid, p.idlist, force=p.force)
