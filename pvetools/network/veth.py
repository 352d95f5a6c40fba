"""Links of containers: names of the host's ends, pulling and plugging their cables.

LXC makes the links itself. pyroute2 takes 200 ms to load, so only the rare changes here pay for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pvetools.system import paths
from pvetools.system.errors import PveError

MAX_NAME = 15  # bytes of an interface name in Linux


def name(vmid: int, index: int) -> str:
    """Host's end of interface ``net<index>``: ``veth101i0`` as in Proxmox VE, another one below another root."""
    tag = paths.root_tag()
    readable = f"v{tag[:4]}{vmid}i{index}" if tag else f"veth{vmid}i{index}"
    if len(readable) <= MAX_NAME:
        return readable
    return f"v{hashlib.sha256(f'{tag}/{vmid}'.encode()).hexdigest()[:10]}i{index}"


def plug(link: str, bridge: str) -> None:
    """Join a link to a bridge and switch it on.

    Raises:
        PveError: with the kernel's reason.
    """
    with _netlink(link) as kernel:
        kernel.link("set", index=_index(kernel, link), master=_index(kernel, bridge), state="up")


def cut(link: str) -> None:
    """Switch a link off and take it out of its bridge: the container sees that the carrier is gone.

    Raises:
        PveError: with the kernel's reason.
    """
    with _netlink(link) as kernel:
        kernel.link("set", index=_index(kernel, link), master=0, state="down")


@contextmanager
def _netlink(link: str) -> Iterator[Any]:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as kernel:
            yield kernel
    except NetlinkError as error:
        raise PveError(f"network interface '{link}': {error.args[-1]}") from None


def _index(kernel: Any, link: str) -> int:
    found = kernel.link_lookup(ifname=link)
    if not found:
        raise PveError(f"network interface '{link}' does not exist")
    return int(found[0])
