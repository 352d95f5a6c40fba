"""Disks of virtual machines: everything that may stand in an ``ide``, ``sata``, ``scsi`` or ``virtio`` line and its kin."""

from __future__ import annotations

from typing import ClassVar

from pvetools.schema import formats
from pvetools.schema.core import PropertyString, field
from pvetools.schema.kinds import boolean, choice, integer, number, string

DISK_FORMATS = ("raw", "qcow", "qed", "qcow2", "vmdk", "cloop")
_seconds = integer(1)


class Volume(PropertyString):
    """A line that names a volume and nothing that depends on the kind of disk."""

    ALIASES: ClassVar = {"volume": "file"}

    file: str = field(formats.drive_volume, "Volume or path; STORAGE:SIZE in GiB allocates.", bare=True, required=True)
    size: int | None = field(formats.disk_size, "Size of the volume; for information, a change has no effect.")
    import_from: str | None = field(
        formats.source_volume, "Volume or file whose content fills the newly allocated volume.", name="import-from"
    )


class Throttle(PropertyString):
    """Limits on the throughput of one disk. Bursts may exceed a limit up to its ``max`` for ``max_length`` seconds."""

    ALIASES: ClassVar = {
        "bps_rd_length": "bps_rd_max_length",
        "bps_wr_length": "bps_wr_max_length",
        "iops_rd_length": "iops_rd_max_length",
        "iops_wr_length": "iops_wr_max_length",
    }

    bps: int | None = field(integer(), "Limit for reads and writes together in bytes per second.")
    bps_rd: int | None = field(integer(), "Limit for reads in bytes per second.")
    bps_wr: int | None = field(integer(), "Limit for writes in bytes per second.")
    bps_max_length: int | None = field(_seconds, "Longest burst of bytes in seconds.")
    bps_rd_max_length: int | None = field(_seconds, "Longest burst of bytes read in seconds.")
    bps_wr_max_length: int | None = field(_seconds, "Longest burst of bytes written in seconds.")
    mbps: float | None = field(number(), "Limit for reads and writes together in MB per second.")
    mbps_rd: float | None = field(number(), "Limit for reads in MB per second.")
    mbps_wr: float | None = field(number(), "Limit for writes in MB per second.")
    mbps_max: float | None = field(number(), "Burst limit for reads and writes together in MB per second.")
    mbps_rd_max: float | None = field(number(), "Burst limit for reads in MB per second.")
    mbps_wr_max: float | None = field(number(), "Burst limit for writes in MB per second.")
    iops: int | None = field(integer(), "Limit for reads and writes together in operations per second.")
    iops_rd: int | None = field(integer(), "Limit for reads in operations per second.")
    iops_wr: int | None = field(integer(), "Limit for writes in operations per second.")
    iops_max: int | None = field(integer(), "Burst limit for reads and writes together in operations per second.")
    iops_rd_max: int | None = field(integer(), "Burst limit for reads in operations per second.")
    iops_wr_max: int | None = field(integer(), "Burst limit for writes in operations per second.")
    iops_max_length: int | None = field(_seconds, "Longest burst of operations in seconds.")
    iops_rd_max_length: int | None = field(_seconds, "Longest burst of read operations in seconds.")
    iops_wr_max_length: int | None = field(_seconds, "Longest burst of write operations in seconds.")


class Drive(Throttle, Volume):
    """What disks on every bus have in common."""

    format_: str | None = field(choice(*DISK_FORMATS), "Format of the image file.")
    media: str = field(choice("cdrom", "disk"), "Kind of drive the guest sees.", default="disk")
    aio: str | None = field(choice("native", "threads", "io_uring"), "How QEMU submits input and output.")
    cache: str | None = field(
        choice("none", "writethrough", "writeback", "unsafe", "directsync"), "Use of the host's page cache."
    )
    discard: str | None = field(choice("ignore", "on"), "Whether discarded blocks are given back to the storage.")
    detect_zeroes: bool | None = field(boolean, "Turn written zeros into holes where the storage can.")
    rerror: str | None = field(choice("ignore", "report", "stop"), "What to do on a read error.", note="stop")
    werror: str | None = field(
        choice("enospc", "ignore", "report", "stop"), "What to do on a write error.", note="stop"
    )
    snapshot: bool | None = field(boolean, "Keep changes only until the guest stops.")
    backup: bool | None = field(boolean, "Include the disk in backups.", note="1")
    replicate: bool = field(boolean, "Include the disk in replication jobs.", default=True)
    shared: bool = field(boolean, "Declare that the volume is present on every node.", default=False)
    serial: str | None = field(formats.url_encoded(60), "Serial number reported to the guest, URL-encoded.")


class WorldWideName(PropertyString):
    """Identity of disks on the SCSI and ATA buses."""

    wwn: str | None = field(
        string(r"(?:^(0x)[0-9a-fA-F]{16})"), "World wide name reported to the guest: 0x and 16 hexadecimal digits."
    )
    ssd: bool | None = field(boolean, "Present the disk to the guest as a solid-state drive.")


class Threaded(PropertyString):
    """Features of paravirtual disks."""

    iothread: bool | None = field(boolean, "Serve the disk from a thread of its own.")
    ro: bool | None = field(boolean, "Make the disk read-only.")


class IdeDrive(WorldWideName, Drive):
    """Value of ``ide[n]`` and ``cdrom``."""

    model: str | None = field(formats.url_encoded(120), "Model name reported to the guest, URL-encoded.")


class SataDrive(WorldWideName, Drive):
    """Value of ``sata[n]``."""


class ScsiDrive(Threaded, WorldWideName, Drive):
    """Value of ``scsi[n]``."""

    queues: int | None = field(integer(2), "Number of request queues.")
    scsiblock: bool = field(boolean, "Pass a host block device through with all its SCSI commands.", default=False)
    vendor: str | None = field(string(r"[A-Za-z0-9\-_\s]{,8}"), "Vendor name reported to the guest.")
    product: str | None = field(string(r"[A-Za-z0-9\-_\s]{,16}"), "Product name reported to the guest.")


class VirtioDrive(Threaded, Drive):
    """Value of ``virtio[n]``."""


class EfiDisk(Volume):
    """Value of ``efidisk0``: where UEFI keeps its variables."""

    format_: str | None = field(choice(*DISK_FORMATS), "Format of the image file.")
    efitype: str = field(choice("2m", "4m"), "Size of the firmware build; 4m is needed for secure boot.", default="2m")
    pre_enrolled_keys: bool = field(
        boolean, "Fill a new disk with the vendors' secure boot keys.", name="pre-enrolled-keys", default=False
    )
    ms_cert: str = field(
        choice("2011", "2023", "2023w", "2023k"),
        "Which Microsoft certificates the enrolled keys contain.",
        name="ms-cert",
        default="2011",
    )


class TpmState(Volume):
    """Value of ``tpmstate0``: where the emulated TPM keeps its state."""

    format_: str | None = field(choice("raw", "qcow2", "vmdk"), "Format of the image file.")
    version: str = field(choice("v1.2", "v2.0"), "TPM version; fixed once the state exists.", default="v1.2")


class UnusedDisk(PropertyString):
    """Value of ``unused[n]``: a volume that belongs to the guest but is not attached."""

    ALIASES: ClassVar = {"volume": "file"}

    file: str = field(formats.volume_id, "Volume that is kept but not attached.", bare=True, required=True)
