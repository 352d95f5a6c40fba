"""Small things between a container's configuration and its tree that creation and start have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvetools.guest.lxc import groups
from pvetools.guest.lxc import host as hosts
from pvetools.guest.lxc.idmap import IdMap
from pvetools.guest.lxc.mounts import root_folder
from pvetools.guest.lxc.setup import family
from pvetools.guest.lxc.tree import GuestTree
from pvetools.options.lxc import LxcOptions
from pvetools.schema.core import NestedErrors
from pvetools.system import paths
from pvetools.system.errors import PveError


def options(vmid: int, section: Mapping[str, str]) -> LxcOptions:
    """The checked options of a section.

    Raises:
        PveError: values that this version does not understand, with their keys.
    """
    try:
        return LxcOptions.read(section)
    except NestedErrors as error:
        wrong = "; ".join(f"'{key}': {reason}" for key, reason in error.errors.items())
        raise PveError(f"{paths.guest_config('lxc', vmid)}: {wrong}") from None


def adapt(vmid: int, wanted: LxcOptions, ids: IdMap) -> bool:
    """Bring the files of a mounted container in line with its options, before every start.

    Returns:
        Whether its init is busybox, which wants another signal to shut down.

    Raises:
        PveError: a file that cannot be written.
    """
    with GuestTree(root_folder(vmid), ids) as tree:
        family.before_start(family.subject(tree, wanted))
        return family.busybox_init(tree)


def personalise(root: Path, wanted: LxcOptions, ids: IdMap, password_hash: str, ssh_keys: Sequence[str]) -> None:
    """The first adaption of a new tree, with root's password and keys.

    Raises:
        PveError: a file that cannot be written.
    """
    with GuestTree(root, ids) as tree:
        family.after_create(family.subject(tree, wanted), password_hash, ssh_keys)


def seccomp_rules() -> str:
    """LXC's list of system calls that harm the host, and key rings, which containers would share."""
    common = (hosts.LXC_CONFIG / "common.seccomp").read_text()
    return common.rstrip("\n") + "\nkeyctl errno 38\n"


def forget(vmid: int) -> None:
    """Remove what is derived from a stopped container's configuration: LXC's folder, the log, control groups.

    Folders are only removed when they are empty, so that nothing that is mounted there can be lost.
    """
    groups.remove_leftovers(vmid)
    home = paths.lxc_dir() / str(vmid)
    for place in (home / "mounts").iterdir() if (home / "mounts").is_dir() else ():
        _discard(place)
    for half in home.glob(".*.tmp.*"):  # of a start that was killed
        _discard(half)
    for name in ("mounts", "rootfs", "config", "rules.seccomp", ""):
        _discard(home / name)
    _discard(hosts.log_folder() / f"{vmid}.log")


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
