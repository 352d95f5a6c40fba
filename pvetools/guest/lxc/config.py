"""From a container's options to LXC's configuration: pure functions, nothing is read from the host here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pvetools.guest.lxc import host as hosts
from pvetools.guest.lxc.host import Host
from pvetools.guest.lxc.idmap import IdMap
from pvetools.options.lxc import Features, LxcNic, LxcOptions, PassedDevice
from pvetools.system.units import MIB

Line = tuple[str, str]
PERIOD = 100000  # microseconds in which cpulimit is granted
DEFAULT_UNITS = {1: 1024, 2: 100}
UNITS_RANGE = {1: (2, 262144), 2: (1, 10000)}
# What busybox takes as power-off. LXC sends SIGPWR, as sysvinit wants it, and recognises systemd by itself.
BUSYBOX_HALT = "SIGUSR2"


class Container(NamedTuple):
    """All that a container's configuration for LXC depends on.

    Args:
        vmid: its id.
        options: its checked options.
        raw: the raw ``lxc.*`` lines of its file.
        ids: its id map.
        cpus: CPUs it may use; empty for all.
        links: names of the host's ends of its interfaces, by number.
        cut: numbers of interfaces that are not to be joined to their bridge (link down).
        devices: kernel numbers of passed devices by option index: type, major, minor.
        busybox: whether its init is busybox.
    """

    vmid: int
    options: LxcOptions
    raw: Sequence[Line] = ()
    ids: IdMap = IdMap()
    cpus: tuple[int, ...] = ()
    links: Mapping[int, str] = {}
    cut: frozenset[int] = frozenset()
    devices: Mapping[int, tuple[str, int, int]] = {}
    busybox: bool = False


def lines(ct: Container, host: Host) -> list[Line]:
    """LXC's configuration in the order in which it must be read."""
    out = [*_base(ct, host), *_confinement(ct, host), *_root(ct, host), *_mounts(ct, host)]
    out += [("lxc.idmap", str(entry)) for entry in ct.ids.entries]
    out += [*_groups(ct, host), *_limits(ct, host)]
    for index, nic in sorted(ct.options.net.items()):
        out += _nic(ct, index, nic)
    out += [(key, value) for key, value in ct.raw if key not in ("lxc.idmap", "lxc.id_map")]
    return out


def text(ct: Container, host: Host) -> str:
    """The configuration file."""
    head = "# made at every start; change the container with pct\n"
    return head + "".join(f"{key} = {value}\n" for key, value in lines(ct, host))


def folder(vmid: int, host: Host) -> Path:
    """LXC's folder of a container."""
    return host.lxc_dir / str(vmid)


def _base(ct: Container, host: Host) -> Iterator[Line]:
    options = ct.options
    yield "lxc.include", str(hosts.LXC_CONFIG / "common.conf")
    if ct.ids.entries:
        yield "lxc.include", str(hosts.LXC_CONFIG / "userns.conf")
    if _features(ct).nesting:
        yield "lxc.include", str(hosts.LXC_CONFIG / "nesting.conf")
    yield "lxc.arch", hosts.LXC_ARCH[options.arch]
    yield "lxc.uts.name", host_name(ct.vmid, options)
    yield "lxc.log.file", str(host.log_dir / f"{ct.vmid}.log")
    yield "lxc.log.level", "DEBUG" if options.debug else "WARN"
    yield "lxc.tty.max", str(options.tty)
    yield "lxc.environment", "TERM=linux"
    for pair in filter(None, (options.env or "").split("\0")):
        yield "lxc.environment", pair
    if "entrypoint" in options.given:
        yield "lxc.init.cmd", options.entrypoint
    if not options.console:
        yield "lxc.console.path", "none"
    if ct.busybox:
        yield "lxc.signal.halt", BUSYBOX_HALT


def host_name(vmid: int, options: LxcOptions) -> str:
    """The container's host name, without its domain."""
    return (options.hostname or f"CT{vmid}").partition(".")[0]


def _features(ct: Container) -> Features:
    return ct.options.features or Features()


def seccomp_file(vmid: int, host: Host) -> Path:
    """The container's own list of forbidden system calls."""
    return folder(vmid, host) / "rules.seccomp"


def own_seccomp(ct: Container) -> bool:
    """Whether a container gets a list of its own: without the feature, unprivileged ones have no key rings.

    Key rings of the kernel are not separated between containers.
    """
    return bool(ct.ids.entries) and not _features(ct).keyctl


def _confinement(ct: Container, host: Host) -> Iterator[Line]:
    features = _features(ct)
    if own_seccomp(ct):
        yield "lxc.seccomp.profile", str(seccomp_file(ct.vmid, host))
    if not host.apparmor:
        yield "lxc.apparmor.profile", "unconfined"
        return
    yield "lxc.apparmor.profile", "generated"
    if features.nesting:
        yield "lxc.apparmor.allow_nesting", "1"
    for fstype in filter(None, (part.strip() for part in (features.mount or "").split(";"))):
        yield "lxc.apparmor.raw", f"mount fstype={fstype},"


