"""Distributions: which one a tree holds, and what is written into it at creation and before every start."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from pvetools.guest.lxc.setup import interfaces, names, networkd, sections
from pvetools.guest.lxc.setup.names import Dns
from pvetools.guest.lxc.tree import GuestTree
from pvetools.options.lxc import LxcNic, LxcOptions
from pvetools.system import log
from pvetools.system.errors import PveError

# file -> distribution, where os-release says nothing (the order counts)
MARKS = (
    ("/etc/devuan_version", "devuan"), ("/etc/lsb-release", "ubuntu"), ("/etc/debian_version", "debian"),
    ("/etc/alpine-release", "alpine"), ("/etc/fedora-release", "fedora"), ("/etc/arch-release", "archlinux"),
    ("/etc/gentoo-release", "gentoo"), ("/etc/SuSE-release", "opensuse"), ("/etc/redhat-release", "centos"),
)  # fmt: skip
IDS = {
    "debian": "debian", "devuan": "devuan", "ubuntu": "ubuntu", "alpine": "alpine", "fedora": "fedora",
    "arch": "archlinux", "gentoo": "gentoo", "nixos": "nixos", "centos": "centos", "rhel": "centos", "rocky": "centos",
    "almalinux": "centos", "opensuse-leap": "opensuse", "opensuse-tumbleweed": "opensuse", "opensuse": "opensuse",
}  # fmt: skip
# CIDR notation in /etc/network/interfaces begins with these versions
CIDR_SINCE = {"debian": (10,), "devuan": (3,), "ubuntu": (18, 10), "alpine": (3, 13)}
MACHINES = {(62, 2): "amd64", (3, 1): "i386", (183, 2): "arm64", (40, 1): "armhf", (243, 1): "riscv32",
            (243, 2): "riscv64"}  # fmt: skip
PROGRAMS = ("/bin/sh", "/bin/busybox", "/sbin/init", "/usr/bin/env")
NETWORKD = ("/lib/systemd/systemd-networkd", "/usr/lib/systemd/systemd-networkd")
UNITS = ("/usr/lib/systemd/system", "/lib/systemd/system")
GETTY = "container-getty@.service"
# systemd looks for a container's terminals among the pseudo terminals, LXC puts them at /dev/ttyN
GETTY_ON_TTY = """\
[Unit]
ConditionPathExists=
ConditionPathExists=/dev/tty%I

[Service]
ExecStart=
ExecStart=-/sbin/agetty --noclear --keep-baud tty%I 115200,38400,9600 $TERM
TTYPath=/dev/tty%I
"""
# mounts that an unprivileged container may not make; they would only leave it "degraded"
FORBIDDEN_MOUNTS = ("sys-kernel-debug.mount", "sys-kernel-config.mount")
IFUPDOWN = ("/sbin/ifup", "/usr/sbin/ifup")


class Subject(NamedTuple):
    """A container whose tree is being adapted."""

    tree: GuestTree
    ostype: str
    options: LxcOptions
    dns: Dns


def detect(tree: GuestTree) -> str:
    """The distribution in a tree; ``unmanaged`` when it is none that we know."""
    release = names.os_release(tree.read("/etc/os-release") or tree.read("/usr/lib/os-release") or "")
    ids = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    if ids[0] == "debian" and tree.exists("/etc/devuan_version"):
        return "devuan"
    for ident in ids:
        if ident in IDS:
            return IDS[ident]
    return next((ostype for path, ostype in MARKS if tree.exists(path)), "unmanaged")


def architecture(tree: GuestTree) -> str | None:
    """The architecture of a tree's programs, read from the ELF header of its shell; None when there is none."""
    for path in PROGRAMS:
        try:
            fd = tree.open_read(path)
        except PveError:
            continue
        with os.fdopen(fd, "rb") as file:
            head = file.read(20)
        if head[:4] == b"\x7fELF" and len(head) == 20:
            (machine,) = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])
            return MACHINES.get((machine, head[4]))
    return None


def subject(tree: GuestTree, options: LxcOptions, host_dns: Dns | None = None) -> Subject:
    """Put together what is known about a container. Without own DNS options it gets those of the host."""
    ostype = options.ostype or detect(tree)
    given = Dns(tuple(options.searchdomain or ()), tuple(options.nameserver or ()))
    if given == Dns():
        given = host_dns if host_dns is not None else names.host_dns()
    return Subject(tree, ostype, options, given)


# -- before every start ------------------------------------------------------------------------------------------------


