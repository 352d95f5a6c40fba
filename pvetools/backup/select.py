"""Which guests a job is about, on which node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pvetools.options.backup import VzdumpOptions
from pvetools.system.errors import ParamErrors


def check(options: VzdumpOptions) -> None:
    """Refuse contradicting ways to choose guests.

    Raises:
        ParamErrors: guests chosen in two ways, or in none.
    """
    ways = {"vmid": bool(options.vmid), "pool": bool(options.pool), "all": options.all or bool(options.exclude)}
    if options.pool:
        ways["all"] = options.all
    chosen = [name for name, used in ways.items() if used]
    if len(chosen) > 1:
        reason = f"cannot be combined with '{chosen[0]}'"
        raise ParamErrors({name: reason for name in chosen[1:]})
    if not chosen and not options.stop:
        raise ParamErrors({"vmid": "no guests chosen: give ids, or --all"})


def included(
    options: VzdumpOptions, guests: Mapping[int, str], pool_members: Callable[[str], Iterable[int]]
) -> dict[str, list[int]]:
    """Chosen guests by node, in numerical order; the node ``""`` has those that exist nowhere.

    Args:
        options: vmid, all, exclude, pool and node count.
        guests: node of every guest of the cluster.
        pool_members: guests of a pool.
    """
    if options.pool:
        chosen = set(pool_members(options.pool))
    elif options.all or options.exclude:
        chosen = guests.keys() - set(options.exclude or ())
    else:
        chosen = set(options.vmid or ())
    found: dict[str, list[int]] = {}
    for vmid in sorted(chosen):
        node = guests.get(vmid, "")
        if not options.node or node in ("", options.node):
            found.setdefault(node, []).append(vmid)
    return found
