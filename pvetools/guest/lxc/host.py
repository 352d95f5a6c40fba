"""What the host's kernel and LXC offer, as far as a container's configuration depends on it."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pvetools.system import files, paths, run

CGROUPS = Path("/sys/fs/cgroup")
LXC_CONFIG = Path("/usr/share/lxc/config")
LXC_ARCH = {"amd64": "x86_64", "i386": "i686", "arm64": "aarch64", "armhf": "armv7l", "riscv64": "riscv64",
            "riscv32": "riscv32"}  # fmt: skip
# machine of the kernel -> architectures whose programs it runs
RUNS = {"x86_64": ("amd64", "i386"), "aarch64": ("arm64", "armhf"), "riscv64": ("riscv64", "riscv32"),
        "i686": ("i386",), "armv7l": ("armhf",)}  # fmt: skip


class Host(NamedTuple):
    """Facts about the host.

    Args:
        cgroup: 1 or 2.
        controllers: the controllers that can be used.
        swap_limit: whether swap can be limited.
        apparmor: whether AppArmor is switched on and its rules can be loaded.
        cpus: CPUs that containers may use.
        archs: architectures whose programs run here.
        lxc_dir: LXC's folder.
        log_dir: folder of LXC's logs.
        group: name of the control group folder below ``lxc/`` and ``lxc.monitor/`` without the id.
    """

    cgroup: int
    controllers: frozenset[str]
    swap_limit: bool
    apparmor: bool
    cpus: tuple[int, ...]
    archs: tuple[str, ...]
    lxc_dir: Path
    log_dir: Path
    group: str


def probe() -> Host:
    """Look at this host."""
    version = cgroup_version()
    return Host(
        version,
        _controllers(version),
        _swap_limit(version),
        apparmor_in_kernel() and run.find("apparmor_parser") is not None,
        tuple(sorted(os.sched_getaffinity(0))) if version == 1 else _effective_cpus(),
        RUNS.get(os.uname().machine, ()),
        paths.lxc_dir(),
        log_folder(),
        f"{tag}-" if (tag := paths.root_tag()) else "",
    )


def log_folder() -> Path:
    """Where LXC writes a log at every start."""
    return paths.run_dir() / "lxc"


@cache
def cgroup_version() -> int:
    """2 when the unified hierarchy stands alone, else 1."""
    return 2 if (CGROUPS / "cgroup.controllers").exists() else 1


def _controllers(version: int) -> frozenset[str]:
    if version == 2:
        return frozenset((CGROUPS / "cgroup.controllers").read_text().split())
    return frozenset(path.name for path in CGROUPS.iterdir()) if CGROUPS.is_dir() else frozenset()


def _swap_limit(version: int) -> bool:
    if version == 1:
        return (CGROUPS / "memory/memory.memsw.limit_in_bytes").exists()
    # the root group has no limits; any child of it with the controller shows whether swap is accounted
    with os.scandir(CGROUPS) as entries:
        groups = [Path(entry.path) for entry in entries if entry.is_dir()]
    return any((group / "memory.swap.max").exists() for group in groups) or not any(
        (group / "memory.max").exists() for group in groups
    )


def apparmor_in_kernel() -> bool:
    """Whether the kernel has AppArmor switched on."""
    return (files.read_text(Path("/sys/module/apparmor/parameters/enabled")) or "").strip() == "Y"


def _effective_cpus() -> tuple[int, ...]:
    try:
        return parse_cpus((CGROUPS / "cpuset.cpus.effective").read_text())
    except OSError:
        return tuple(sorted(os.sched_getaffinity(0)))


def parse_cpus(text: str) -> tuple[int, ...]:
    """``0-2,5`` -> 0 1 2 5."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def group_name(vmid: int) -> str:
    """Name of a container's control group below ``lxc/``; it differs between roots."""
    tag = paths.root_tag()
    return f"{tag}-{vmid}" if tag else str(vmid)


def group_path(vmid: int, controller: str) -> Path:
    """Folder of a container's control group for one controller, where its limits are set."""
    base = CGROUPS if cgroup_version() == 2 else CGROUPS / controller
    return base / "lxc" / group_name(vmid)
