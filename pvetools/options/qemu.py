"""Options of virtual machines: the keys of ``/etc/pve/nodes/NODE/qemu-server/VMID.conf``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pvetools.options.cpu import Cpu, NumaNode, Sev, Tdx
from pvetools.options.device import Audio, HostPci, SharedDirectory, SharedMemory, Usb, Vga
from pvetools.options.drive import EfiDisk, IdeDrive, SataDrive, ScsiDrive, TpmState, UnusedDisk, VirtioDrive
from pvetools.options.nic import IpConfig, Nic
from pvetools.schema import formats
from pvetools.schema.core import PropertyString, Record, field, indexed, nested
from pvetools.schema.kinds import boolean, choice, integer, listing, number, string

_BASE64 = r"[A-Za-z0-9+\/]+={0,2}"
_MACHINE = (
    r"(pc|pc(-i440fx)?-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|q35|pc-q35-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?"
    r"|virt(?:-\d+(\.\d+)+)?(\+pve\d+)?)"
)


class Agent(PropertyString):
    """Value of ``agent``."""

    ALIASES: ClassVar = {"freeze-fs-on-backup": "freeze-fs", "guest-fsfreeze": "freeze-fs"}

    enabled: bool = field(
        boolean, "Talk to the QEMU guest agent in the guest.", bare=True, required=True, default=False
    )
    fstrim_cloned_disks: bool = field(
        boolean, "Ask the guest to trim its file systems after a disk was moved or cloned.", default=False
    )
    freeze_fs: bool = field(
        boolean, "Freeze the guest's file systems while a backup or snapshot is taken.", name="freeze-fs", default=True
    )
    type: str = field(choice("virtio", "isa"), "Kind of serial port between host and agent.", default="virtio")


class Boot(PropertyString):
    """Value of ``boot``."""

    legacy: str = field(
        string(r"[acdn]{1,4}"),
        "Old form of the order: a floppy, c disk, d CD-ROM, n network.",
        bare=True,
        default="cdn",
    )
    order: list[str] | None = field(
        listing(formats.boot_device, ";"), "Devices to boot from, in this order, separated by semicolons."
    )


class Memory(PropertyString):
    """Value of ``memory``."""

    current: int = field(integer(16), "Memory in MiB.", bare=True, required=True, default=512)


class Machine(PropertyString):
    """Value of ``machine``."""

    type: str | None = field(
        string(_MACHINE, max_length=40), "Machine type, such as pc, q35 or pc-q35-9.0.", bare=True, note="pc"
    )
    viommu: str | None = field(choice("intel", "virtio"), "Give the guest an IOMMU of this kind.")
    aw_bits: float | None = field(number(32, 64), "Address width of the guest's IOMMU in bits.", name="aw-bits")
    enable_s3: bool | None = field(boolean, "Offer suspend to RAM to the guest.", name="enable-s3")
    enable_s4: bool | None = field(boolean, "Offer suspend to disk to the guest.", name="enable-s4")


class Smbios(PropertyString):
    """Value of ``smbios1``: what the guest reads as the maker's data of its machine."""

    base64: bool | None = field(boolean, "The texts are Base64-encoded.")
    uuid: str | None = field(formats.uuid, "UUID of the machine.")
    manufacturer: str | None = field(string(_BASE64), "Manufacturer.")
    product: str | None = field(string(_BASE64), "Product name.")
    version: str | None = field(string(_BASE64), "Version.")
    serial: str | None = field(string(_BASE64), "Serial number.")
    sku: str | None = field(string(_BASE64), "Stock-keeping unit.")
    family: str | None = field(string(_BASE64), "Product family.")


class CloudInitFiles(PropertyString):
    """Value of ``cicustom``: snippets that replace the generated cloud-init files."""

    meta: str | None = field(formats.volume_id, "Snippet with the meta data.")
    network: str | None = field(formats.volume_id, "Snippet with the network configuration.")
    user: str | None = field(formats.volume_id, "Snippet with the user data.")
    vendor: str | None = field(formats.volume_id, "Snippet with the vendor data.")


class SpiceEnhancements(PropertyString):
    """Value of ``spice_enhancements``."""

    foldersharing: bool = field(boolean, "Share folders of the client through SPICE.", default=False)
    videostreaming: str = field(
        choice("off", "all", "filter"), "Compress what looks like a video (filter) or everything.", default="off"
    )


