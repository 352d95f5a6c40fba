"""Options that no code honours yet: a container that uses one does not start, and the reason names the option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pvetools.guest.lxc.host import Host
from pvetools.guest.lxc.setup.family import can_set_addresses, own_nics
from pvetools.options.lxc import Features, LxcNic, LxcOptions, Rootfs
from pvetools.system.errors import Refused


class Gap(NamedTuple):
    """An option that cannot be honoured: when that is so, and why."""

    option: str
    applies: Callable[[LxcOptions], bool]
    reason: str


def _features(options: LxcOptions) -> Features:
    return options.features or Features()


NOT_YET = "is not supported yet"
GAPS = (
    Gap("hookscript", lambda o: o.hookscript is not None, NOT_YET),
    Gap("features.mknod", lambda o: _features(o).mknod, NOT_YET),
    Gap("features.mount", lambda o: bool(_features(o).mount) and o.unprivileged,
        "needs a privileged container: the kernel lets unprivileged ones mount only what is safe for all"),
    Gap("features.keyctl", lambda o: _features(o).keyctl and not o.unprivileged,
        "is for unprivileged containers; privileged ones may use keyctl anyway"),
)  # fmt: skip


class Part(NamedTuple):
    """The same for a key of a property string."""

    key: str
    applies: Callable[..., bool]
    reason: str


NIC_GAPS: tuple[Part, ...] = (
    Part("tag", lambda nic: nic.tag is not None, NOT_YET),
    Part("trunks", lambda nic: nic.trunks is not None, NOT_YET),
    Part("rate", lambda nic: bool(nic.rate), NOT_YET),
    Part("host-managed", lambda nic: bool(nic.host_managed) and {nic.ip, nic.ip6} & {"dhcp", "auto"} != set(),
         "works with static addresses only"),
)  # fmt: skip
VOLUME_GAPS: tuple[Part, ...] = (
    Part("quota", lambda volume: bool(volume.quota), NOT_YET),
    Part("idmap", lambda volume: volume.idmap is not None, NOT_YET),
)


def refusals(options: LxcOptions) -> Iterator[str]:
    """One sentence for every option in use that cannot be honoured."""
    for gap in GAPS:
        if gap.applies(options):
            yield f"option '{gap.option}' {gap.reason}"
    for index, nic in sorted(options.net.items()):
        yield from _parts(f"net{index}", nic, NIC_GAPS)
    if options.rootfs:
        yield from _parts("rootfs", options.rootfs, VOLUME_GAPS)
    for index, point in sorted(options.mp.items()):
        yield from _parts(f"mp{index}", point, VOLUME_GAPS)


def _parts(key: str, value: LxcNic | Rootfs, gaps: tuple[Part, ...]) -> Iterator[str]:
    for gap in gaps:
        if gap.applies(value):
            yield f"option '{gap.key}' of '{key}' {gap.reason}"


def _addresses(options: LxcOptions) -> Iterator[str]:
    ostype = options.ostype or "unmanaged"
    for index, nic in own_nics(options).items():
        if (nic.ip or nic.ip6) and not can_set_addresses(ostype):
            yield (f"addresses of 'net{index}' cannot be written into containers of ostype '{ostype}' yet; "
                   "set host-managed=1 for static ones, or none and configure it inside")  # fmt: skip


def check(vmid: int, options: LxcOptions, host: Host) -> None:
    """Refuse to start a container that asks for something that it would not get.

    Raises:
        Refused: naming every such option.
    """
    found = [*refusals(options), *_addresses(options)]
    if options.cores and "cpuset" not in host.controllers:
        found.append("option 'cores' needs the cpuset controller, which this host's control groups lack")
    if options.arch not in host.archs:
        found.append(f"option 'arch' is '{options.arch}', whose programs this host cannot run")
    if options.rootfs is None:
        found.append("option 'rootfs' is missing")
    if found:
        raise Refused(f"CT {vmid} can't be started: " + "; ".join(found))
