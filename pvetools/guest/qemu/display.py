"""Display, keyboard and pointer of a domain."""

from __future__ import annotations

from pvetools.guest.qemu import pci
from pvetools.guest.qemu.build import Build, refuse

# type of vga -> libvirt's model
MODELS = {"std": "vga", "cirrus": "cirrus", "vmware": "vmvga", "virtio": "virtio"}
_STANDARD_MEMORY = 16  # MiB
_WITH_MEMORY = ("std", "cirrus", "vmware")


def display(build: Build) -> None:
    """Graphics card and VNC server on a unix socket; nothing of it with ``none`` or a serial console.

    Raises:
        Refused: a card that needs SPICE or OpenGL, or a serial console without the serial port.
    """
    options = build.options
    kind = options.vga.type if options.vga else "std"
    keyboard, tablet = options.keyboard, options.tablet
    memory = options.vga.memory if options.vga else None
    if kind == "none" or kind.startswith("serial"):
        _without_card(build, kind)
        return
    if kind not in MODELS:
        raise refuse("vga", kind, f"choose one of {', '.join(MODELS)}, none or serial0 to serial3")
    video = build.devices.add("video")
    size = (memory or _STANDARD_MEMORY) * 1024 if kind in _WITH_MEMORY else None
    video.add("model", type=MODELS[kind], vram=size, heads=1, primary="yes")
    pci.place(video, "vga", q35=build.q35)
    screen = build.devices.add("graphics", type="vnc", keymap=keyboard)
    screen.add("listen", type="socket", socket=f"{build.place.sockets}/{build.place.vmid}.vnc")
    if tablet:
        pointer = build.devices.add("input", type="tablet", bus="usb")
        pointer.add("address", type="usb", bus=0, port=1)


def _without_card(build: Build, kind: str) -> None:
    if kind != "none" and int(kind[-1]) not in build.options.serial:
        raise refuse("vga", kind, f"the guest has no {kind}")
    build.devices.add("video").add("model", type="none")


def usb(build: Build) -> None:
    """USB controllers: the chipset's own."""
    if not build.q35:
        controller = build.devices.add("controller", type="usb", index=0, model="piix3-uhci")
        pci.add_address(controller, 0, 1, 2)
        return
    main = build.devices.add("controller", type="usb", index=0, model="ich9-ehci1")
    pci.add_address(main, 0, 0x1D, 7)
    for number in range(3):
        companion = build.devices.add("controller", type="usb", index=0, model=f"ich9-uhci{number + 1}")
        companion.add("master", startport=number * 2)
        pci.add_address(companion, 0, 0x1D, number, multifunction=number == 0)