class Random(PropertyString):
    """Value of ``rng0``."""

    source: str = field(
        choice("/dev/urandom", "/dev/random", "/dev/hwrng"),
        "Device of the host that random numbers are taken from.",
        bare=True,
        required=True,
    )
    max_bytes: int = field(integer(), "Bytes that may be taken in one period; 0 removes the limit.", default=1024)
    period: int = field(integer(), "Length of the period in milliseconds.", default=1000)


class Watchdog(PropertyString):
    """Value of ``watchdog``."""

    model: str = field(choice("i6300esb", "ib700"), "Watchdog device.", bare=True, default="i6300esb")
    action: str | None = field(
        choice("reset", "shutdown", "poweroff", "pause", "debug", "none"), "What to do when the guest stops feeding it."
    )


class Meta(PropertyString):
    """Value of ``meta``."""

    ctime: int | None = field(integer(0), "Time of creation in seconds since 1970.")
    creation_qemu: str | None = field(
        string(r"\d+(\.\d+)+"), "QEMU version with which the guest was created.", name="creation-qemu"
    )


class QemuOptions(Record):
    """Everything that can be set for a virtual machine."""

    # What it is and how it is treated.
    name: str | None = field(formats.dns_name, "Name of the guest, also its host name for cloud-init.", apply="fast")
    description: str | None = field(string(max_length=8192), "Notes about the guest.", apply="fast")
    tags: list[str] | None = field(formats.tag_list, "Tags, separated by semicolons.", apply="fast")
    onboot: bool = field(boolean, "Start the guest when the host boots.", apply="fast", default=False)
    startup: formats.Startup | None = field(
        formats.startup_order, "Start order and waits: [order=]N,up=SECONDS,down=SECONDS.", apply="fast"
    )
    protection: bool = field(boolean, "Refuse to remove the guest or its disks.", apply="fast", default=False)
    template: bool = field(boolean, "The guest is a template.", default=False)
    lock: str | None = field(
        choice(
            "backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended"
        ),
        "Operation that holds the guest.",
        apply="fast",
    )
    hookscript: str | None = field(
        formats.volume_id, "Script that is run before and after start and stop.", apply="fast"
    )
    ostype: str = field(
        choice(
            "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris"
        ),
        "Operating system of the guest; adapts timers, devices and defaults to it.",
        default="other",
    )
    autostart: bool = field(boolean, "Kept for old configurations; has no effect.", default=False)
    reboot: bool = field(boolean, "Allow reboots; if off, the guest stops instead.", default=True)
    freeze: bool | None = field(boolean, "Start with the processors stopped.")
    startdate: str = field(
        string(r"(now|\d{4}-\d{1,2}-\d{1,2}(T\d{1,2}:\d{1,2}:\d{1,2})?)"),
        "Time of the guest's clock at start: now, YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS.",
        default="now",
    )
    localtime: bool | None = field(
        boolean, "Run the guest's clock in local time instead of UTC.", note="1 if ostype is a Windows"
    )
    hotplug: list[str] = field(
        formats.hotplug_features,
        "What may be changed while the guest runs: 0, 1 or a list of features.",
        apply="live",
        default=["network", "disk", "usb"],
    )
    migrate_downtime: float = field(
        number(0), "Longest pause at the end of a live migration in seconds.", apply="fast", default=0.1
    )
    migrate_speed: int = field(
        integer(0), "Limit for migrations in MB per second; 0 is unlimited.", apply="fast", default=0
    )
    agent: Agent | None = field(nested(Agent), "Use of the QEMU guest agent.", apply="live")

    # Machine and processors.
    arch: str | None = field(choice("x86_64", "aarch64"), "Processor architecture.", note="the host's")
    machine: Machine | None = field(nested(Machine), "Machine type and its features.")
    bios: str = field(choice("seabios", "ovmf"), "Firmware: seabios is a BIOS, ovmf is UEFI.", default="seabios")
    kvm: bool = field(boolean, "Use hardware virtualization.", default=True)
    acpi: bool = field(boolean, "Offer ACPI to the guest.", default=True)
    tdf: bool = field(boolean, "Correct lost timer ticks.", default=False)
    cpu: Cpu | None = field(nested(Cpu, form="pve-vm-cpu-conf"), "Processor model and flags.")
    sockets: int = field(integer(1), "Number of processor sockets.", default=1)
    cores: int = field(integer(1), "Cores per socket.", default=1)
    smp: int = field(integer(1), "Number of processors; use sockets and cores instead.", default=1)
    vcpus: int = field(
        integer(1), "Processors that are plugged in at start; 0 means all of them.", apply="live", default=0
    )
    cpulimit: float = field(
        number(0, 128), "Processor time in CPUs that may be used; 0 is unlimited.", apply="live", default=0
    )
    cpuunits: int | None = field(
        integer(1, 262144),
        "Weight against other guests when processor time is short.",
        apply="live",
        note="1024 with cgroup v1, 100 with cgroup v2",
    )
    affinity: str | None = field(formats.cpu_set, "Host processors on which the guest may run, such as 0,5,8-11.")
    numa: bool = field(boolean, "Present NUMA nodes to the guest.", default=False)
    numa_nodes: Mapping[int, NumaNode] = indexed(nested(NumaNode), "A NUMA node of the guest.", count=8, name="numa")
    amd_sev: Sev | None = field(
        nested(Sev, form="pve-qemu-sev-fmt"), "Encrypt the guest's memory with AMD SEV.", name="amd-sev"
    )
    intel_tdx: Tdx | None = field(
        nested(Tdx, form="pve-qemu-tdx-fmt"), "Run as a trust domain with Intel TDX.", name="intel-tdx"
    )
    smbios1: Smbios | None = field(
        nested(Smbios, form="pve-qm-smbios1")._replace(
            json={"type": "string", "format": "pve-qm-smbios1", "maxLength": 512}
        ),
        "Data about the machine that the guest can read.",
    )
    vmgenid: str | None = field(
        string(r"(?:[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}|[01])"),
        "Generation ID: a UUID, 1 to make a new one or 0 for none.",
        note="made when the guest is created",
    )
    args: str | None = field(string(), "Further arguments for QEMU; for experts.")

    # Memory.
    memory: Memory = field(nested(Memory), "Memory in MiB.", apply="live", default=Memory(current=512))
    balloon: int | None = field(
        integer(0), "Least memory in MiB that the balloon leaves the guest; 0 turns the balloon off.", apply="live"
    )
    shares: int = field(
        integer(0, 50000),
        "Weight against other guests when memory is shared out by balloons.",
        apply="fast",
        default=1000,
    )
    hugepages: str | None = field(choice("any", "2", "1024"), "Back the memory with huge pages of this size in MiB.")
    keephugepages: bool = field(boolean, "Keep the huge pages when the guest stops.", default=False)
    allow_ksm: bool = field(
        boolean, "Let the host merge pages that are equal in several guests.", name="allow-ksm", default=True
    )
    ivshmem: SharedMemory | None = field(nested(SharedMemory), "Memory shared between guests or with the host.")

    # Disks.
    ide: Mapping[int, IdeDrive] = indexed(nested(IdeDrive), "IDE disk or CD-ROM.", count=4)
    sata: Mapping[int, SataDrive] = indexed(nested(SataDrive), "SATA disk or CD-ROM.", count=6)
    scsi: Mapping[int, ScsiDrive] = indexed(nested(ScsiDrive), "SCSI disk or CD-ROM.", count=31, apply="live")
    virtio: Mapping[int, VirtioDrive] = indexed(nested(VirtioDrive), "Paravirtual disk.", count=16, apply="live")
    cdrom: IdeDrive | None = field(nested(IdeDrive, form="pve-qm-ide"), "CD-ROM; another name of ide2.")
    efidisk0: EfiDisk | None = field(nested(EfiDisk), "Disk for the variables of UEFI.")
    tpmstate0: TpmState | None = field(nested(TpmState), "Disk for the state of the TPM; adds a TPM to the guest.")
    unused: Mapping[int, UnusedDisk] = indexed(
        nested(UnusedDisk), "Volume that belongs to the guest without being attached.", count=256, apply="config-only"
    )
    scsihw: str = field(
        choice("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"),
        "Model of the SCSI controller.",
        default="lsi",
    )
    boot: Boot | None = field(nested(Boot, form="pve-qm-boot"), "Devices to boot from: order=DEVICE;DEVICE.")
    bootdisk: str | None = field(formats.boot_disk, "Disk to boot from; use boot with order= instead.")

    # Other devices.
    net: Mapping[int, Nic] = indexed(nested(Nic), "Network card.", count=32, apply="live")
    vga: Vga | None = field(nested(Vga), "Graphics card.")
    keyboard: str | None = field(
        choice(
            "de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja",
            "lt", "mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr",
        ),
        "Keyboard layout of the VNC server.",
    )  # fmt: skip
    tablet: bool = field(boolean, "Give the guest a USB tablet for an exact mouse pointer.", apply="live", default=True)
    serial: Mapping[int, str] = indexed(
        string(r"(/dev/[^,]+|socket)"), "Serial port: a host device, or socket for qm terminal.", count=4
    )
    parallel: Mapping[int, str] = indexed(
        string(r"/dev/parport\d+|/dev/usb/lp\d+"), "Parallel port of the host given to the guest.", count=3
    )
    usb: Mapping[int, Usb] = indexed(nested(Usb), "USB device given to the guest.", count=14, apply="live")
    hostpci: Mapping[int, HostPci] = indexed(
        nested(HostPci, form="pve-qm-hostpci"), "PCI device of the host given to the guest.", count=16
    )
    virtiofs: Mapping[int, SharedDirectory] = indexed(
        nested(SharedDirectory), "Directory of the host shared with the guest.", count=10
    )
    audio0: Audio | None = field(nested(Audio), "Sound card.")
    rng0: Random | None = field(nested(Random, form="pve-qm-rng"), "Source of random numbers for the guest.")
    watchdog: Watchdog | None = field(
        nested(Watchdog, form="pve-qm-watchdog"), "Watchdog that acts when the guest hangs."
    )
    spice_enhancements: SpiceEnhancements | None = field(nested(SpiceEnhancements), "Extras of the SPICE display.")

    # Cloud-init.
    citype: str | None = field(
        choice("configdrive2", "nocloud", "opennebula"),
        "Form of the cloud-init data.",
        note="nocloud, or configdrive2 if ostype is a Windows",
    )
    ciuser: str | None = field(string(), "User that gets the password and SSH keys instead of the image's own.")
    cipassword: str | None = field(string(), "Password of the user; SSH keys are the better choice.")
    ciupgrade: bool = field(boolean, "Upgrade packages at the first boot.", default=True)
    cicustom: CloudInitFiles | None = field(
        nested(CloudInitFiles, form="pve-qm-cicustom"), "Own files in place of the generated cloud-init data."
    )
    sshkeys: str | None = field(formats.url_encoded(), "Public SSH keys of the user, one a line, URL-encoded.")
    ipconfig: Mapping[int, IpConfig] = indexed(
        nested(IpConfig, form="pve-qm-ipconfig"), "Addresses of the network card with the same number.", count=32
    )
    nameserver: list[str] | None = field(
        listing(formats.address, " "), "Name servers for cloud-init.", note="those of the host"
    )
    searchdomain: str | None = field(string(), "DNS search domains for cloud-init.", note="those of the host")

    # Kept by the tools themselves.
    vmstatestorage: str | None = field(
        formats.storage_id, "Storage for the memory of snapshots and suspended guests.", apply="fast"
    )
    vmstate: str | None = field(formats.volume_id, "Volume that holds the memory.", apply="internal")
    parent: str | None = field(formats.snapshot_name, "Snapshot on which this state builds.", apply="internal")
    snaptime: int | None = field(integer(0), "Time of the snapshot in seconds since 1970.", apply="internal")
    runningmachine: Machine | None = field(
        nested(Machine), "Machine type that was running at the snapshot.", apply="internal"
    )
    runningcpu: str | None = field(
        string(r"(?:^((?>[+-]?[\w\-\._=]+,?)+)$)"), "Processor that was running at the snapshot.", apply="internal"
    )
    running_nets_host_mtu: str | None = field(
        string(r"net\d+=\d+(,net\d+=\d+)*"),
        "MTU of the network cards at the snapshot.",
        name="running-nets-host-mtu",
        apply="internal",
    )
    meta: Meta | None = field(nested(Meta), "Facts about the creation of the guest.", apply="internal")
