"""Options of backups: the keys of ``/etc/vzdump.conf``, the parameters of a job, and retention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pvetools.schema import formats
from pvetools.schema.core import PropertyString, Record, array, field, nested
from pvetools.schema.kinds import boolean, choice, integer, listing, string


class PruneBackups(PropertyString):
    """Value of ``prune-backups``: which backups of a guest are kept. A backup is kept if any of the rules keeps it."""

    keep_all: bool | None = field(boolean, "Keep everything; excludes the other rules.", name="keep-all")
    keep_last: int | None = field(integer(0), "Keep this many of the latest backups.", name="keep-last")
    keep_hourly: int | None = field(integer(0), "Keep the latest of this many hours.", name="keep-hourly")
    keep_daily: int | None = field(integer(0), "Keep the latest of this many days.", name="keep-daily")
    keep_weekly: int | None = field(integer(0), "Keep the latest of this many weeks.", name="keep-weekly")
    keep_monthly: int | None = field(integer(0), "Keep the latest of this many months.", name="keep-monthly")
    keep_yearly: int | None = field(integer(0), "Keep the latest of this many years.", name="keep-yearly")


def keep_all_conflict(keep: Mapping[str, Any]) -> str:
    """What is wrong with ``keep-all`` among rules of retention; empty: nothing."""
    limited = any(int(value or 0) > 0 for option, value in keep.items() if option != "keep-all")
    if limited and int(keep.get("keep-all") or 0):
        return "keep-all cannot be set together with other options."
    return ""


class Fleecing(PropertyString):
    """Value of ``fleecing``."""

    enabled: bool = field(
        boolean, "Save old blocks of a running VM to a scratch image while its backup runs.", bare=True, default=False
    )
    storage: str | None = field(formats.storage_id, "Storage of the scratch images.")


class Performance(PropertyString):
    """Value of ``performance``."""

    max_workers: int = field(integer(1, 256), "Read requests in flight at a time.", name="max-workers", default=16)
    pbs_entries_max: int = field(
        integer(1),
        "Directory entries kept in memory by container backups to a backup server.",
        name="pbs-entries-max",
        default=1048576,
    )


class VzdumpDefaults(Record):
    """The keys of ``vzdump.conf``: defaults for every backup on the host."""

    mode: str = field(
        choice("snapshot", "suspend", "stop"),
        "Keep the guest running, suspend it or stop it meanwhile.",
        default="snapshot",
    )
    compress: str = field(
        choice("0", "1", "gzip", "lzo", "zstd"), "Compression of the archive; 1 is lzo, 0 is none.", default="0"
    )
    pigz: int = field(integer(), "Threads of pigz in place of gzip; 1 is half of the processors.", default=0)
    zstd: int = field(integer(), "Threads of zstd; 0 is half of the processors.", default=1)
    storage: str | None = field(formats.storage_id, "Storage that takes the archives.")
    dumpdir: str | None = field(string(complete="directory"), "Directory that takes the archives.")
    tmpdir: str | None = field(string(complete="directory"), "Directory for temporary files.")
    pool: str | None = field(string(complete="pool"), "Back up all guests of this pool.")
    prune_backups: PruneBackups = field(
        nested(PruneBackups, form="prune-backups"),
        "Which backups are kept afterwards.",
        name="prune-backups",
        default=PruneBackups(keep_all=True),
        note="those of the storage",
    )
    remove: bool = field(boolean, "Remove backups that prune-backups does not keep.", default=True)
    maxfiles: int | None = field(integer(1), "Old form of prune-backups: backups kept for each guest.")
    protected: bool | None = field(boolean, "Protect the new archives against removal.", requires="storage")
    notes_template: str | None = field(
        string(max_length=1024),
        "Notes of the archive; {{cluster}}, {{guestname}}, {{node}} and {{vmid}} are replaced.",
        name="notes-template",
        requires="storage",
    )
    exclude_path: list[str] | None = field(
        array(string()), "Leave out files of containers that match this shell pattern.", name="exclude-path"
    )
    stdexcludes: bool = field(boolean, "Leave out temporary files and logs of containers.", default=True)
    bwlimit: int = field(integer(0), "Limit for reading in KiB per second; 0 is unlimited.", default=0)
    ionice: int = field(
        integer(0, 8), "Priority of disk access: 0 high, 7 low, 8 only when the disk is idle.", default=7
    )
    performance: Performance | None = field(nested(Performance, form="backup-performance"), "Fine tuning.")
    fleecing: Fleecing | None = field(
        nested(Fleecing, form="backup-fleecing"), "Scratch images that keep running VMs from waiting for the backup."
    )
    lockwait: int = field(integer(0), "Minutes to wait for another backup on this host to end.", default=180)
    stopwait: int = field(integer(0), "Minutes to wait for a guest to shut down.", default=10)
    script: str | None = field(string(complete="file"), "Script that is called at every step.")
    mailto: list[str] | None = field(
        listing(formats.email_or_username), "Addresses or users that get the report by mail."
    )
    mailnotification: str = field(choice("always", "failure"), "When reports are sent by mail.", default="always")
    notification_mode: str = field(
        choice("auto", "legacy-sendmail", "notification-system"),
        "How reports are sent: by mail to mailto, or by the notification rules.",
        name="notification-mode",
        default="auto",
    )
    pbs_change_detection_mode: str | None = field(
        choice("legacy", "data", "metadata"),
        "How container backups to a backup server find changed files.",
        name="pbs-change-detection-mode",
    )


class VzdumpOptions(VzdumpDefaults):
    """All parameters of a backup."""

    vmid: list[int] | None = field(formats.vmid_list, "Guests to back up.")
    all: bool = field(boolean, "Back up all guests of this host.", default=False)
    exclude: list[int] | None = field(formats.vmid_list, "Guests left out of all.")
    node: str | None = field(formats.node, "Do nothing unless this is the host's name.")
    quiet: bool = field(boolean, "Print nothing.", default=False)
    stop: bool = field(boolean, "Stop the backups that are running on this host.", default=False)
    stdout: bool | None = field(boolean, "Write the archive to standard output instead of a file.")
    job_id: str | None = field(
        string(r"\S+", max_length=50), "Name of the backup job, for its notifications.", name="job-id"
    )
