"""Control groups of running containers: limits, processors, use."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pvetools.guest.lxc import config as lxc_config
from pvetools.guest.lxc import running
from pvetools.guest.lxc.host import CGROUPS, Host, cgroup_version, group_name, group_path, parse_cpus
from pvetools.options.lxc import LxcOptions
from pvetools.system import files
from pvetools.system.errors import PveError
from pvetools.system.units import MIB


def choose_cpus(vmid: int, cores: int | None, host: Host) -> tuple[int, ...]:
    """The CPUs with the fewest containers on them; empty when the container may use all."""
    if cores is None or cores >= len(host.cpus):
        return ()
    load = Counter(cpu for other in running.running() - {vmid} for cpu in bound_cpus(other))
    return tuple(sorted(sorted(host.cpus, key=lambda cpu: (load[cpu], cpu))[:cores]))


def bound_cpus(vmid: int) -> tuple[int, ...]:
    """CPUs on which a running container is held."""
    text = files.read_text(group_path(vmid, "cpuset") / "cpuset.cpus")
    return parse_cpus(text) if text else ()


def thaw(vmid: int) -> None:
    """Let frozen processes go on; in version 1 of control groups even a killed process needs that to end."""
    file, word = ("cgroup.freeze", "0") if cgroup_version() == 2 else ("freezer.state", "THAWED")
    for folder, _, _ in os.walk(group_path(vmid, "freezer"), topdown=False):
        with contextlib.suppress(OSError):
            (Path(folder) / file).write_text(word)


def remove_leftovers(vmid: int, timeout: float = 10.0) -> None:
    """Remove the groups of a container whose monitor was killed, with what may still live there.

    LXC refuses to reuse them, and a frozen process would keep the volumes mounted.

    Raises:
        PveError: a process does not end within ``timeout`` seconds.
    """
    bases = [CGROUPS] if cgroup_version() == 2 else list(CGROUPS.iterdir())
    left = [base / kind / group_name(vmid) for base in bases for kind in ("lxc", "lxc.monitor")]
    deadline = time.monotonic() + timeout
    while left := [group for group in left if group.is_dir() and not _removed(group)]:
        if time.monotonic() > deadline:
            raise PveError(f"processes of the last run of CT {vmid} do not end; their control group is {left[0]}")
        thaw(vmid)
        _kill(left)
        time.sleep(0.01)


def _removed(group: Path) -> bool:
    for folder, _, _ in os.walk(group, topdown=False):
        try:
            Path(folder).rmdir()
        except OSError:
            return False
    return True


def _kill(groups: Iterable[Path]) -> None:
    for group in groups:
        for folder, _, _ in os.walk(group):
            for pid in (files.read_text(Path(folder) / "cgroup.procs") or "").split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)


def set_limits(vmid: int, options: LxcOptions, keys: Iterable[str], host: Host) -> None:
    """Write limits of a running container that depend on the given options.

    Raises:
        PveError: the kernel refused a value.
    """
    wanted = lxc_config.limits(options, (), host)
    chosen = {"memory": ("memory.max", ), "swap": ("memory.swap.max",), "cpulimit": ("cpu.max", "cpu.cfs_quota_us"),
              "cpuunits": ("cpu.weight", "cpu.shares")}  # fmt: skip
    for key in keys:
        if host.cgroup == 1 and key in ("memory", "swap"):
            _set_memory_v1(vmid, options, key, host)
            continue
        for (controller, file), value in wanted.items():
            if file in chosen[key] and controller in host.controllers:
                _write(group_path(vmid, controller) / file, value, key)


def _set_memory_v1(vmid: int, options: LxcOptions, key: str, host: Host) -> None:
    """The limit of memory and swap together may never be below that of memory: raise it first, lower it last."""
    group = group_path(vmid, "memory")
    now = int((group / "memory.limit_in_bytes").read_text())
    if not host.swap_limit:
        if key == "memory":
            _write(group / "memory.limit_in_bytes", str(options.memory * MIB), key)
        return
    both = int((group / "memory.memsw.limit_in_bytes").read_text())
    memory = options.memory * MIB if key == "memory" else now
    swap = options.swap * MIB if key == "swap" else both - now
    steps = [("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory + swap)]
    for file, value in reversed(steps) if memory + swap > both else steps:
        _write(group / file, str(value), key)


def _write(path: Path, value: str, key: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        raise PveError(f"can't set '{key}' of the running container to {value}: {error.strerror}") from None


def set_cpus(vmid: int, cores: int | None, host: Host) -> None:
    """Hold a running container on another number of CPUs.

    Raises:
        PveError: the kernel refused.
    """
    cpus = choose_cpus(vmid, cores, host) or host.cpus
    text = ",".join(map(str, cpus))
    group = group_path(vmid, "cpuset")
    # v1 wants every level to be a subset of the one above: widen from the top, narrow from below
    inner = [group / "ns"] if host.cgroup == 1 and (group / "ns").is_dir() else []
    narrower = set(cpus) <= set(bound_cpus(vmid))
    for folder in [*inner, group] if narrower else [group, *inner]:
        _write(folder / "cpuset.cpus", text, "cores")


def _number(path: Path) -> int:
    try:
        text = path.read_text().split()
    except OSError:
        return 0
    return int(text[0]) if text and text[0].isdigit() else 0


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in (files.read_text(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def memory_used(vmid: int) -> int:
    """Bytes in use, without what the kernel would drop at once (page cache not used lately)."""
    group = group_path(vmid, "memory")
    if cgroup_version() == 2:
        used, cache = _number(group / "memory.current"), _table(group / "memory.stat").get("inactive_file", 0)
    else:
        used = _number(group / "memory.usage_in_bytes")
        cache = _table(group / "memory.stat").get("total_inactive_file", 0)
    return max(used - cache, 0)


def swap_used(vmid: int) -> int:
    """Bytes swapped out."""
    group = group_path(vmid, "memory")
    if cgroup_version() == 2:
        return _number(group / "memory.swap.current")
    return _table(group / "memory.stat").get("total_swap", 0)


def cpu_seconds(vmid: int) -> float:
    """Processor time used since the start."""
    if cgroup_version() == 2:
        return _table(group_path(vmid, "cpu") / "cpu.stat").get("usage_usec", 0) / 1e6
    return _number(group_path(vmid, "cpuacct") / "cpuacct.usage") / 1e9


def disk_bytes(vmid: int) -> tuple[int, int]:
    """Bytes read and written by the container."""
    read = written = 0
    if cgroup_version() == 2:
        for line in (files.read_text(group_path(vmid, "io") / "io.stat") or "").splitlines():
            pairs = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
            read, written = read + int(pairs.get("rbytes", 0)), written + int(pairs.get("wbytes", 0))
        return read, written
    path = group_path(vmid, "blkio") / "blkio.throttle.io_service_bytes_recursive"
    for line in (files.read_text(path) or "").splitlines():
        words = line.split()
        if len(words) == 3 and words[2].isdigit():
            read += int(words[2]) if words[1] == "Read" else 0
            written += int(words[2]) if words[1] == "Write" else 0
    return read, written
