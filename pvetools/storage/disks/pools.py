"""ZFS pools of this node: listed, shown in detail, made of empty disks, destroyed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pvetools.storage import mounts, zfs
from pvetools.storage.definition import Definition
from pvetools.storage.disks import checks, facts, storages, table, wipe
from pvetools.storage.disks.directory import escape, lies_in
from pvetools.system import log, run
from pvetools.system.errors import Exists, NotFound, ParamErrors, PveError, RunError

# Imports one pool at boot, whatever the cache file says; not every distribution has it.
IMPORT_UNIT = Path("/lib/systemd/system/zfs-import@.service")
TYPE = "zfspool"  # of storages on a pool
TIMEOUT = 300
_NUMBERS = ("size", "alloc", "free")
_FIELD = re.compile(r"\s*(pool|state|status|action|see|scan|scrub|config|errors|remove|checkpoint|dedup): ?(.*)")
_DEVICE = re.compile(
    r"\t( *)(\S+)(?: +([A-Z]+)(?: +([0-9.]+[KMGTPE]?) +([0-9.]+[KMGTPE]?) +([0-9.]+[KMGTPE]?))?)? *(.*)", re.ASCII
)
_FACTORS = {suffix: 1000**power for power, suffix in enumerate("KMGTPE", 1)}


class Level(NamedTuple):
    """A way to spread data over disks: how many it needs, and how ``zpool create`` is told."""

    least: int
    most: int = 0  # 0: any number
    even: bool = False
    parity: int = 0
    draid: bool = False


LEVELS = {
    "single": Level(1, 1),
    "mirror": Level(2),
    "raid10": Level(4, even=True),
    "raidz": Level(3, parity=1),
    "raidz2": Level(4, parity=2),
    "raidz3": Level(5, parity=3),
    "draid": Level(3, parity=1, draid=True),
    "draid2": Level(4, parity=2, draid=True),
    "draid3": Level(5, parity=3, draid=True),
}


class Draid(NamedTuple):
    """Data disks in a group, and distributed spares; 0 data: as ZFS chooses."""

    data: int = 0
    spares: int = 0


# Looking.


def parse_list(text: str) -> list[dict[str, Any]]:
    """The output of ``zpool list -Hp -o name,size,alloc,free,frag,dedup,health``."""
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        name, size, alloc, free, frag, dedup, health = line.split("\t")
        row = {key: _whole(value) for key, value in zip(_NUMBERS, (size, alloc, free), strict=True)}
        ratio = dedup.rstrip("x")
        number = float(ratio) if re.fullmatch(r"\d+(\.\d+)?", ratio) else 1.0
        rows.append({"name": name, **row, "frag": _whole(frag.rstrip("%")), "dedup": number, "health": health})
    return rows


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else 0


def every() -> list[dict[str, Any]]:
    """All imported pools."""
    return parse_list(
        run.run(["zpool", "list", "-Hp", "-o", "name,size,alloc,free,frag,dedup,health"], timeout=TIMEOUT).stdout
    )


def detail(name: str) -> dict[str, Any]:
    """State of a pool and of everything that it is made of.

    Raises:
        NotFound: it is not imported.
    """
    try:
        return parse_status(run.run(["zpool", "status", "-P", zfs.check_dataset(name)], timeout=TIMEOUT).stdout)
    except RunError as error:
        if zfs.is_missing(error):
            raise NotFound(f"there is no ZFS pool '{name}'") from None
        raise


def parse_status(text: str) -> dict[str, Any]:
    """The output of ``zpool status -P`` for one pool: fields, and a tree of devices below ``children``."""
    fields: dict[str, list[str]] = {}
    rows: list[tuple[int, dict[str, Any]]] = []
    field = ""
    for line in text.splitlines():
        if found := _FIELD.fullmatch(line):
            field = found[1]
            fields[field] = [found[2]] if found[2] else []
        elif field == "config" and (device := _DEVICE.fullmatch(line)):
            rows += [(len(device[1]) // 2, _device(device))] if device[2] != "NAME" else []
        elif field and line.strip():
            fields[field].append(line.strip())
    data: dict[str, Any] = {key: " ".join(lines) for key, lines in fields.items() if key not in ("config", "pool")}
    data |= {"name": "".join(fields.get("pool", ())), "leaf": 0, "children": _tree(rows)}
    return data


def _device(match: re.Match[str]) -> dict[str, Any]:
    _, name, state, *counts, message = match.groups()
    found: dict[str, Any] = {"name": name, "msg": message}
    if state:
        found["state"] = state
    if counts[0] is not None:
        found |= {key: _count(text) for key, text in zip(("read", "write", "cksum"), counts, strict=True)}
    return found


def _count(text: str) -> int | float:
    """A count of errors, which becomes a rounded one with a suffix when it is large."""
    number = float(text.rstrip("KMGTPE")) * _FACTORS.get(text[-1], 1)
    return int(number) if number == int(number) else number


def _tree(rows: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows with depths as a tree; ``leaf`` marks the ends."""
    top: list[dict[str, Any]] = []
    above: list[tuple[int, dict[str, Any]]] = []
    for depth, row in rows:
        while above and above[-1][0] >= depth:
            above.pop()
        (above[-1][1].setdefault("children", []) if above else top).append(row)
        above.append((depth, row))
    for _, row in rows:
        row["leaf"] = int("children" not in row)
    return top


