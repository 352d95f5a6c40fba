"""Which containers run, read from the kernel's list of sockets: no need to load LXC for it.

Every monitor of LXC listens on an abstract socket ``@LXCPATH/NAME/command`` as long as its container lives; when the
monitor dies, the kernel kills the container and the socket is gone.
"""

from __future__ import annotations

import time
from pathlib import Path

from pvetools.system import paths
from pvetools.system.errors import PveError

SOCKETS = Path("/proc/net/unix")
# a socket address has 108 bytes, of which LXC leaves two unused
MAX_NAME = 106


def running() -> set[int]:
    """Ids of the containers of this root that run (or are about to start or stop)."""
    listed = _names()
    prefix, suffix = f"@{paths.lxc_dir()}/", "/command"
    found = {name[len(prefix) : -len(suffix)] for name in listed if name.startswith(prefix) and name.endswith(suffix)}
    ids = {int(name) for name in found if name.isascii() and name.isdigit()}
    if any(name.startswith("@lxc/") for name in listed):
        ids |= {vmid for vmid in _known() if _socket(vmid) in listed}
    return ids


def is_running(vmid: int) -> bool:
    """Whether a container runs (frozen counts)."""
    return _socket(vmid) in _names()


def _names() -> set[str]:
    text = SOCKETS.read_text("utf-8", "surrogateescape")
    # "address: refs protocol flags type state inode name"; only named sockets have the eighth word
    return {line[at:] for line in text.splitlines() if (at := line.find("@")) >= 0}


def _known() -> list[int]:
    from pvetools.config import guest as config

    return [vmid for vmid, kind in config.all_guests().items() if kind == "lxc"]


def _socket(vmid: int) -> str:
    """Name of the command socket; LXC writes a hash where the path is too long for an address."""
    path = f"{paths.lxc_dir()}/{vmid}"
    if len(f"{path}/command".encode()) < MAX_NAME:
        return f"@{path}/command"
    return f"@lxc/{_fnv64(path.encode()):016x}/command"


def _fnv64(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & (1 << 64) - 1
    return value


def wait_gone(vmid: int, timeout: float = 10.0) -> None:
    """Wait until a container's monitor has ended, and with it the mounts and links that it held.

    Raises:
        PveError: it still runs after ``timeout`` seconds.
    """
    deadline, pause = time.monotonic() + timeout, 0.002
    while is_running(vmid):
        if time.monotonic() > deadline:
            raise PveError(f"CT {vmid} did not end within {timeout:g} seconds")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