def _root(ct: Container, host: Host) -> Iterator[Line]:
    yield "lxc.rootfs.path", f"dir:{folder(ct.vmid, host) / 'rootfs'}"
    if ct.ids.entries and not _features(ct).force_rw_sys:
        yield "lxc.mount.auto", "sys:mixed"


def _mounts(ct: Container, host: Host) -> Iterator[Line]:
    for index, point in sorted(ct.options.mp.items()):
        yield "lxc.mount.entry", _entry(folder(ct.vmid, host) / f"mounts/mp{index}", point.mp, "rbind,create=dir")
    for index, device in sorted(ct.options.dev.items()):
        yield from _device(ct, host, index, device)
    if _features(ct).fuse:
        yield "lxc.mount.entry", "/dev/fuse dev/fuse none bind,create=file 0 0"


def _entry(source: Path, target: str, options: str) -> str:
    return f"{_escaped(str(source))} {_escaped(target.strip('/'))} none {options} 0 0"


def _escaped(path: str) -> str:
    """Blanks as ``fstab`` writes them."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def _device(ct: Container, host: Host, index: int, device: PassedDevice) -> Iterator[Line]:
    path = device.path or ""
    yield "lxc.mount.entry", _entry(folder(ct.vmid, host) / f"mounts/dev{index}", path, "bind,create=file")
    kind, major, minor = ct.devices[index]
    number = f"{kind} {major}:{minor}"
    yield f"{_prefix(host)}.devices.allow", f"{number} {'r' if device.deny_write else 'rw'}"
    if device.deny_write:  # unprivileged containers begin with everything allowed
        yield f"{_prefix(host)}.devices.deny", f"{number} w"


def _prefix(host: Host) -> str:
    return "lxc.cgroup2" if host.cgroup == 2 else "lxc.cgroup"


def _groups(ct: Container, host: Host) -> Iterator[Line]:
    name = f"{host.group}{ct.vmid}"
    yield "lxc.cgroup.relative", "0"
    yield "lxc.cgroup.dir.monitor", f"lxc.monitor/{name}"
    yield "lxc.cgroup.dir.container", f"lxc/{name}"
    yield "lxc.cgroup.dir.container.inner", "ns"


def _limits(ct: Container, host: Host) -> Iterator[Line]:
    for (controller, file), value in limits(ct.options, ct.cpus, host).items():
        if controller in host.controllers:
            yield f"{_prefix(host)}.{file}", value


def limits(options: LxcOptions, cpus: Sequence[int], host: Host) -> dict[tuple[str, str], str]:
    """Values of the control group's files, keyed by (controller, file), in the order of writing."""
    low, high = UNITS_RANGE[host.cgroup]
    units = DEFAULT_UNITS[host.cgroup] if options.cpuunits is None else options.cpuunits
    weight = str(min(max(units, low), high))
    memory, swap = options.memory * MIB, options.swap * MIB
    quota = round(options.cpulimit * PERIOD)
    out: dict[tuple[str, str], str] = {}
    if host.cgroup == 2:
        out["memory", "memory.max"] = str(memory)
        if host.swap_limit:
            out["memory", "memory.swap.max"] = str(swap)
        out["cpu", "cpu.max"] = f"{quota} {PERIOD}" if quota else f"max {PERIOD}"
        out["cpu", "cpu.weight"] = weight
    else:
        out["memory", "memory.limit_in_bytes"] = str(memory)
        if host.swap_limit:
            out["memory", "memory.memsw.limit_in_bytes"] = str(memory + swap)
        out["cpu", "cpu.cfs_period_us"] = str(PERIOD)
        out["cpu", "cpu.cfs_quota_us"] = str(quota or -1)
        out["cpu", "cpu.shares"] = weight
    if cpus:
        out["cpuset", "cpuset.cpus"] = ",".join(map(str, cpus))
    return out


def _nic(ct: Container, index: int, nic: LxcNic) -> Iterator[Line]:
    def key(name: str) -> str:
        return f"lxc.net.{index}.{name}"

    yield key("type"), "veth"
    yield key("veth.pair"), ct.links[index]
    if nic.bridge and index not in ct.cut:
        yield key("link"), nic.bridge
    yield key("name"), nic.name
    if nic.hwaddr:
        yield key("hwaddr"), nic.hwaddr
    if nic.mtu:
        yield key("mtu"), str(nic.mtu)
    yield key("flags"), "up"
    if nic.host_managed:
        yield from _addresses(nic, key("ipv4"), nic.ip, nic.gw)
        yield from _addresses(nic, key("ipv6"), nic.ip6, nic.gw6)


def _addresses(nic: LxcNic, prefix: str, address: str | None, gateway: str | None) -> Iterator[Line]:
    if address and "/" in address:
        yield f"{prefix}.address", address
    if gateway:
        yield f"{prefix}.gateway", gateway