def before_start(ct: Subject) -> None:
    """Bring the container's files in line with its options; ``unmanaged`` trees are left alone.

    Raises:
        PveError: a file that cannot be written.
    """
    if ct.ostype == "unmanaged":
        return
    for step in (_hostname, _hosts, _resolv, _terminals, _timezone):
        step(ct)
    nics = own_nics(ct.options)
    if nics:
        _network(ct)(ct, nics)


def own_nics(options: LxcOptions) -> dict[int, LxcNic]:
    """Interfaces whose addresses the container's own tools set."""
    return {index: nic for index, nic in options.net.items() if not nic.host_managed}


def can_set_addresses(ostype: str) -> bool:
    """Whether addresses can be written into containers of a distribution."""
    return ostype in ("debian", "devuan", "ubuntu", "alpine", "fedora", "archlinux", "unmanaged")


def _changed(ct: Subject, path: str, text: str, mode: int | None = None) -> None:
    """Write a file if it says something else so far, and if the container does not forbid it."""
    folder, _, name = path.rpartition("/")
    if ct.tree.exists(f"{folder}/.pve-ignore.{name}"):
        return
    if ct.tree.link(path) is None and ct.tree.read(path) == text:
        return
    ct.tree.mkdir(folder)
    ct.tree.write(path, text, mode)


def _part(ct: Subject, path: str, body: str, otherwise: Literal["append", "replace"], mode: int | None = None) -> None:
    _changed(ct, path, sections.updated(_own_text(ct, path), body, otherwise), mode)


def _own_text(ct: Subject, path: str) -> str:
    """What a file says so far; a link is going to be replaced, whatever it leads to."""
    return "" if ct.tree.link(path) is not None else ct.tree.read(path) or ""


def _hostname(ct: Subject) -> None:
    if ct.options.hostname:
        _changed(ct, "/etc/hostname", names.split_name(ct.options.hostname, ct.dns)[0] + "\n")


def _hosts(ct: Subject) -> None:
    before = _own_text(ct, "/etc/hosts")
    before = "".join(line + "\n" for line in before.splitlines() if line.split()[1:] != ["LXC_NAME"])  # placeholder
    own = sections.outside(before)
    body = names.hosts(own, ct.options.hostname or "", ct.options.net, ct.dns)
    _changed(ct, "/etc/hosts", sections.updated(before, body, "append"))


def _resolv(ct: Subject) -> None:
    body = names.resolv(ct.dns)
    if body:
        _part(ct, "/etc/resolv.conf", body, "replace")


def _terminals(ct: Subject) -> None:
    """A login on each of the container's terminals, as its init does it."""
    unit = _unit_file(ct.tree, GETTY)
    if unit:
        _systemd_terminals(ct, unit)
    before = ct.tree.read("/etc/inittab")
    if before is None or ct.ostype not in ("debian", "devuan", "ubuntu") or busybox_init(ct.tree):
        return
    old = ct.ostype == "debian" and (0,) < _version(ct) < (7,)
    _changed(ct, "/etc/inittab", names.inittab(before, ct.options.tty, "-L" if old else "--noclear"))


def _systemd_terminals(ct: Subject, unit: str) -> None:
    wants = "/etc/systemd/system/getty.target.wants"
    wanted = {GETTY.replace("@", f"@{number}") for number in range(1, ct.options.tty + 1)}
    there = {name for name in ct.tree.names(wants) if name.startswith("container-getty@")}
    if wanted:
        _changed(ct, f"/etc/systemd/system/{GETTY}.d/pve.conf", GETTY_ON_TTY)
    for name in there - wanted:
        ct.tree.remove(f"{wants}/{name}")
    for name in sorted(wanted - there):
        ct.tree.mkdir(wants)
        ct.tree.symlink(f"{wants}/{name}", unit)


def _unit_file(tree: GuestTree, unit: str) -> str | None:
    """Path of a unit that the distribution brings."""
    return next((f"{place}/{unit}" for place in UNITS if tree.exists(f"{place}/{unit}")), None)


def busybox_init(tree: GuestTree) -> bool:
    """Whether a container's init is busybox."""
    return (tree.link("/sbin/init") or "").endswith("busybox")


def _timezone(ct: Subject) -> None:
    zone = ct.options.timezone
    if not zone:
        return
    if zone == "host":
        zone = _host_zone()
    if not zone or not ct.tree.exists(f"/usr/share/zoneinfo/{zone}"):
        log.warn(f"the container has no data of time zone '{ct.options.timezone}'; its time zone stays as it is")
        return
    target = f"/usr/share/zoneinfo/{zone}"
    if ct.tree.link("/etc/localtime") != target:
        ct.tree.symlink("/etc/localtime", target)
    if ct.tree.exists("/etc/timezone"):
        _changed(ct, "/etc/timezone", zone + "\n")


