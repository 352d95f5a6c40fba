"""How containers do: data of lists and of the status, from files of the kernel, without loading LXC."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvetools.config import guest as config
from pvetools.guest.lxc import groups, running
from pvetools.guest.lxc.host import CGROUPS, cgroup_version, group_name
from pvetools.network import bridges, veth
from pvetools.options.lxc import Rootfs
from pvetools.system import files, paths
from pvetools.system.task import process_start
from pvetools.system.units import MIB

DEFAULT_MEMORY = DEFAULT_SWAP = 512


def listed() -> list[dict[str, Any]]:
    """All containers of this node with their state and use."""
    alive = running.running()
    rows = []
    for vmid, kind in config.all_guests().items():
        if kind == "lxc":
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                rows.append(_row(vmid, config.quick(paths.guest_config("lxc", vmid)), running=vmid in alive))
    return rows


def current(vmid: int) -> dict[str, Any]:
    """State and use of one container.

    Raises:
        NotFound: no such container.
    """
    section = config.load("lxc", vmid).current
    return _row(vmid, section, running=running.is_running(vmid)) | {"ha": {"managed": 0}}


def _row(vmid: int, section: Mapping[str, str], *, running: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "vmid": vmid,
        "status": "running" if running else "stopped",
        "name": section.get("hostname", f"CT{vmid}"),
        "type": "lxc",
        "cpus": _cpus(section),
        "maxmem": _number(section, "memory", DEFAULT_MEMORY) * MIB,
        "maxswap": _number(section, "swap", DEFAULT_SWAP) * MIB,
        "maxdisk": _disk_size(section.get("rootfs", "")),
        "uptime": 0, "mem": 0, "swap": 0, "cpu": 0, "disk": 0, "diskread": 0, "diskwrite": 0, "netin": 0, "netout": 0,
    }  # fmt: skip
    row |= {key: section[key] for key in ("lock", "tags") if section.get(key)}
    if config.is_on(section, "template"):
        row["template"] = 1
    return row | _use(vmid, section, row["cpus"]) if running else row


def _number(section: Mapping[str, str], key: str, default: int) -> int:
    text = section.get(key, "")
    return int(text) if text.isascii() and text.isdigit() else default


def _cpus(section: Mapping[str, str]) -> float:
    try:
        limit = float(section.get("cpulimit", "0"))
    except ValueError:
        limit = 0
    found = limit or _number(section, "cores", 0) or os.cpu_count() or 1
    return int(found) if float(found).is_integer() else found


def _disk_size(rootfs: str) -> int:
    try:
        return Rootfs.parse(rootfs).size or 0
    except ValueError:
        return 0


def _use(vmid: int, section: Mapping[str, str], cpus: float) -> dict[str, Any]:
    pid = monitor_pid(vmid)
    up = uptime(pid) if pid else 0
    read, written = groups.disk_bytes(vmid)
    links = [veth.name(vmid, index) for index in range(32) if f"net{index}" in section]
    netin, netout = bridges.counters(links)
    used = {
        "uptime": int(up), "mem": groups.memory_used(vmid), "swap": groups.swap_used(vmid), "diskread": read,
        "diskwrite": written, "netin": netin, "netout": netout,
        "cpu": round(groups.cpu_seconds(vmid) / up / cpus, 6) if up > 0 else 0,
    }  # fmt: skip
    if pid:
        used["pid"] = init = init_pid(pid)
        with contextlib.suppress(OSError):
            space = os.statvfs(f"/proc/{init}/root/")
            used["disk"] = (space.f_blocks - space.f_bfree) * space.f_frsize
            used["maxdisk"] = space.f_blocks * space.f_frsize
    return used


def monitor_pid(vmid: int) -> int:
    """Process id of a running container's monitor; 0 when it cannot be told."""
    bases = [CGROUPS] if cgroup_version() == 2 else [CGROUPS / "pids", CGROUPS / "memory", CGROUPS / "systemd"]
    for base in bases:
        text = files.read_text(base / "lxc.monitor" / group_name(vmid) / "cgroup.procs")
        if text:
            return int(text.split()[0])
    return 0


def init_pid(monitor: int) -> int:
    """Process id of the container's first process: the monitor's only child; 0 when it cannot be told."""
    text = files.read_text(Path(f"/proc/{monitor}/task/{monitor}/children")) or ""
    return int(text.split()[0]) if text.split() else 0


def uptime(pid: int) -> float:
    """Seconds since a process began."""
    with open("/proc/uptime") as file:  # noqa: PTH123 - once for each container of a list
        now = float(file.read().split()[0])
    return max(now - process_start(pid) / os.sysconf("SC_CLK_TCK"), 0)
