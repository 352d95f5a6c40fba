"""Further devices of virtual machines: display, sound, and what is passed through from the host."""

from __future__ import annotations

from pvetools.schema import formats
from pvetools.schema.core import PropertyString, field
from pvetools.schema.kinds import boolean, choice, integer, string

_HEX_ID = r"(?:^0x[0-9a-fA-F]{4}$)"
_PCI = r"(?:(?:[a-f0-9]{4,}:)?[a-f0-9]{2}:[a-f0-9]{2}(?:\.[a-f0-9])?)"
_USB = r"(?:(?:(?:(?:(0x)?([0-9A-Fa-f]{4}):(0x)?([0-9A-Fa-f]{4})))|(?:(?:(\d+)\-(\d+(\.\d+)*)))|[Ss][Pp][Ii][Cc][Ee]))"


class Vga(PropertyString):
    """Value of ``vga``."""

    type: str = field(
        choice(
            "cirrus", "qxl", "qxl2", "qxl3", "qxl4", "none", "serial0", "serial1", "serial2", "serial3", "std", "virtio",
            "virtio-gl", "vmware",
        ),
        "Graphics card; serialN makes that serial port the console.",
        bare=True,
        default="std",
    )  # fmt: skip
    memory: int | None = field(integer(4, 512), "Video memory in MiB.")
    clipboard: str | None = field(choice("vnc"), "Share the clipboard through VNC; needs an agent in the guest.")


class Audio(PropertyString):
    """Value of ``audio0``."""

    device: str = field(choice("ich9-intel-hda", "intel-hda", "AC97"), "Model of the sound card.", required=True)
    driver: str = field(choice("spice", "none"), "Where the sound goes on the host.", default="spice")


class SharedMemory(PropertyString):
    """Value of ``ivshmem``."""

    size: int = field(integer(1), "Size in MiB.", required=True)
    name: str | None = field(string(r"[a-zA-Z0-9\-]+"), "Name of the shared file.", note="the guest's ID")


class Usb(PropertyString):
    """Value of ``usb[n]``."""

    host: str | None = field(string(_USB), "Device of the host: VENDOR:PRODUCT, BUS-PORT or spice.", bare=True)
    mapping: str | None = field(formats.config_id, "Name of a cluster-wide device mapping.")
    usb3: bool = field(boolean, "Attach the device to a USB 3 controller.", default=False)


class HostPci(PropertyString):
    """Value of ``hostpci[n]``."""

    host: str | None = field(
        string(rf"(?:{_PCI}(;{_PCI})*)"), "Address on the host, such as 01:00.0; all functions without .N.", bare=True
    )
    mapping: str | None = field(formats.config_id, "Name of a cluster-wide device mapping.")
    mdev: str | None = field(string(r"[^/\.:]+"), "Type of mediated device to make on the card.")
    driver: str = field(choice("vfio", "keep"), "Bind the device to vfio or keep its driver.", default="vfio")
    pcie: bool = field(boolean, "Attach to a PCI Express port; needs machine q35.", default=False)
    rombar: bool = field(boolean, "Show the device's ROM to the guest.", default=True)
    romfile: str | None = field(string(r"[^,;]+"), "ROM file to use in place of the device's own.")
    x_vga: bool = field(boolean, "Make the device the guest's first graphics card.", name="x-vga", default=False)
    legacy_igd: bool = field(
        boolean, "Pass an Intel graphics device as the first and only card.", name="legacy-igd", default=False
    )
    vendor_id: str | None = field(string(_HEX_ID), "Vendor ID to show instead, such as 0x8086.", name="vendor-id")
    device_id: str | None = field(string(_HEX_ID), "Device ID to show instead.", name="device-id")
    sub_vendor_id: str | None = field(string(_HEX_ID), "Subsystem vendor ID to show instead.", name="sub-vendor-id")
    sub_device_id: str | None = field(string(_HEX_ID), "Subsystem device ID to show instead.", name="sub-device-id")


class SharedDirectory(PropertyString):
    """Value of ``virtiofs[n]``."""

    dirid: str = field(formats.config_id, "Name of a directory mapping.", bare=True, required=True)
    cache: str = field(choice("auto", "always", "metadata", "never"), "What the guest may cache.", default="auto")
    direct_io: bool = field(boolean, "Honour O_DIRECT of the guest's programs.", name="direct-io", default=False)
    expose_acl: bool = field(
        boolean, "Support POSIX access lists; implies extended attributes.", name="expose-acl", default=False
    )
    expose_xattr: bool = field(boolean, "Support extended attributes.", name="expose-xattr", default=False)
