"""Where devices sit on the PCI buses: the places that Proxmox VE uses.

The guest sees them (``ens18`` is the card in slot 18), so a guest that moves between the two must find its devices
where they were.
"""

from __future__ import annotations

from pvetools.guest.qemu.element import Element

# device -> (bridge, slot). Bridges have the numbers of Proxmox VE: 0 is the main conventional bus.
SLOTS: dict[str, tuple[int, int]] = {
    "vga": (0, 0x02),
    "balloon0": (0, 0x03),
    "watchdog": (0, 0x04),
    "scsihw0": (0, 0x05),
    "scsihw1": (0, 0x06),
    "ahci0": (0, 0x07),
    "qga0": (0, 0x08),
    "rng0": (1, 0x1D),
    **{f"virtio{n}": (0, 0x0A + n) for n in range(6)},
    **{f"virtio{n}": (2, n - 5) for n in range(6, 16)},
    **{f"net{n}": (0, 0x12 + n) for n in range(6)},
    **{f"net{n}": (1, n - 5) for n in range(6, 32)},
    **{f"virtioscsi{n}": (3, n + 1) for n in range(31)},
    # no slots of their own in Proxmox VE: its controllers serve at most 14 disks there
    **{f"scsihw{n}": (2, 0x0B + n) for n in range(2, 5)},
}
SINGLE_BRIDGE = 3  # made only for controllers with one disk each
PC_BUSES = {0: 0, 1: 1, 2: 2, 3: 3}  # bridge -> libvirt's bus number
Q35_BUSES = {0: 6, 1: 7, 2: 8, 3: 9}
Q35_ROOT_PORTS = (1, 2, 3, 4)
Q35_DMI_BRIDGE = 5


def add_address(parent: Element, bus: int, slot: int, function: int = 0, *, multifunction: bool = False) -> None:
    """Fix the PCI address of a device."""
    parent.add(
        "address",
        type="pci",
        domain="0x0000",
        bus=f"0x{bus:02x}",
        slot=f"0x{slot:02x}",
        function=f"0x{function:x}",
        multifunction="on" if multifunction else None,
    )


def place(parent: Element, device: str, *, q35: bool) -> None:
    """Give a device the PCI address that belongs to its name."""
    if device == "vga" and q35:
        add_address(parent, 0, 1)
        return
    bridge, slot = SLOTS[device]
    add_address(parent, (Q35_BUSES if q35 else PC_BUSES)[bridge], slot)


def add_bridges(devices: Element, *, q35: bool, single: bool) -> None:
    """The PCI controllers of a machine; ``single``: with the bridge for one SCSI controller a disk."""
    if q35:
        _add_q35(devices)
    else:
        devices.add("controller", type="pci", index=0, model="pci-root")
        for bridge, slot in ((1, 0x1E), (2, 0x1F)):
            _add_bridge(devices, PC_BUSES[bridge], 0, slot)
    if single:
        buses = Q35_BUSES if q35 else PC_BUSES
        _add_bridge(devices, buses[SINGLE_BRIDGE], buses[0], 0x05)


def _add_bridge(devices: Element, index: int, bus: int, slot: int) -> None:
    add_address(devices.add("controller", type="pci", index=index, model="pci-bridge"), bus, slot)


def _add_q35(devices: Element) -> None:
    devices.add("controller", type="pci", index=0, model="pcie-root")
    for index in Q35_ROOT_PORTS:
        port = devices.add("controller", type="pci", index=index, model="pcie-root-port")
        add_address(port, 0, 0x1C, index - 1, multifunction=index == 1)
    add_address(devices.add("controller", type="pci", index=Q35_DMI_BRIDGE, model="dmi-to-pci-bridge"), 0, 0x1E)
    for bridge in (0, 1, 2):
        _add_bridge(devices, Q35_BUSES[bridge], Q35_DMI_BRIDGE, bridge + 1)