def _host_zone() -> str:
    from pathlib import Path

    place = Path("/etc/localtime").resolve().as_posix()
    return place.partition("/zoneinfo/")[2]


Writer = Callable[[Subject, dict[int, LxcNic]], None]


def _network(ct: Subject) -> Writer:
    """How the container sets its addresses."""
    tree = ct.tree
    if ct.ostype == "alpine":
        return _interfaces
    if ct.ostype in ("fedora", "archlinux"):
        return _networkd
    if ct.ostype == "ubuntu" and (tree.exists("/usr/sbin/netplan") or tree.is_dir("/etc/netplan")):
        return _netplan
    has_ifupdown = any(tree.exists(path) for path in IFUPDOWN) or tree.exists("/etc/network/interfaces")
    if not has_ifupdown and any(tree.exists(path) for path in NETWORKD):
        return _networkd
    return _interfaces


def _interfaces(ct: Subject, nics: dict[int, LxcNic]) -> None:
    since = CIDR_SINCE.get(ct.ostype, (0,))
    path = "/etc/network/interfaces"
    before = ct.tree.read(path) or ""
    _changed(ct, path, interfaces.updated(before, nics, cidr=_version(ct) >= since))


def _version(ct: Subject) -> tuple[int, ...]:
    if ct.ostype == "alpine":
        return names.version(ct.tree.read("/etc/alpine-release") or "")
    release = names.os_release(ct.tree.read("/etc/os-release") or "")
    found = names.version(release.get("VERSION_ID", "")) if "VERSION_ID" in release else ()
    if found or ct.ostype != "debian":
        return found
    text = ct.tree.read("/etc/debian_version") or ""
    return names.version(text) or (999,)  # a name such as trixie/sid: newer than every number


def _networkd(ct: Subject, nics: dict[int, LxcNic]) -> None:
    for nic in nics.values():
        _changed(ct, networkd.unit_path(nic.name), networkd.unit(nic))
    _enable(ct.tree, "systemd-networkd.service")


def _enable(tree: GuestTree, unit: str) -> None:
    wants = "/etc/systemd/system/multi-user.target.wants"
    unit_file = _unit_file(tree, unit)
    if unit_file and tree.stat(f"{wants}/{unit}", follow=False) is None:
        tree.mkdir(wants)
        tree.symlink(f"{wants}/{unit}", unit_file)


def _netplan(ct: Subject, nics: dict[int, LxcNic]) -> None:
    _changed(ct, networkd.NETPLAN, networkd.netplan(nics), 0o600)


# -- once, after unpacking ---------------------------------------------------------------------------------------------


def after_create(ct: Subject, password_hash: str = "", ssh_keys: Sequence[str] = ()) -> None:
    """Everything of ``before_start``, and what is written only once: root's password and keys, a fresh identity.

    Raises:
        PveError: no place for them in the tree.
    """
    if ct.ostype == "unmanaged":
        if password_hash or ssh_keys:
            raise PveError("can't set root's password or SSH keys in a container of ostype 'unmanaged'")
        return
    before_start(ct)
    if password_hash:
        text = ct.tree.read("/etc/shadow")
        if text is None:
            log.warn("the container has no /etc/shadow: root's password was not set")
        else:
            ct.tree.write("/etc/shadow", names.shadow(text, password_hash, int(time.time()) // 86400))
    if ssh_keys:
        _keys(ct, ssh_keys)
    if ct.options.unprivileged:
        for unit in FORBIDDEN_MOUNTS:
            own = f"/etc/systemd/system/{unit}"
            if _unit_file(ct.tree, unit) and ct.tree.stat(own, follow=False) is None:
                ct.tree.symlink(own, "/dev/null")
    if ct.tree.read("/etc/machine-id"):
        ct.tree.write("/etc/machine-id", "")  # systemd makes a new one; two containers with one id are one to DHCP


def _keys(ct: Subject, ssh_keys: Sequence[str]) -> None:
    home = names.root_home(ct.tree.read("/etc/passwd") or "")
    if not ct.tree.is_dir(f"{home}/.ssh"):
        ct.tree.mkdir(f"{home}/.ssh", 0o700)
    path = f"{home}/.ssh/authorized_keys"
    mode = None if ct.tree.exists(path) else 0o600
    _part(ct, path, "".join(key + "\n" for key in ssh_keys), "append", mode)
