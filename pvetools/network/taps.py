"""Names of the taps of virtual machines. libvirt makes them in the bridge, and they go when QEMU does."""

from __future__ import annotations

from pvetools.system import paths

MAX_NAME = 15  # bytes of an interface name in Linux


def tap_prefix(vmid: int) -> str:
    """Start of the names of a guest's taps; short enough for any guest and card.

    ``tap100`` as in Proxmox VE, below another root ``t`` and a word for root and guest.
    """
    tag = paths.root_tag()
    if not tag:
        return f"tap{vmid}"
    readable = f"t{tag[:4]}{vmid}"
    if len(tap_name(readable, 31)) <= MAX_NAME:
        return readable
    import hashlib

    return "t" + hashlib.sha256(f"{tag}/{vmid}".encode()).hexdigest()[:10]


def tap_name(prefix: str, index: int) -> str:
    """Name of the tap of card ``net<index>``."""
    return f"{prefix}i{index}"
