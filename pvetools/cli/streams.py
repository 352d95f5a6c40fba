"""``pvesm export`` and ``pvesm import``: volumes as streams."""

from __future__ import annotations

from pvetools.render.command import Local
from pvetools.schema import formats
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, choice, listing, string

_FORMAT = choice("raw+size", "tar+size", "qcow2+size", "vmdk+size", "zfs", "btrfs")
_SNAPSHOT = string(r"(?i:[a-z0-9_\-]{1,40})", max_length=40)


class ExportParams(Record):
    """Parameters of ``pvesm export``."""

    volume: str = field(formats.volume_id, "Volume id.", required=True)
    format_: str = field(_FORMAT, "Format of the stream.", required=True)
    filename: str = field(string(), "File that is written; - is standard output.", required=True)
    base: str | None = field(_SNAPSHOT, "Write only what has changed since this snapshot.")
    snapshot: str | None = field(_SNAPSHOT, "Snapshot whose state is written.")
    snapshot_list: list[str] | None = field(
        listing(string()), "Snapshots that are written besides, from the oldest to the newest.", name="snapshot-list"
    )
    with_snapshots: bool = field(boolean, "Write the snapshots too.", name="with-snapshots", default=False)


class ImportParams(Record):
    """Parameters of ``pvesm import``."""

    volume: str = field(formats.volume_id, "Volume id.", required=True)
    format_: str = field(_FORMAT, "Format of the stream.", required=True)
    filename: str = field(
        string(),
        "File that is read; - is standard input, tcp://ADDRESS, tcp://NETWORK/BITS and unix://PATH await a connection.",
        required=True,
    )
    allow_rename: bool = field(
        boolean, "Take another name when the volume exists already.", name="allow-rename", default=False
    )
    base: str | None = field(_SNAPSHOT, "Snapshot that the stream builds on.")
    delete_snapshot: str | None = field(
        string(r"(?i:[a-z0-9_\-]{1,80})", max_length=80), "Snapshot that is removed afterwards.", name="delete-snapshot"
    )
    snapshot: str | None = field(_SNAPSHOT, "Snapshot whose state the stream brings.")
    with_snapshots: bool = field(boolean, "The stream holds snapshots too.", name="with-snapshots", default=False)


def _export(p: ExportParams) -> None:
    """Write a volume to a file or to standard output."""
    from pvetools.storage import endpoints, transfer
    from pvetools.system import task
    from pvetools.system.errors import ParamErrors

    if p.snapshot_list and not p.with_snapshots:
        raise ParamErrors({"snapshot-list": "is for use with 'with-snapshots'"})
    state = transfer.State(p.snapshot or "", p.base or "", p.with_snapshots, tuple(p.snapshot_list or ()))
    transfer.check_export(p.volume, p.format_, state)
    with task.interruptible(), endpoints.output(p.filename, transfer.sources(p.volume)) as out:
        transfer.export(p.volume, p.format_, out, state, replace_content=p.filename != "-")


def _import(p: ImportParams) -> str:
    """Make a volume from a stream that ``pvesm export`` wrote."""
    from pvetools.storage import endpoints, transfer, volumes
    from pvetools.system import stdio, task
    from pvetools.system.errors import PveError

    state = transfer.State(p.snapshot or "", p.base or "", p.with_snapshots)
    transfer.check_import(p.volume, p.format_, state, rename=p.allow_rename)
    with task.interruptible(), endpoints.source(p.filename, lambda line: stdio.write(line + "\n")) as stream:
        made = transfer.import_(p.volume, p.format_, stream, state, rename=p.allow_rename)
        if p.delete_snapshot:
            try:
                volumes.delete_snapshot(made, p.delete_snapshot)
            except PveError as error:
                raise PveError(f"'{made}' is imported, but its snapshot can't be removed: {error}") from error
    return made


EXPORT = Local(ExportParams, _export)
IMPORT = Local(ImportParams, _import)
