"""Control groups of a sandbox: one group in every hierarchy, made the root by a cgroup namespace.

All three layouts are served: cgroup v1, v1 with a v2 hierarchy beside it, and v2 alone.  Everything
that runs in the sandbox (and every container) lives below these groups, so that removing them
afterwards leaves nothing on the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

WANTED = ("cpuset", "cpu", "io", "memory", "pids")
# LXC leaves a process 1 in a group of this name out of the paths that it makes for containers.
INIT_GROUP = "init.scope"
_LONG = 3600.0  # seconds


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy; `names` are its controllers, empty for v2."""

    mountpoint: Path
    root: str
    names: frozenset[str]
    options: str

    @property
    def unified(self) -> bool:
        return not self.options


def hierarchies() -> list[Hierarchy]:
    """The hierarchies that this mount namespace sees below /sys/fs/cgroup, from mountinfo."""
    found: dict[Path, Hierarchy] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, superoptions = after.split(" ", 2)
        root, mountpoint = before.split()[3:5]
        if kind not in ("cgroup", "cgroup2") or not mountpoint.startswith("/sys/fs/cgroup"):
            continue
        words = [w for w in superoptions.split(",") if w not in ("rw", "ro", "xattr", "clone_children")]
        names = frozenset(words) if kind == "cgroup" else frozenset()
        options = ",".join(w for w in words if "=" not in w or w.startswith("name="))
        if kind == "cgroup" and all(w.startswith("name=") for w in words):
            options = f"none,{options}"
        where = Path(mountpoint)
        found[where] = Hierarchy(where, root, names, options if kind == "cgroup" else "")
    return list(found.values())


def _own_paths() -> dict[str, str]:
    """controller (or "" for v2) -> path of this process's group, as in /proc/self/cgroup."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    return paths


def _own_group(hierarchy: Hierarchy, paths: dict[str, str]) -> Path:
    keys = hierarchy.names or {""}
    path = next((paths[key] for key in keys if key in paths), "/")
    if path.startswith("/.."):
        return hierarchy.mountpoint
    relative = path.removeprefix(hierarchy.root.rstrip("/")).lstrip("/")
    group = hierarchy.mountpoint / relative
    return group if group.is_dir() else hierarchy.mountpoint


def _best_v2_parent(own: Path, mountpoint: Path) -> Path:
    """The ancestor of our group that hands down most controllers; the deepest one of equals."""
    best, best_count = mountpoint, -1
    for group in [own, *own.parents]:
        handed = set((group / "cgroup.subtree_control").read_text().split())
        count = len(handed.intersection(WANTED))
        if count > best_count:
            best, best_count = group, count
        if group == mountpoint:
            break
    return best if best_count > 0 else mountpoint


@dataclass
class Groups:
    """What was made on the host for one sandbox, and must go again."""

    paths: list[Path]
    switched_on: list[tuple[Path, str]]


def create(name: str) -> Groups:
    """Make the group `name` in every hierarchy that can be written; outside of the sandbox."""
    paths = _own_paths()
    made = Groups([], [])
    for hierarchy in hierarchies():
        parent = _own_group(hierarchy, paths)
        if hierarchy.unified:
            parent = _best_v2_parent(parent, hierarchy.mountpoint)
            made.switched_on += _hand_down(parent)
        group = parent / name
        with contextlib.suppress(OSError):
            group.mkdir()
            for entry in ("cpuset.cpus", "cpuset.mems"):
                if not hierarchy.unified and (group / entry).exists():
                    (group / entry).write_text((parent / entry).read_text())
            made.paths.append(group)
    return made


def _hand_down(group: Path) -> list[tuple[Path, str]]:
    """Enable every wanted controller for the children of a v2 group; returns what that changed."""
    changed = []
    there = set((group / "cgroup.controllers").read_text().split())
    already = set((group / "cgroup.subtree_control").read_text().split())
    for controller in WANTED:
        if controller in there - already:
            with contextlib.suppress(OSError):
                (group / "cgroup.subtree_control").write_text(f"+{controller}")
                changed.append((group / "cgroup.subtree_control", controller))
    return changed


def enter(groups: list[Path]) -> None:
    """Move the calling process into the groups and make them the roots of all that it sees."""
    for group in groups:
        (group / "cgroup.procs").write_text("0")
    clone_newcgroup = 0x02000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(clone_newcgroup):
        raise OSError(ctypes.get_errno(), "no cgroup namespace")


def remove(groups: Groups, timeout: float = 10.0) -> list[Path]:
    """Remove the groups with all below them; returns those that could not be removed."""
    deadline = time.monotonic() + timeout
    left = [group for group in groups.paths if group.is_dir()]
    while left and time.monotonic() < deadline:
        for group in left:
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
        left = [group for group in left if group.is_dir()]
        if left:  # a killed process still counts until the kernel has buried it
            time.sleep(0.05)
    for control, controller in groups.switched_on:
        with contextlib.suppress(OSError):
            control.write_text(f"-{controller}")
    return left


def name(prefix: str) -> str:
    """Name for the groups of a sandbox of this process; other pid namespaces have the same ids."""
    return f"{prefix}{_pid_namespace()}-{os.getpid()}"


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def stale(prefix: str) -> Groups:
    """Groups of a sandbox that was killed: its process is gone, or nobody has lived in them for long."""
    found = Groups([], [])
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)-(\d+)", re.ASCII)
    for hierarchy in hierarchies():
        for directory, names, _ in os.walk(hierarchy.mountpoint):
            for child in names:
                match = pattern.fullmatch(child)
                if match and _is_stale(Path(directory) / child, int(match[1]), match[2]):
                    found.paths.append(Path(directory) / child)
    return found


def _is_stale(group: Path, namespace: int, pid: str) -> bool:
    if namespace == _pid_namespace():
        return not Path("/proc", pid).exists()
    for directory, _, _ in os.walk(group):
        with contextlib.suppress(OSError):
            if Path(directory, "cgroup.procs").read_text().strip():
                return False
    with contextlib.suppress(OSError):
        return time.time() - group.stat().st_ctime > _LONG
    return False


def mount_inside(layout: list[Hierarchy]) -> None:
    """Mount the hierarchies afresh on the sandbox's own /sys: only its own groups can be seen."""
    base = Path("/sys/fs/cgroup")
    if not base.is_dir() or not layout:
        return
    if all(hierarchy.mountpoint != base for hierarchy in layout):
        _mount("tmpfs", "tmpfs", base, "mode=755")
    for hierarchy in layout:
        hierarchy.mountpoint.mkdir(parents=True, exist_ok=True)
        if hierarchy.unified:
            _mount("cgroup2", "cgroup2", hierarchy.mountpoint)
            _become_leaf(hierarchy.mountpoint)
            continue
        _mount("cgroup", "cgroup", hierarchy.mountpoint, hierarchy.options)
        for controller in hierarchy.names:  # systemd's names for controllers mounted together
            alias = base / controller
            if "=" not in controller and not alias.exists():
                alias.symlink_to(hierarchy.mountpoint.name)


def _become_leaf(mountpoint: Path) -> None:
    """A v2 group with processes hands down no controllers: move ourselves into a child first."""
    leaf = mountpoint / INIT_GROUP
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(str(os.getpid()))
    _hand_down(mountpoint)


def _mount(kind: str, source: str, target: Path, options: str = "") -> None:
    extra = ["-o", options] if options else []
    subprocess.run(["mount", "-t", kind, *extra, source, str(target)], check=True)
