"""Looking into running containers, and passing files in and out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pvetools.config import guest as config
from pvetools.guest.lxc import hosting, idmap, mounts, running, runtime
from pvetools.guest.lxc.tree import GuestTree
from pvetools.system import paths, run
from pvetools.system.errors import NotFound, PveError, Refused


class Access(NamedTuple):
    """Permissions and owner that a copied file gets; names or numbers, None for the default."""

    perms: str | None = None
    user: str | None = None
    group: str | None = None

    def mode(self) -> int | None:
        """The permissions as a number: octal, or hexadecimal with ``0x``, as C writes them.

        Raises:
            PveError: not a number.
        """
        if self.perms is None:
            return None
        text = self.perms.lower()
        try:
            value = int(text, 16) if text.startswith("0x") else int(text.removeprefix("0o"), 8)
        except ValueError:
            value = -1
        if not 0 <= value <= 0o7777:
            raise PveError(f"invalid permissions '{self.perms}', expected an octal number such as 0644")
        return value


def require_running(vmid: int) -> config.GuestConfig:
    """The configuration of a container that runs.

    Raises:
        NotFound: no such container. Refused: it does not run.
    """
    current = config.load("lxc", vmid)
    if not running.is_running(vmid):
        raise Refused(f"container '{vmid}' not running!")
    return current


@contextlib.contextmanager
def tree_of(vmid: int) -> Iterator[GuestTree]:
    """The tree of a running container as its own processes see it, with everything that is mounted there.

    Raises:
        NotFound: no such container. Refused: it does not run.
    """
    current = require_running(vmid)
    ids = idmap.of(current.current, current.lxc)
    with GuestTree(f"/proc/{runtime.init_pid(vmid)}/root", ids) as tree:
        yield tree


def push(vmid: int, source: str, destination: str, access: Access) -> None:
    """Copy a file of the host into a running container.

    Args:
        vmid: the container.
        source: file on the host.
        destination: absolute path in the container; links in it are followed inside the container only.
        access: permissions (default 0644) and owner inside (default root) of the copy.

    Raises:
        NotFound, Refused, PveError: naming the file.
    """
    mode = access.mode()
    _absolute(destination)
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise PveError(f"can't read '{source}': {error.strerror}") from None
    with file, tree_of(vmid) as tree:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PveError(f"'{source}' is not a regular file")
        owner = _inside_ids(tree, access)
        chosen = 0o644 if mode is None else mode
        with tree.replacing(destination, chosen, owner) as fd, os.fdopen(os.dup(fd), "wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)


def pull(vmid: int, source: str, destination: str, access: Access) -> None:
    """Copy a file out of a running container.

    Args:
        vmid: the container.
        source: absolute path of a regular file in the container.
        destination: file on the host.
        access: permissions (default 0644) and owner on the host (default root) of the copy.

    Raises:
        NotFound, Refused, PveError: naming the file.
    """
    mode = access.mode()
    _absolute(source)
    owner = _host_ids(access)
    with tree_of(vmid) as tree, os.fdopen(tree.open_read(source), "rb") as file:
        try:
            _copy_out(file, Path(destination), 0o644 if mode is None else mode, owner)
        except OSError as error:
            raise PveError(f"can't write '{destination}': {error.strerror}") from None


def _copy_out(file: Any, destination: Path, mode: int, owner: tuple[int, int]) -> None:
    if destination.exists() and not destination.is_file():  # a pipe, a terminal, /dev/null
        with destination.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
        return
    beside = destination.with_name(f".{destination.name}.tmp.{os.getpid()}")
    try:
        with beside.open("xb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
            os.fchown(out.fileno(), *owner)
            os.fchmod(out.fileno(), mode)
        beside.rename(destination)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _absolute(path: str) -> None:
    if not path.startswith("/"):
        raise PveError(f"path '{path}' in the container is not absolute")


def _inside_ids(tree: GuestTree, access: Access) -> tuple[int, int]:
    return (
        _lookup(access.user, tree.read("/etc/passwd") or "", "user"),
        _lookup(access.group, tree.read("/etc/group") or "", "group"),
    )


def _host_ids(access: Access) -> tuple[int, int]:
    return (
        _lookup(access.user, Path("/etc/passwd").read_text(), "user"),
        _lookup(access.group, Path("/etc/group").read_text(), "group"),
    )


def _lookup(name: str | None, table: str, what: str) -> int:
    """Number of a user or group, given by number or by name in a table such as ``/etc/passwd``."""
    if name is None:
        return 0
    if name.isascii() and name.isdigit():
        return int(name)
    for line in table.splitlines():
        parts = line.split(":")
        if parts[0] == name and len(parts) > 2 and parts[2].isdigit():
            return int(parts[2])
    raise NotFound(f"no {what} '{name}'")


def space(vmid: int) -> list[dict[str, Any]]:
    """Space of every volume of a container: mount key, volume, bytes and path; mounts a stopped one for it.

    Raises:
        NotFound, PveError.
    """
    current = config.load("lxc", vmid)
    options = hosting.options(vmid, current.current)
    ids = idmap.of(current.current, current.lxc)
    points = [("rootfs", options.rootfs.volume if options.rootfs else "", "/")]
    points += [(f"mp{index}", point.volume, point.mp) for index, point in sorted(options.mp.items())]
    if running.is_running(vmid):
        with tree_of(vmid) as tree:
            return [_space(tree, *point) for point in points]
    with mounts.mounted(vmid, options, ids) as root, GuestTree(root, ids) as tree:
        return [_space(tree, *point) for point in points]


def _space(tree: GuestTree, key: str, volume: str, path: str) -> dict[str, Any]:
    with tree.directory(path) as fd:
        found = os.fstatvfs(fd)
    total, avail = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    used = total - found.f_bfree * found.f_frsize
    return {"mp": key, "volume": volume, "size": total, "used": used, "avail": avail, "path": path}


def attach_command(vmid: int, command: list[str], *, keep_env: bool) -> list[str]:
    """The program that runs a command inside: a shell when there is none.

    Raises:
        NotFound: no such container. Refused: it does not run.
    """
    require_running(vmid)
    words = ["lxc-attach", "-P", str(paths.lxc_dir()), "-n", str(vmid), "--keep-env" if keep_env else "--clear-env"]
    return [*words, "--", *command] if command else words


def interfaces(vmid: int) -> list[dict[str, Any]]:
    """Network interfaces of a running container with their addresses, by the host's ``ip`` in its namespace.

    Raises:
        NotFound, Refused, PveError.
    """
    require_running(vmid)
    pid = runtime.init_pid(vmid)
    said = run.run(["nsenter", "-t", str(pid), "-n", "ip", "-json", "address", "show"]).stdout
    return [_interface(link) for link in json.loads(said or "[]")]


def _interface(link: dict[str, Any]) -> dict[str, Any]:
    addresses = [
        {"ip-address": entry["local"], "ip-address-type": entry["family"], "prefix": entry["prefixlen"]}
        for entry in link.get("addr_info", [])
    ]
    mac = link.get("address", "")
    row: dict[str, Any] = {"name": link["ifname"], "hwaddr": mac, "hardware-address": mac, "ip-addresses": addresses}
    for entry in reversed(addresses):  # the first of each family is shown by itself
        row[entry["ip-address-type"]] = f"{entry['ip-address']}/{entry['prefix']}"
    return row


def console_command(vmid: int, escape: str) -> list[str]:
    """The program that shows a container's console, as its ``cmode`` says.

    Raises:
        NotFound: no such container. Refused: it does not run, or has no console.
    """
    current = require_running(vmid)
    options = hosting.options(vmid, current.current)
    if options.cmode == "shell":
        return attach_command(vmid, [], keep_env=False)
    if not options.console or (options.cmode == "tty" and options.tty == 0):
        raise Refused(f"container {vmid} has no console (console: {int(options.console)}, tty: {options.tty})")
    words = ["lxc-console", "-P", str(paths.lxc_dir()), "-n", str(vmid), "-e", escape]
    return [*words, "-t", "0"] if options.cmode == "console" else words
