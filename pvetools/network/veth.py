"""Links of containers: names of the host's ends, pulling and plugging their cables.

LXC makes the links itself. What is left is done by the kernel's old and small calls: 200 ms faster than loading a
netlink library.
"""

from __future__ import annotations

import fcntl
import hashlib
import socket
import struct
from pathlib import Path

from pvetools.system import paths
from pvetools.system.errors import PveError

MAX_NAME = 15  # bytes of an interface name in Linux
_LINKS = Path("/sys/class/net")
_SIOCGIFINDEX, _SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCBRADDIF, _SIOCBRDELIF = 0x8933, 0x8913, 0x8914, 0x89A2, 0x89A3
_IFF_UP = 1


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
    if _bridge_of(link) != bridge:
        _call(_SIOCBRADDIF, bridge, struct.pack("i", _index(link)))
    _switch(link, on=True)


def cut(link: str) -> None:
    """Switch a link off and take it out of its bridge: the container sees that the carrier is gone.

    Raises:
        PveError: with the kernel's reason.
    """
    _switch(link, on=False)
    bridge = _bridge_of(link)
    if bridge:
        _call(_SIOCBRDELIF, bridge, struct.pack("i", _index(link)))


def _switch(link: str, *, on: bool) -> None:
    (flags,) = struct.unpack_from("H", _call(_SIOCGIFFLAGS, link), 16)
    wanted = flags | _IFF_UP if on else flags & ~_IFF_UP
    if wanted != flags:
        _call(_SIOCSIFFLAGS, link, struct.pack("H", wanted))


def _call(request: int, link: str, payload: bytes = b"") -> bytes:
    data = struct.pack("16s24s", link.encode()[:MAX_NAME], payload)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return fcntl.ioctl(sock, request, data)
        except OSError as error:
            raise PveError(f"network interface '{link}': {error.strerror}") from None


def _index(link: str) -> int:
    (index,) = struct.unpack_from("i", _call(_SIOCGIFINDEX, link), 16)
    return int(index)


def _bridge_of(link: str) -> str | None:
    try:
        return (_LINKS / link / "brport/bridge").resolve(strict=True).name
    except OSError:
        return None
