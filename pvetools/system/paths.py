"""Where state lives: every path lies below one root (``PVETOOLS_ROOT``, default ``/``)."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal
from zlib import crc32

from pvetools.system.errors import Refused

Kind = Literal["qemu", "lxc"]
CONFIG_FOLDER: dict[str, str] = {"qemu": "qemu-server", "lxc": "lxc"}


def root() -> Path:
    """The folder below which all state lies."""
    return Path(os.environ.get("PVETOOLS_ROOT") or "/").absolute()


@cache
def node() -> str:
    """This host's name without its domain."""
    return os.uname().nodename.split(".")[0]


def root_tag() -> str:
    """Word that keeps the names of two roots apart on one host (domains, links); empty for ``/``."""
    place = os.path.realpath(root())
    return "" if place == "/" else f"{crc32(place.encode()):08x}"


def etc_pve() -> Path:
    return root() / "etc/pve"


def node_dir(name: str = "") -> Path:
    """``etc/pve/nodes/NODE``."""
    return etc_pve() / "nodes" / (name or node())


def guest_dir(kind: str, name: str = "") -> Path:
    """Folder of the guests' configuration files of one kind on a node."""
    return node_dir(name) / CONFIG_FOLDER[kind]


def guest_config(kind: str, vmid: int, name: str = "") -> Path:
    """Configuration file of a guest; it need not exist."""
    return guest_dir(kind, name) / f"{vmid}.conf"


def firewall_config(vmid: int) -> Path:
    return etc_pve() / "firewall" / f"{vmid}.fw"


def storage_config() -> Path:
    return etc_pve() / "storage.cfg"


def vzdump_config() -> Path:
    return root() / "etc/vzdump.conf"


def run_dir() -> Path:
    """Sockets, pid files and locks; lost at reboot."""
    return root() / "run/pvetools"


def lock_dir() -> Path:
    return root() / "run/lock/pvetools"


def log_dir() -> Path:
    return root() / "var/log/pve"


def vzdump_log_dir() -> Path:
    return root() / "var/log/vzdump"


def local_storage() -> Path:
    """Path of the storage ``local`` that exists without being configured."""
    return root() / "var/lib/vz"


def mount_dir() -> Path:
    """Where storages of servers are mounted that name no other place."""
    return root() / "mnt/pve"


def lxc_dir() -> Path:
    """LXC's own folder: one sub-folder with the derived ``config`` a container."""
    return root() / "var/lib/lxc"


def state_dir() -> Path:
    """Small state files of ours that outlive a reboot."""
    return root() / "var/lib/pvetools"


def temp_dir() -> Path:
    return root() / "var/tmp"


def is_real_proxmox() -> bool:
    """Whether a Proxmox VE runs on this host: its cluster file system owns ``/etc/pve``."""
    return Path("/var/lib/dpkg/info/pve-cluster.list").exists() or Path("/etc/pve/.version").exists()


def ensure_tree() -> None:
    """Make the folders and links of ``etc/pve`` that every writing command needs.

    Raises:
        Refused: a real Proxmox VE owns this host's configuration.
    """
    if is_real_proxmox():
        raise Refused("this host runs Proxmox VE (pve-cluster); pvetools does not change anything here")
    for kind in CONFIG_FOLDER:
        guest_dir(kind).mkdir(parents=True, exist_ok=True)
    for folder in (etc_pve() / "priv", etc_pve() / "firewall", lock_dir(), run_dir(), log_dir() / "tasks"):
        folder.mkdir(parents=True, exist_ok=True)
    (etc_pve() / "priv").chmod(0o700)
    for link, target in (("local", f"nodes/{node()}"), ("qemu-server", "local/qemu-server"), ("lxc", "local/lxc")):
        with suppress(FileExistsError):  # made before, maybe by another command just now
            (etc_pve() / link).symlink_to(target)
