"""State of virtual machines for lists and ``qm status``: from files and ``/proc``; libvirt only on request."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvetools.config import guest as config
from pvetools.guest.qemu import running, texts
from pvetools.network import bridges
from pvetools.network.taps import tap_name, tap_prefix
from pvetools.system import paths
from pvetools.system.errors import PveError


def listing(*, full: bool = False) -> list[dict[str, Any]]:
    """One row a virtual machine of this node, in the order of the ids; ``full`` asks libvirt about running ones."""
    pids = running.running_pids()
    rows: list[dict[str, Any]] = []
    folder = str(paths.guest_dir("qemu"))
    for vmid in sorted(_ids(folder)):
        try:
            section = config.quick(f"{folder}/{vmid}.conf")
        except FileNotFoundError:  # destroyed meanwhile
            continue
        pid = pids.get(vmid, 0)
        row = _row(vmid, section, pid)
        rows.append({**row, **_measured(vmid)} if full and pid else row)
    return rows


def _ids(folder: str) -> list[int]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name[:-5] for entry in entries if entry.name.endswith(".conf")]
    except OSError:
        return []
    return [int(name) for name in names if name.isdecimal() and 3 <= len(name) <= 9]


def current(vmid: int) -> dict[str, Any]:
    """Everything about one virtual machine.

    Raises:
        NotFound: no such guest.
    """
    section = config.load("qemu", vmid).current
    pid = running.running_pid(vmid)
    row: dict[str, Any] = {**_row(vmid, section, pid), "ha": {"managed": 0}}
    if _says_yes(section.get("agent", "")):
        row["agent"] = 1
    if not pid:
        return {**row, "qmpstatus": "stopped"}
    return {**row, **_measured(vmid), **_machine(vmid)}


def _says_yes(text: str) -> bool:
    return text.split(",")[0].removeprefix("enabled=") in ("1", "on", "yes", "true")


def _row(vmid: int, section: Mapping[str, str], pid: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "vmid": vmid,
        "name": section.get("name") or f"VM {vmid}",
        "status": "running" if pid else "stopped",
        "cpus": texts.processors(section),
        "maxmem": texts.memory(section),
        "maxdisk": texts.boot_disk_size(section),
        "disk": 0, "diskread": 0, "diskwrite": 0, "netin": 0, "netout": 0, "cpu": 0, "mem": 0, "uptime": 0,
    }  # fmt: skip
    for key in ("lock", "tags"):
        if key in section:
            row[key] = section[key]
    if config.is_on(section, "template"):
        row["template"] = 1
    if any(key.startswith("serial") and value == "socket" for key, value in section.items()):
        row["serial"] = 1
    return {**row, **_process(vmid, section, pid)} if pid else row


def _process(vmid: int, section: Mapping[str, str], pid: int) -> dict[str, Any]:
    """What ``/proc`` and the taps tell about a running guest."""
    prefix = tap_prefix(vmid)
    cards = [key[3:] for key in section if key.startswith("net") and key[3:].isdecimal()]
    received, sent = bridges.counters(tap_name(prefix, int(index)) for index in cards)
    memory = _resident(pid)
    return {"pid": pid, "uptime": _uptime(pid), "mem": memory, "memhost": memory, "netin": received, "netout": sent}


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _uptime(pid: int) -> int:
    """Seconds since a process started."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME) - started))


_QMP_STATES = {
    1: "running",
    2: "running",
    3: "paused",
    4: "shutdown",
    5: "shutdown",
    6: "guest-panicked",
    7: "suspended",
}


def _measured(vmid: int) -> dict[str, Any]:
    """Libvirt's figures; nothing when it cannot be reached or the guest has just stopped."""
    from pvetools.guest.qemu import hypervisor

    try:
        figures = hypervisor.statistics(vmid)
    except PveError:
        return {}
    now = (figures.get("state.state", 0), figures.get("state.reason", 0))
    row: dict[str, Any] = {
        "qmpstatus": "io-error" if now == hypervisor.IO_ERROR else _QMP_STATES.get(now[0], "unknown"),
        "diskread": sum(value for key, value in figures.items() if key.endswith(".rd.bytes")),
        "diskwrite": sum(value for key, value in figures.items() if key.endswith(".wr.bytes")),
    }
    total, usable = figures.get("balloon.available", 0), figures.get("balloon.usable", 0)
    if total and usable:
        row["mem"] = (total - usable) * 1024
    if "balloon.current" in figures:
        row["balloon"] = figures["balloon.current"] * 1024
    return row


def _machine(vmid: int) -> dict[str, Any]:
    """What QEMU tells about itself."""
    from pvetools.guest.qemu import hypervisor

    try:
        version = hypervisor.qmp(vmid, "query-version")["qemu"]
        name = hypervisor.qmp(vmid, "qom-get", path="/machine", property="type")
    except PveError:
        return {}
    return {
        "running-machine": str(name).removesuffix("-machine"),
        "running-qemu": f"{version['major']}.{version['minor']}.{version['micro']}",
    }
