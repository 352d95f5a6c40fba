"""File systems on disks of this node, mounted below ``/mnt/pve`` by systemd units, as directory storages use them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pvetools.storage import inuse
from pvetools.storage.definition import Definition
from pvetools.storage.disks import checks, storages, table, wipe
from pvetools.system import files, log, paths, run
from pvetools.system.errors import Exists, NotFound, PveError, Refused

UNITS = Path("/etc/systemd/system")
CONTENT = "backup,images,iso,rootdir,snippets,vztmpl"
# Type of the file system -> its maker, which finds nothing to ask about: the place has just been wiped.
MAKERS = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q")}
_KEEPS = re.compile(r"[a-zA-Z0-9:_.]")
TIMEOUT = 600


def escape(path: str) -> str:
    """A path as systemd writes it in the names of units."""
    words = "/".join(part for part in path.split("/") if part)
    text = "".join(
        "-" if char == "/" else char if _KEEPS.fullmatch(char) else "".join(f"\\x{byte:02x}" for byte in char.encode())
        for char in words
    )
    return text if not text.startswith(".") else "\\x2e" + text[1:]


def _point(name: str) -> Path:
    return paths.mount_dir() / name


def _unit(name: str) -> Path:
    return UNITS / f"{escape(str(_point(name)))}.mount"


def parse_unit(text: str) -> dict[str, str]:
    """The ``[Mount]`` part of a unit."""
    part, found = "", {}
    for line in text.splitlines():
        if header := re.fullmatch(r"\[(.+)\]\s*", line):
            part = header[1]
        elif part == "Mount" and "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found[key.strip()] = value.strip()
    return found


def unit_text(name: str, what: str, where: Path, type_: str) -> str:
    """A unit that mounts a file system at boot."""
    return (
        f"[Install]\nWantedBy=multi-user.target\n\n"
        f"[Mount]\nOptions=defaults\nType={type_}\nWhat={what}\nWhere={where}\n\n"
        f"[Unit]\nDescription=Mount storage '{name}' under {where.parent}\n"
    )


def every() -> Iterator[dict[str, Any]]:
    """What our units mount."""
    start = escape(str(paths.mount_dir())) + "-"
    for path in sorted(UNITS.glob("*.mount")) if UNITS.is_dir() else ():
        if path.name.startswith(start) and (text := files.read_text(path)):
            found = parse_unit(text)
            yield {
                "unitfile": str(path),
                **{key: found.get(name, "") for key, name in _KEYS.items()},
            }


_KEYS: Mapping[str, str] = {"path": "Where", "device": "What", "type": "Type", "options": "Options"}


def _require_systemd() -> None:
    if not Path("/run/systemd/system").is_dir():
        raise Refused("systemd does not run on this host, so it can't mount anything at boot")


def _systemctl(*words: str) -> None:
    run.run(["systemctl", *words], timeout=120)


def _told(*words: str) -> None:
    """A step of undoing that may fail."""
    with contextlib.suppress(PveError):
        _systemctl(*words)


def create(name: str, device: str, type_: str, *, add_storage: bool = False) -> None:
    """Make a file system on an empty disk (in one partition over all of it) or partition, and mount it now and at boot.

    Raises:
        NotFound, Refused: the device is not free. Exists: the name is used. Errors of the tools: all is undone but
            what was written to the disk, which was empty.
    """
    _require_systemd()
    point, unit = _point(name), _unit(name)
    options = {"path": str(point), "content": CONTENT, "is_mountpoint": "1"}
    wanted = storages.New(name, "dir", options) if add_storage else None
    run.require(MAKERS[type_][0])
    with checks.locked(), contextlib.ExitStack() as undo:
        found = checks.require_free(device)
        _require_place(point, unit)
        part = _partition(found, undo)
        log.emit(f"New {type_} on '{part}'")
        run.run([*MAKERS[type_], part], timeout=TIMEOUT)
        checks.settle(part)
        what = f"/dev/disk/by-uuid/{_uuid(part)}"
        log.emit(f"New mount unit '{unit}'")
        undo.callback(_drop_unit, unit)
        files.write_atomic(unit, unit_text(name, what, point, type_), 0o644)
        _systemctl("daemon-reload")
        _systemctl("enable", "--quiet", unit.name)
        undo.callback(_told, "stop", unit.name)
        _systemctl("start", unit.name)
        if wanted:
            wanted.add()
        undo.pop_all()


def _require_place(point: Path, unit: Path) -> None:
    if unit.exists():
        raise Exists(f"the mount unit '{unit}' exists already")
    if inuse.is_mount_point(point):
        raise Exists(f"something is mounted at '{point}' already")
    if point.exists() and (not point.is_dir() or any(point.iterdir())):
        raise Exists(f"'{point}' exists already and is not an empty directory")


def _partition(found: checks.Device, undo: contextlib.ExitStack) -> Path:
    """The partition to use; a whole disk gets one."""
    undo.callback(wipe.empty_again, found.path)
    if found.partition:
        table.set_type(found, table.LINUX)
        return found.path
    return table.one_partition(found)


def _uuid(part: Path) -> str:
    found = run.run(["blkid", "-p", "-s", "UUID", "-o", "value", part], timeout=60).stdout.strip()
    if not found:
        raise PveError(f"the new file system on '{part}' has no UUID")
    return found


def _drop_unit(unit: Path) -> None:
    _told("disable", "--quiet", unit.name)
    files.remove(unit)
    _told("daemon-reload")


def remove(name: str, *, config: bool = False, disks: bool = False) -> None:
    """Unmount a file system and remove its unit; its data stays unless its disk is to be cleaned.

    Args:
        name: of the folder below ``/mnt/pve``.
        config: remove the storages that lie on it too.
        disks: wipe the disk too.

    Raises:
        NotFound: no such unit. Refused: guests have disks there. Errors of systemd: it is in use.
    """
    _require_systemd()
    point, unit = _point(name), _unit(name)
    on_it = lies_in(point)
    with checks.locked():
        text = files.read_text(unit)
        if text is None:
            raise NotFound(f"there is no mount unit '{unit}'")
        storages.require_unused(on_it, below=[f"{point}/"])
        node = _device_node(parse_unit(text).get("What", "")) if disks else ""
        _systemctl("stop", unit.name)
        if inuse.is_mount_point(point):
            raise Refused(f"'{point}' is still mounted, so it must be in use")
        _systemctl("disable", "--quiet", unit.name)
        files.remove(unit)
        _systemctl("daemon-reload")
        with contextlib.suppress(OSError):
            point.rmdir()
        log.emit(f"Mount unit '{unit}' is removed")
        if config:
            storages.forget(on_it)
        if disks:
            wipe.clean([node])


def lies_in(point: Path) -> storages.Match:
    """Whether a storage's folder is a mount point, or lies somewhere below it."""
    top = Path(os.path.realpath(point))

    def on_it(found: Definition) -> bool:
        place = Path(os.path.realpath(found.options.path or "/"))
        return top in (place, *place.parents)

    return on_it


def _device_node(what: str) -> str:
    """What a unit mounts, as a device node.

    Raises:
        NotFound: it has gone.
    """
    return str(checks.find(what).path)
