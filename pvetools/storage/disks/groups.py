"""LVM volume groups and thin pools of this node: listed, made of an empty disk, removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pvetools.storage import blockdev, volumegroups
from pvetools.storage.definition import Definition
from pvetools.storage.disks import checks, storages, table, wipe
from pvetools.system import log, run
from pvetools.system.errors import Exists, NotFound, PveError, Refused
from pvetools.system.units import GIB, KIB, MIB

TIMEOUT = 300
SPARE = 128 * MIB  # left free in a new group, for LVM's own needs
LEAST_METADATA, MOST_METADATA = GIB, 16 * GIB
_PHYSICAL = "pv_name,vg_name,pv_size,pv_free"
_POOLS = "vg_name,lv_name,lv_size,data_percent,lv_metadata_size,metadata_percent"


def _report(tool: str, fields: str, *more: str) -> list[dict[str, str]]:
    words = ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, *more]
    return volumegroups.rows(run.run([tool, *words], timeout=TIMEOUT).stdout)


# Looking.


def tree() -> dict[str, Any]:
    """Volume groups, and the devices that they lie on below them."""
    below = _report("pvs", _PHYSICAL)
    found = []
    for group in volumegroups.groups():
        devices = [_physical(row) for row in below if row["vg_name"] == group.name]
        found.append({"name": group.name, "size": group.size, "free": group.free, "leaf": 0, "children": devices})
    return {"leaf": 0, "children": found}


def _physical(row: dict[str, str]) -> dict[str, Any]:
    return {"name": row["pv_name"], "size": int(row["pv_size"]), "free": int(row["pv_free"]), "leaf": 1}


def thin_pools() -> list[dict[str, Any]]:
    """All thin pools, with what is used of them in bytes."""
    return [pool_of(row) for row in _report("lvs", _POOLS, "-S", "segtype=thin-pool")]


def pool_of(row: dict[str, str]) -> dict[str, Any]:
    """A thin pool from a row of a report; shares are in percent there, and empty while it is not active."""
    size, metadata = int(row["lv_size"]), int(row["lv_metadata_size"] or 0)
    return {
        "lv": row["lv_name"],
        "vg": row["vg_name"],
        "lv_size": size,
        "used": _share(size, row["data_percent"]),
        "metadata_size": metadata,
        "metadata_used": _share(metadata, row["metadata_percent"]),
    }


def _share(size: int, percent: str) -> int:
    return int(size * float(percent or 0) / 100)


def _require_new(name: str) -> None:
    if any(group.name == name for group in volumegroups.groups()):
        raise Exists(f"volume group '{name}' exists already")


def _devices(name: str) -> list[str]:
    """Device nodes of a volume group. NotFound."""
    volumegroups.group(name)
    return [row["pv_name"] for row in _report("pvs", _PHYSICAL) if row["vg_name"] == name]


# Making.


def create(name: str, device: str, *, add_storage: bool = False) -> None:
    """Make a volume group on an empty disk or partition.

    Raises:
        NotFound, Refused: the device is not free. Exists: the name is used. Errors of LVM: nothing is left.
    """
    wanted = storages.New(name, "lvm", {"vgname": name, "content": storages.GUESTS}) if add_storage else None
    with checks.locked(), contextlib.ExitStack() as undo:
        _group(name, device, undo)
        if wanted:
            wanted.add()
        undo.pop_all()


def create_thin(name: str, device: str, *, add_storage: bool = False) -> None:
    """Make a thin pool, and a volume group of the same name for it, on an empty disk or partition.

    Raises:
        NotFound, Refused: the device is not free. Exists: the name is used. Errors of LVM: nothing is left.
    """
    options = {"vgname": name, "thinpool": name, "content": storages.GUESTS}
    wanted = storages.New(name, "lvmthin", options) if add_storage else None
    with checks.locked(), contextlib.ExitStack() as undo:
        _group(name, device, undo)
        data, metadata = thin_sizes(volumegroups.group(name).free)
        log.emit(f"New thin pool '{name}/{name}'")
        sizes = ["-L", f"{data // KIB}k", "--poolmetadatasize", f"{metadata // KIB}k"]
        run.run(["lvcreate", "-qq", "--yes", "--type", "thin-pool", *sizes, "-n", name, name], timeout=TIMEOUT)
        if wanted:
            wanted.add()
        undo.pop_all()


def thin_sizes(free: int) -> tuple[int, int]:
    """Bytes for data and metadata of a thin pool that takes a whole group.

    The metadata are there twice: LVM keeps a spare place to repair them in.

    Raises:
        Refused: the group is too small.
    """
    room = free - SPARE
    metadata = min(max(room // 100, LEAST_METADATA), MOST_METADATA) // KIB * KIB
    data = (room - 2 * metadata) // KIB * KIB
    if data < LEAST_METADATA:
        raise Refused(f"the disk is too small for a thin pool: at least {(3 * GIB + SPARE) // MIB} MiB are needed")
    return data, metadata


def _group(name: str, device: str, undo: contextlib.ExitStack) -> None:
    """Make a volume group of a device that turns out to be free."""
    found = checks.require_free(device)
    _require_new(name)
    log.emit(f"New volume group '{name}' on '{found.path}'")
    undo.callback(_undo, name, found.path)
    run.run(["wipefs", "--all", "--quiet", found.path], timeout=60)  # an empty partition table, at most
    table.set_type(found, table.LVM)
    run.run(["pvcreate", "-qq", found.path], timeout=TIMEOUT)
    run.run(["vgcreate", "-qq", name, found.path], timeout=TIMEOUT)
    checks.settle(found.path)


def _undo(name: str, device: Path) -> None:
    """Make an empty device of one that a new group may lie on."""
    try:
        with contextlib.suppress(NotFound):
            _remove_group(name)
    except PveError as error:
        log.warn(f"volume group '{name}' is left on '{device}': {error}")
        return
    wipe.empty_again(device)


# Removing.


def destroy(name: str, *, config: bool = False, disks: bool = False) -> None:
    """Remove a volume group with all volumes in it; none of them may be in use or belong to a guest.

    Args:
        name: of the group.
        config: remove the storages that lie on it too.
        disks: wipe its disks too.

    Raises:
        NotFound: there is no such group. Refused: it is in use.
    """
    on_it = storages.in_group(name)
    with checks.locked():
        devices = _devices(name)
        storages.require_unused(on_it, below=volumegroups.starts(name))
        _require_idle(name, (found.name for found in volumegroups.logicals(name)))
        _remove_group(name)
        log.emit(f"Volume group '{name}' is removed")
        if config:
            storages.forget(on_it)
        if disks:
            wipe.clean(devices)


def destroy_thin(group: str, pool: str, *, config: bool = False, disks: bool = False) -> None:
    """Remove a thin pool with all volumes in it; none of them may be in use or belong to a guest.

    Args:
        group: where it lies.
        pool: its name.
        config: remove the storages that lie on it too.
        disks: remove the group too, when nothing else is in it, and wipe its disks.

    Raises:
        NotFound: there is no such pool. Refused: it is in use; or the group, where its disks are to be wiped.
    """

    def on_it(found: Definition) -> bool:
        return found.options.vgname == group and found.options.thinpool == pool

    with checks.locked():
        devices = _devices(group)
        logicals = volumegroups.logicals(group)
        if not any(found.name == pool and found.kind == "t" for found in logicals):
            raise NotFound(f"there is no thin pool '{pool}' in volume group '{group}'")
        inside = [found.name for found in logicals if found.pool == pool]
        others = [found.name for found in logicals if found.name != pool and found.pool != pool]
        below = [start + own for own in inside for start in volumegroups.starts(group)]
        storages.require_unused(on_it, below=below)
        if disks and others:
            raise Refused(f"volume group '{group}' holds more than thin pool '{pool}': {', '.join(others)}")
        _require_idle(group, inside)
        run.run(["lvremove", "-qq", "--yes", f"{group}/{pool}"], timeout=TIMEOUT)
        log.emit(f"Thin pool '{group}/{pool}' is removed")
        if config:
            storages.forget(on_it)
        if disks:
            _remove_group(group)
            log.emit(f"Volume group '{group}' is removed")
            wipe.clean(devices)


def _require_idle(group: str, names: Iterable[str]) -> None:
    for name in names:
        if user := blockdev.user_of(Path("/dev", group, name)):
            raise Refused(f"logical volume '{group}/{name}' is in use by {user}")


def _remove_group(name: str) -> None:
    volumegroups.group(name)
    run.run(["vgremove", "-qq", "--yes", name], timeout=TIMEOUT)
