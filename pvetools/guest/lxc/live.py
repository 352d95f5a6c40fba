"""Changes of running containers."""

from __future__ import annotations

from pvetools.config import guest as config
from pvetools.guest.lxc import groups, hosting
from pvetools.guest.lxc import host as hosts
from pvetools.network import bridges, veth
from pvetools.options.lxc import LxcNic
from pvetools.system import log
from pvetools.system.errors import PveError

LIMITS = ("memory", "swap", "cpulimit", "cpuunits")


def apply(vmid: int, key: str, text: str | None) -> bool:
    """Bring one change (None: removal) into a running container; False leaves it pending.

    A value that the kernel refuses stays pending, with a warning.
    """
    try:
        if key in LIMITS:
            return _limit(vmid, key, text)
        if key.startswith("net"):
            return _nic(vmid, key, text)
    except PveError as error:
        log.warn(f"{error}; the change takes effect at the next start")
        return False
    return key.startswith("unused")


def _limit(vmid: int, key: str, text: str | None) -> bool:
    section = {**config.load("lxc", vmid).current}
    section.pop(key, None)
    if text is not None:
        section[key] = text
    groups.set_limits(vmid, hosting.options(vmid, section), [key], hosts.probe())
    return True


def _nic(vmid: int, key: str, text: str | None) -> bool:
    """Pull or plug the cable, or move it to another bridge; everything else needs a restart."""
    old_text = config.load("lxc", vmid).current.get(key)
    if text is None or old_text is None:
        return False
    old, new = LxcNic.parse(old_text), LxcNic.parse(text)
    if old.replaced(bridge=None, link_down=None) != new.replaced(bridge=None, link_down=None):
        return False
    link = veth.name(vmid, int(key.removeprefix("net")))
    if new.bridge:
        bridges.require(new.bridge, key)
    veth.cut(link)
    if new.link_down:
        return True
    if not new.bridge:
        return False
    veth.plug(link, new.bridge)
    return True


def apply_cores(vmid: int, cores: int | None) -> None:
    """Hold a running container on another number of CPUs.

    Raises:
        PveError: the kernel refused.
    """
    groups.set_cpus(vmid, cores, hosts.probe())