# Making and destroying.


def check(level: str, devices: Sequence[str], draid: Draid | None) -> None:
    """Whether a number of disks makes a level.

    Raises:
        ParamErrors: what is wrong.
    """
    kind, count = LEVELS[level], len(devices)
    errors: dict[str, str] = {}
    if len(set(devices)) != count:
        errors["devices"] = "a disk is named twice"
    elif count < kind.least:
        errors["devices"] = f"raidlevel '{level}' needs at least {kind.least} disks, {count} are given"
    elif kind.most and count > kind.most:
        errors["devices"] = f"raidlevel '{level}' takes exactly {kind.most} disk, {count} are given"
    elif kind.even and count % 2:
        errors["devices"] = f"raidlevel '{level}' needs an even number of disks, {count} are given"
    if draid and not kind.draid:
        errors["draid-config"] = f"is for the levels draid, draid2 and draid3 only, not for '{level}'"
    elif draid and count < (draid.data or 1) + kind.parity + draid.spares:
        need = (draid.data or 1) + kind.parity + draid.spares
        errors["draid-config"] = f"needs at least {need} disks with raidlevel '{level}', {count} are given"
    if errors:
        raise ParamErrors(errors)


def layout(level: str, devices: Sequence[str], draid: Draid | None = None) -> list[str]:
    """The words that tell ``zpool create`` how to use the disks."""
    if level == "single":
        return list(devices)
    if level == "raid10":
        return [word for pair in range(0, len(devices), 2) for word in ("mirror", *devices[pair : pair + 2])]
    word = level
    if draid:
        word += (f":{draid.data}d" if draid.data else "") + f":{draid.spares}s"
    return [word, *devices]


def create(
    name: str,
    devices: Sequence[str],
    level: str,
    *,
    ashift: int = 12,
    compression: str = "on",
    draid: Draid | None = None,
    add_storage: bool = False,
) -> None:
    """Make a pool of empty disks or partitions.

    Raises:
        ParamErrors: the number of disks does not fit. NotFound, Refused: a device is not free. Exists: there is such a
            pool. Errors of ZFS: nothing is left.
    """
    check(level, devices, draid)
    zfs.check_dataset(name)
    wanted = storages.New(name, TYPE, {"pool": name, "content": storages.GUESTS}) if add_storage else None
    run.require("zpool")
    with checks.locked(), contextlib.ExitStack() as undo:
        found = [checks.require_free(device) for device in devices]
        check(level, [str(device.path) for device in found], draid)
        if any(row["name"] == name for row in every()):
            raise Exists(f"ZFS pool '{name}' exists already")
        for device in found:
            table.set_type(device, table.ZFS)
        words = layout(level, [device.block.by_id or str(device.path) for device in found], draid)
        for device in found:  # ZFS makes partitions before it looks at the rest
            undo.callback(wipe.empty_again, device.path)
        log.emit(f"New ZFS pool '{name}' ({level}) on {', '.join(str(device.path) for device in found)}")
        run.run(
            ["zpool", "create", "-o", f"ashift={ashift}", "-O", f"compression={compression}", name, *words], timeout=600
        )
        undo.callback(_undo, name)
        _at_boot("enable", name)
        checks.settle(*(device.path for device in found))
        if wanted:
            wanted.add()
        undo.pop_all()


def _undo(name: str) -> None:
    try:
        _destroy(name)
    except PveError as error:
        log.warn(f"ZFS pool '{name}' is left: {error}")


def _destroy(name: str) -> None:
    """Destroy a pool; only when that has worked it is no more imported at boot."""
    run.run(["zpool", "destroy", name], timeout=TIMEOUT)
    try:
        _at_boot("disable", name)
    except PveError as error:
        log.warn(f"the destroyed ZFS pool '{name}' is still looked for at boot: {error}")


def _at_boot(word: str, name: str) -> None:
    if IMPORT_UNIT.exists():
        run.run(["systemctl", word, "--quiet", f"zfs-import@{escape(name)}.service"], timeout=60)


def _mounted(name: str) -> list[str]:
    """Where file systems of a pool are mounted."""
    return [mount.point for mount in mounts.every() if mount.kind == "zfs" and mount.source.split("/")[0] == name]


def destroy(name: str, *, config: bool = False, disks: bool = False) -> None:
    """Destroy a pool with everything in it that is no guest's disk.

    Args:
        name: of the pool.
        config: remove the storages that lie on it too.
        disks: wipe its disks too.

    Raises:
        NotFound: it is not imported. Refused: guests have disks there. Errors of ZFS: it is in use.
    """
    points = _mounted(name)
    inside = [lies_in(Path(point)) for point in points]

    def on_it(found: Definition) -> bool:
        if found.type == TYPE:
            return (found.options.pool or "").split("/")[0] == name
        return any(lies(found) for lies in inside)

    with checks.locked():
        if not any(row["name"] == name for row in every()):
            raise NotFound(f"there is no ZFS pool '{name}'")
        below = [f"/dev/zvol/{name}/", *(f"{point.rstrip('/')}/" for point in points)]
        storages.require_unused(on_it, below=below)
        nodes = sorted(facts.pools().get(name, ()))
        _destroy(name)
        log.emit(f"ZFS pool '{name}' is destroyed")
        if config:
            storages.forget(on_it)
        if disks:
            wipe.clean(nodes)
