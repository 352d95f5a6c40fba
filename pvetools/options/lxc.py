"""Options of containers: the keys of ``/etc/pve/nodes/NODE/lxc/VMID.conf``."""

from __future__ import annotations

from collections.abc import Mapping

from pvetools.schema import formats
from pvetools.schema.core import PropertyString, Record, field, indexed, nested
from pvetools.schema.kinds import boolean, choice, integer, listing, number, string

_MOUNT_OPTION = "(discard|lazytime|noatime|nodev|noexec|nosuid)"
_MAP = "[ug]:[0-9]+:[0-9]+:[1-9][0-9]*"
_INTERFACE = r"[-_.\w\d]+"
_TEXT = r"[^\x00-\x08\x0a-\x1F\x7F]"


class Rootfs(PropertyString):
    """Value of ``rootfs``, and what every mount point has in common with it."""

    volume: str = field(
        formats.mount_source, "Volume, device or directory; STORAGE:SIZE in GiB allocates.", bare=True, required=True
    )
    size: int | None = field(formats.disk_size, "Size of the volume; for information, a change has no effect.")
    acl: bool | None = field(boolean, "Switch POSIX access lists on or off.", note="as the file system has it")
    ro: bool | None = field(boolean, "Mount read-only.")
    quota: bool | None = field(boolean, "Allow user quotas inside the container (privileged, disk images only).")
    replicate: bool = field(boolean, "Include the volume in replication jobs.", default=True)
    shared: bool = field(boolean, "Declare that the volume is present on every node.", default=False)
    mountoptions: str | None = field(
        string(f"(?:(?:{_MOUNT_OPTION})(;(?:{_MOUNT_OPTION}))*)"), "Further mount options, separated by semicolons."
    )
    idmap: str | None = field(
        string(f"(?:^(?:passthrough|{_MAP}(?:;{_MAP})*)$)"),
        "ID map of this mount: passthrough, or TYPE:CONTAINER:HOST:COUNT separated by semicolons.",
    )


class MountPoint(Rootfs):
    """Value of ``mp[n]``."""

    mp: str = field(formats.mount_target, "Path inside the container.", required=True)
    backup: bool | None = field(boolean, "Include the volume in backups.", note="0")
    keepattrs: bool = field(boolean, "Keep owner and mode of the mount directory in a new volume.", default=False)


class UnusedVolume(PropertyString):
    """Value of ``unused[n]``: a volume that belongs to the container but is not mounted."""

    volume: str = field(formats.volume_id, "Volume that is kept but not mounted.", bare=True, required=True)


class LxcNic(PropertyString):
    """Value of ``net[n]``."""

    name: str = field(string(_INTERFACE), "Name of the interface inside the container.", required=True)
    bridge: str | None = field(string(_INTERFACE, complete="bridge"), "Bridge on the host.")
    hwaddr: str | None = field(formats.mac_address, "MAC address; chosen at random when missing.")
    ip: str | None = field(formats.ipv4_config, "IPv4 address with prefix length, dhcp or manual.")
    gw: str | None = field(formats.ipv4, "Default gateway for IPv4.")
    ip6: str | None = field(formats.ipv6_config, "IPv6 address with prefix length, auto, dhcp or manual.")
    gw6: str | None = field(formats.ipv6, "Default gateway for IPv6.")
    tag: int | None = field(integer(1, 4094), "VLAN of the interface's untagged traffic.")
    trunks: str | None = field(
        string(r"(?:\d+(?:;\d+)*)"), "VLANs that may pass with their tags, separated by semicolons."
    )
    mtu: int | None = field(integer(64, 65535), "MTU of the interface.", note="the bridge's")
    rate: float | None = field(number(), "Limit in megabytes per second.")
    firewall: bool | None = field(boolean, "Filter the traffic with the container's firewall rules.")
    link_down: bool | None = field(boolean, "Pull the plug: the interface stays without link.")
    host_managed: bool | None = field(
        boolean, "Let the host configure the addresses instead of the container's own tools.", name="host-managed"
    )
    type: str | None = field(choice("veth"), "Kind of interface.")


class Features(PropertyString):
    """Value of ``features``."""

    nesting: bool = field(
        boolean, "Allow containers inside, by showing them /proc and /sys of the host.", default=False
    )
    keyctl: bool = field(boolean, "Allow the keyctl system call (unprivileged only).", default=False)
    fuse: bool = field(boolean, "Allow FUSE file systems; a backup may hang on them.", default=False)
    mknod: bool = field(boolean, "Allow making some device nodes (unprivileged only).", default=False)
    force_rw_sys: bool = field(boolean, "Mount /sys writable in unprivileged containers.", default=False)
    mount: str | None = field(
        string(r"(?:[a-zA-Z0-9_; ]+)"), "File system types that may be mounted inside, separated by semicolons."
    )


