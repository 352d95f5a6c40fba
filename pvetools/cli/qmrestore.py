"""The command ``qmrestore``."""

from __future__ import annotations

from typing import NoReturn

from pvetools.cli import app
from pvetools.render.command import Command, Local, Tool
from pvetools.schema import formats
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, number, string


class RestoreParams(Record):
    """Parameters of ``qmrestore``."""

    archive: str = field(
        string(max_length=255, complete="volume"),
        "Archive: its path, its volume id, or - for an uncompressed one on standard input.",
        required=True,
    )
    vmid: int = field(formats.vmid, "Id of the virtual machine.", required=True)
    storage: str | None = field(formats.storage_id, "Storage for all disks.", note="as in the backup, else local")
    force: bool = field(boolean, "Replace an existing virtual machine.", default=False)
    unique: bool = field(boolean, "Give the network cards new MAC addresses and the machine a new UUID.", default=False)
    start: bool = field(boolean, "Start the virtual machine afterwards.", default=False)
    bwlimit: float | None = field(
        number(0), "Limit for reading in KiB per second; 0 is unlimited.", note="limits of the storages"
    )
    pool: str | None = field(formats.pool_id, "Pool that the virtual machine is to join.")
    ha_managed: bool = field(boolean, "Have it managed by high availability.", name="ha-managed", default=False)
    live_restore: bool = field(
        boolean, "Start it at once and restore while it runs (backup servers only).", name="live-restore", default=False
    )


def _restore(p: RestoreParams) -> None:
    """Restore a virtual machine from a backup."""
    from pvetools.backup import restore_qemu
    from pvetools.system import paths, task

    restore_qemu.refuse_without_effect(pool=p.pool, ha_managed=p.ha_managed, live_restore=p.live_restore)
    request = restore_qemu.Request(
        p.archive, p.vmid, p.storage or "", force=p.force, unique=p.unique, start=p.start,
        bwlimit=None if p.bwlimit is None else int(p.bwlimit),
    )  # fmt: skip
    paths.ensure_tree()
    task.run("qmrestore", str(p.vmid), lambda: restore_qemu.restore(request))


RESTORE = Local(RestoreParams, _restore)

TOOL = Tool(
    "qmrestore",
    "Restore virtual machines from backups.",
    {"": Command("cli.qmrestore:RESTORE", ("archive", "vmid"), text="none")},
)


def main() -> NoReturn:
    """Run the tool."""
    app.main(TOOL)


if __name__ == "__main__":
    main()
