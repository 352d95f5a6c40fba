"""What containers supply to the code that all guests share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from pvetools.config.guest import Section
from pvetools.guest.common.kind import GuestKind, Making
from pvetools.guest.lxc import idmap, running
from pvetools.guest.lxc.idmap import IdMap
from pvetools.network import mac
from pvetools.options.lxc import LxcNic, LxcOptions, MountPoint, Rootfs
from pvetools.schema.core import NestedErrors
from pvetools.system import run
from pvetools.system.errors import ParamErrors
from pvetools.system.units import GIB

_NEW = re.compile(r"(?P<storage>[^:]+):(?P<size>\d+(?:\.\d+)?)", re.ASCII)
_VOLUME_KEY = re.compile(r"(rootfs|(mp|unused)(0|[1-9]\d*))", re.ASCII)
# the directory of the container is made for a mount point; these must stay what they are
RESERVED_TARGETS = ("/", "/proc", "/sys", "/dev")


def is_volume_key(key: str) -> bool:
    """Whether a key holds a volume."""
    return _VOLUME_KEY.fullmatch(key) is not None


def volumes_of(section: Mapping[str, str]) -> dict[str, str]:
    """Storage volumes by key; bind mounts and devices of the host are not among them."""
    found: dict[str, str] = {}
    for key, text in section.items():
        if not is_volume_key(key):
            continue
        volume = next((part.removeprefix("volume=") for part in text.split(",")
                       if "=" not in part or part.startswith("volume=")), "")  # fmt: skip
        if volume and not volume.startswith("/"):
            found[key] = volume
    return found


def with_size(text: str, size: int) -> str:
    """The text of a volume with another size in bytes."""
    kind = MountPoint if ",mp=" in f",{text}" else Rootfs
    return kind.parse(text).replaced(size=size).format()


def make_volume(wish: Making) -> str:
    """Text to store for a volume: a new one is allocated and formatted, an existing one is checked.

    Raises:
        ParamErrors: a volume of another guest, or something that cannot be the root.
        PveError: the storage refused.
    """
    if wish.key.startswith("unused"):
        return _existing_unused(wish)
    value: Rootfs = wish.value
    match = _NEW.fullmatch(value.volume)
    if match:
        return _new(wish, value, match["storage"], match["size"])
    if value.volume.startswith("/"):
        if wish.key == "rootfs":
            raise ParamErrors({"rootfs": f"'{value.volume}' is a path of the host; the root must be a volume"})
        return value.format()
    from pvetools.storage import volumes

    info = volumes.info(value.volume)
    owner = volumes.owner(value.volume)
    if owner != wish.vmid:
        raise ParamErrors({wish.key: f"volume '{value.volume}' belongs to guest {owner or 'of nobody'}"})
    return value.replaced(size=info.size).format()


def _existing_unused(wish: Making) -> str:
    from pvetools.storage import volumes

    text: str = wish.value.format()
    volumes.info(text)
    return text


def _new(wish: Making, value: Rootfs, storage: str, size: str) -> str:
    from pvetools.storage import volumes

    keepattrs = isinstance(value, MountPoint) and value.keepattrs
    if keepattrs:
        raise ParamErrors({wish.key: "option 'keepattrs' is not supported yet"})
    length = int(float(size) * GIB)
    ids = ids_of(wish.section)
    limited = volumes.usable(storage, "rootdir").info.limits_folders
    form = "subvol" if limited or not length else "raw"
    volid = volumes.alloc(storage, wish.vmid, length, format=form, content="rootdir")
    wish.undo.callback(volumes.discard, volid)
    path = volumes.mountable(volid).path
    if form == "raw":
        format_image(os.fspath(path), ids)
    else:
        os.chown(path, *ids.root)
        path.chmod(0o755)
    return value.replaced(volume=volid, size=length).format()


def format_image(path: str, ids: IdMap) -> None:
    """Make a file system that belongs to the container's root; mmp keeps two hosts from mounting it at once.

    Raises:
        RunError: mkfs failed.
    """
    uid, gid = ids.root
    run.run(["mkfs.ext4", "-q", "-F", "-O", "mmp", "-E", f"root_owner={uid}:{gid}", path])


def ids_of(section: Mapping[str, str]) -> IdMap:
    """The id map that a section describes.

    Raises:
        PveError: a malformed raw line.
    """
    return idmap.of(section, section.lxc if isinstance(section, Section) else ())


def rules(section: Mapping[str, str]) -> dict[str, str]:
    """Options that do not fit together, with reasons."""
    try:
        options = LxcOptions.read(section)
    except NestedErrors:
        return {}  # a value that was there before and that nobody touches now
    errors: dict[str, str] = {}
    _check_names(options, errors)
    for index, nic in options.net.items():
        _check_nic(f"net{index}", nic, errors)
    _check_targets(options, errors)
    return errors


def _check_names(options: LxcOptions, errors: dict[str, str]) -> None:
    for attribute in ("name", "hwaddr"):
        seen: dict[str, int] = {}
        for index, nic in sorted(options.net.items()):
            value = (getattr(nic, attribute) or "").lower()
            if value and value in seen:
                errors[f"net{index}"] = f"{attribute} '{value}' is already that of net{seen[value]}"
            seen.setdefault(value, index)


def _check_nic(key: str, nic: LxcNic, errors: dict[str, str]) -> None:
    if nic.name == "lo":
        errors[key] = "name 'lo' is that of the loopback interface"
    elif len(nic.name.encode()) > 15:
        errors[key] = f"name '{nic.name}' is longer than 15 bytes"
    for option, gateway, address in (("gw", nic.gw, nic.ip), ("gw6", nic.gw6, nic.ip6)):
        if gateway and "/" not in (address or ""):
            errors[key] = f"'{option}' needs a static address"


def _check_targets(options: LxcOptions, errors: dict[str, str]) -> None:
    seen: dict[str, int] = {}
    for index, point in sorted(options.mp.items()):
        target = "/" + point.mp.strip("/")
        if not point.mp.startswith("/"):
            errors[f"mp{index}"] = f"mount path '{point.mp}' is not absolute"
        elif target in RESERVED_TARGETS:
            errors[f"mp{index}"] = f"nothing can be mounted on '{target}'"
        elif target in seen:
            errors[f"mp{index}"] = f"mount path '{target}' is already that of mp{seen[target]}"
        seen.setdefault(target, index)


def apply_live(vmid: int, key: str, text: str | None) -> bool:
    """Bring a change into the running container; see ``live``."""
    from pvetools.guest.lxc import live

    return live.apply(vmid, key, text)


def with_addresses(nics: Mapping[int, LxcNic], before: Mapping[str, str]) -> dict[int, LxcNic]:
    """Interfaces that all have a MAC address: their own, that of the same interface before, or a new one."""
    return {
        index: nic if nic.hwaddr else nic.replaced(hwaddr=_address_of(before.get(f"net{index}")) or mac.generate())
        for index, nic in nics.items()
    }


def _address_of(text: str | None) -> str | None:
    try:
        return LxcNic.parse(text).hwaddr if text else None
    except ValueError:
        return None


LXC = GuestKind(
    name="lxc",
    label="CT",
    tool="pct",
    options=LxcOptions,
    is_running=running.is_running,
    volumes=volumes_of,
    make_volume=make_volume,
    is_volume_key=is_volume_key,
    with_size=with_size,
    rules=rules,
    apply_live=apply_live,
)