class PassedDevice(PropertyString):
    """Value of ``dev[n]``."""

    path: str | None = field(formats.device_path, "Device of the host, such as /dev/ttyUSB0.", bare=True)
    uid: int | None = field(integer(0), "Owner inside the container.", note="0")
    gid: int | None = field(integer(0), "Group inside the container.", note="0")
    mode: str | None = field(string(r"0[0-7]{3}"), "Access mode in octal, such as 0660.")
    deny_write: bool = field(boolean, "Forbid writing to the device.", name="deny-write", default=False)


class LxcOptions(Record):
    """Everything that can be set for a container."""

    # What it is and how it is treated.
    hostname: str | None = field(formats.host_name, "Host name of the container.", apply="fast")
    description: str | None = field(string(max_length=8192), "Notes about the container.", apply="fast")
    tags: list[str] | None = field(formats.tag_list, "Tags, separated by semicolons.", apply="fast")
    onboot: bool = field(boolean, "Start the container when the host boots.", apply="fast", default=False)
    startup: formats.Startup | None = field(
        formats.startup_order, "Start order and waits: [order=]N,up=SECONDS,down=SECONDS.", apply="fast"
    )
    protection: bool = field(boolean, "Refuse to remove the container or its volumes.", apply="fast", default=False)
    template: bool = field(boolean, "The container is a template.", default=False)
    lock: str | None = field(
        choice(
            "backup", "create", "destroyed", "disk", "fstrim", "migrate", "mounted", "rollback", "snapshot",
            "snapshot-delete",
        ),
        "Operation that holds the container.",
        apply="fast",
    )  # fmt: skip
    hookscript: str | None = field(
        formats.volume_id, "Script that is run before and after start and stop.", apply="fast"
    )
    arch: str = field(
        choice("amd64", "i386", "arm64", "armhf", "riscv32", "riscv64"), "Processor architecture.", default="amd64"
    )
    ostype: str | None = field(
        choice(
            "debian", "devuan", "ubuntu", "centos", "fedora", "opensuse", "archlinux", "alpine", "gentoo", "nixos",
            "unmanaged",
        ),
        "Distribution inside, whose files are adapted; unmanaged leaves them alone.",
        note="found out from the root file system",
    )  # fmt: skip
    unprivileged: bool = field(boolean, "Map the container's users to powerless ones of the host.", default=False)
    features: Features | None = field(nested(Features), "What the container may do beyond the usual.")
    entrypoint: str = field(string(f"(?:{_TEXT}+)"), "Command that is started first.", default="/sbin/init")
    env: str | None = field(
        string(rf"(?:(?:\w+={_TEXT}*)(?:\0\w+={_TEXT}*)*)"), "Environment: NAME=VALUE pairs separated by NUL bytes."
    )
    debug: bool = field(boolean, "Write a detailed log when the container is started.", default=False)

    # Processors and memory.
    cores: int | None = field(integer(1, 8192), "Number of processors.", apply="fast", note="all of the host")
    cpulimit: float = field(
        number(0, 8192), "Processor time in CPUs that may be used; 0 is unlimited.", apply="live", default=0
    )
    cpuunits: int | None = field(
        integer(0, 500000),
        "Weight against other guests when processor time is short.",
        apply="live",
        note="1024 with cgroup v1, 100 with cgroup v2",
    )
    memory: int = field(integer(16), "Memory in MiB.", apply="live", default=512)
    swap: int = field(integer(0), "Swap space in MiB.", apply="live", default=512)

    # Volumes and devices.
    rootfs: Rootfs | None = field(nested(Rootfs), "Volume with the root file system.")
    mp: Mapping[int, MountPoint] = indexed(
        nested(MountPoint), "Further volume or directory of the host in the container.", count=256, apply="live"
    )
    unused: Mapping[int, UnusedVolume] = indexed(
        nested(UnusedVolume), "Volume that belongs to the container without being mounted.", count=256, apply="live"
    )
    dev: Mapping[int, PassedDevice] = indexed(
        nested(PassedDevice), "Device of the host given to the container.", count=256, apply="live"
    )

    # Network and console.
    net: Mapping[int, LxcNic] = indexed(nested(LxcNic), "Network interface.", count=32, apply="live")
    nameserver: list[str] | None = field(listing(formats.name_server, " "), "Name servers.", note="those of the host")
    searchdomain: list[str] | None = field(
        listing(formats.dns_name, " "), "DNS search domains.", note="those of the host"
    )
    timezone: str | None = field(
        formats.timezone, "Time zone, such as Europe/Vienna; host for that of the host.", note="as the container has it"
    )
    console: bool = field(boolean, "Give the container a console device.", default=True)
    tty: int = field(integer(0, 6), "Number of terminals.", default=2)
    cmode: str = field(
        choice("shell", "console", "tty"),
        "What pct console opens: a terminal, the console device or a shell without login.",
        default="tty",
    )

    # Kept by the tools themselves.
    parent: str | None = field(formats.snapshot_name, "Snapshot on which this state builds.", apply="internal")
    snaptime: int | None = field(integer(0), "Time of the snapshot in seconds since 1970.", apply="internal")
