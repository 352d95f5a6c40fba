"""Figures of the host for the node's methods."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pvetools.system import files, paths

_SAMPLE = 0.1  # seconds over which the processors' load is measured


def summary() -> dict[str, Any]:
    """One row of the list of nodes."""
    import psutil

    memory, disk = psutil.virtual_memory(), _space()
    return {
        "id": f"node/{paths.node()}",
        "node": paths.node(),
        "type": "node",
        "status": "online",
        "level": "",
        "cpu": _load()["cpu"],
        "maxcpu": psutil.cpu_count() or 1,
        "mem": memory.total - memory.available,
        "maxmem": memory.total,
        "disk": disk["used"],
        "maxdisk": disk["total"],
        "uptime": uptime(),
    }


def status() -> dict[str, Any]:
    """The node's state: processors, memory, swap, root file system, load, kernel."""
    import psutil

    memory, swap, kernel = psutil.virtual_memory(), psutil.swap_memory(), os.uname()
    return {
        **_load(),
        "uptime": uptime(),
        "loadavg": [f"{value:.2f}" for value in os.getloadavg()],
        "cpuinfo": _processors(),
        "memory": {
            "total": memory.total,
            "used": memory.total - memory.available,
            "free": memory.free,
            "available": memory.available,
        },
        "swap": {"total": swap.total, "used": swap.used, "free": swap.free},
        "rootfs": _space(),
        "ksm": {"shared": _number("/sys/kernel/mm/ksm/pages_sharing") * os.sysconf("SC_PAGE_SIZE")},
        "boot-info": _boot(),
        "kversion": f"{kernel.sysname} {kernel.release} {kernel.version}",
        "current-kernel": {
            "sysname": kernel.sysname,
            "release": kernel.release,
            "version": kernel.version,
            "machine": kernel.machine,
        },
    }


def uptime() -> int:
    """Seconds since boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def clock() -> dict[str, Any]:
    """Time in UTC and as the clock on the wall shows it, both as seconds since 1970, and the zone's name."""
    now = int(time.time())
    zone = (files.read_text(Path("/etc/timezone")) or "").strip()
    if not zone:
        target = os.path.realpath("/etc/localtime")
        zone = target.partition("/zoneinfo/")[2] or "UTC"
    return {"time": now, "localtime": now + time.localtime(now).tm_gmtoff, "timezone": zone}


def name_servers() -> dict[str, str]:
    """``search`` and up to three name servers ``dns1`` to ``dns3`` of ``/etc/resolv.conf``."""
    found: dict[str, str] = {}
    servers = 0
    for line in (files.read_text(Path("/etc/resolv.conf")) or "").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in ("search", "domain"):
            found["search"] = words[1]
        elif len(words) > 1 and words[0] == "nameserver" and servers < 3:
            servers += 1
            found[f"dns{servers}"] = words[1]
    return found


def _number(path: str) -> int:
    text = (files.read_text(Path(path)) or "").strip()
    return int(text) if text.isdigit() else 0


def _load() -> dict[str, float]:
    """Shares of the processors' time: ``cpu`` at work, ``wait`` for disks, ``idle``."""
    import psutil

    times = psutil.cpu_times_percent(interval=_SAMPLE)
    wait = getattr(times, "iowait", 0.0) / 100
    return {"cpu": max(0.0, 1 - times.idle / 100 - wait), "wait": wait, "idle": times.idle / 100}


def _space() -> dict[str, int]:
    stat = os.statvfs(paths.root())
    unit = stat.f_frsize
    used = (stat.f_blocks - stat.f_bfree) * unit
    return {"total": stat.f_blocks * unit, "used": used, "free": stat.f_bfree * unit, "avail": stat.f_bavail * unit}


def _processors() -> dict[str, Any]:
    import psutil

    values: dict[str, str] = {}
    sockets = set()
    for line in (files.read_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        values.setdefault(key, value)
        if key == "physical id":
            sockets.add(value)
    flags = values.get("flags", "")
    return {
        "model": values.get("model name", ""),
        "mhz": values.get("cpu MHz", ""),
        "flags": flags,
        "hvm": "1" if {"vmx", "svm"} & set(flags.split()) else "0",
        "cpus": psutil.cpu_count() or 1,
        "cores": psutil.cpu_count(logical=False) or 1,
        "sockets": len(sockets) or 1,
        "user_hz": os.sysconf("SC_CLK_TCK"),
    }


def _boot() -> dict[str, Any]:
    if not Path("/sys/firmware/efi").is_dir():
        return {"mode": "legacy-bios"}
    variable = next(Path("/sys/firmware/efi/efivars").glob("SecureBoot-*"), None)
    secure = variable is not None and variable.read_bytes()[-1:] == b"\1"
    return {"mode": "efi", "secureboot": int(secure)}
