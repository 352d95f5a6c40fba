"""Starting and stopping all guests of the node in the order of their ``startup`` option."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from pvetools.api import tree
from pvetools.schema.formats import Startup
from pvetools.system import log, paths, workers
from pvetools.system.errors import NotFound

LAST = 1 << 31  # place of guests without an order
WORDS: Mapping[str, str] = {"qemu": "VM", "lxc": "CT"}


class Guest(NamedTuple):
    """What matters of a guest when all are started or stopped; ``up`` and ``down`` in seconds."""

    order: int
    vmid: int
    kind: str
    up: int
    down: int | None
    onboot: bool
    template: bool
    running: bool

    @property
    def label(self) -> str:
        return f"{WORDS[self.kind]} {self.vmid}"


def start(vmids: Sequence[int] | None, *, force: bool, workers: int) -> None:
    """Start the guests with ``onboot`` (with ``force`` all), low orders first; one that fails is a warning.

    Raises:
        NotFound: one of ``vmids`` does not exist.
    """
    chosen = [guest for guest in guests(vmids) if (guest.onboot or force) and not (guest.running or guest.template)]
    for group in _in_order(chosen):
        for guest in group:
            log.emit(f"starting {guest.label}")
        _run(group, "start", lambda guest: {}, workers)
        pause = max(guest.up for guest in group)
        if pause and group[-1] is not chosen[-1]:
            log.emit(f"waiting for {pause} seconds (startup delay)")
            time.sleep(pause)


def stop(vmids: Sequence[int] | None, *, force: bool, timeout: int, workers: int) -> None:
    """Shut the running guests down, high orders first; ``down`` or else ``timeout`` is the time each has.

    Raises:
        NotFound: one of ``vmids`` does not exist.
    """

    def options(guest: Guest) -> dict[str, str]:
        seconds = timeout if guest.down is None else guest.down
        return {"timeout": str(seconds), "forceStop": "1" if force else "0"}

    for group in _in_order([guest for guest in guests(vmids) if guest.running], reverse=True):
        for guest in group:
            log.emit(f"shutting down {guest.label} (timeout {options(guest)['timeout']} seconds)")
        _run(group, "shutdown", options, workers)


def guests(vmids: Sequence[int] | None = None) -> list[Guest]:
    """The node's guests, in the order in which they start.

    Raises:
        NotFound: one of ``vmids`` does not exist.
    """
    found = {guest.vmid: guest for kind in paths.CONFIG_FOLDER for guest in _of_kind(kind)}
    for vmid in vmids or ():
        if vmid not in found:
            raise NotFound(f"vms: there is no guest {vmid} on node '{paths.node()}'")
    return sorted(guest for guest in found.values() if vmids is None or guest.vmid in vmids)


def _of_kind(kind: str) -> Iterator[Guest]:
    from pvetools.config import guest as config

    tree.load(kind)
    row, variables = tree.find("GET", f"/nodes/{paths.node()}/{kind}")
    for listed in tree.call(row, variables):
        vmid = int(listed["vmid"])
        try:
            section = config.quick(paths.guest_config(kind, vmid))
        except FileNotFoundError:
            continue
        place = _startup(section.get("startup", ""))
        yield Guest(
            LAST if place.order is None else place.order,
            vmid,
            kind,
            place.up or 0,
            place.down,
            config.is_on(section, "onboot"),
            config.is_on(section, "template"),
            listed.get("status") != "stopped",
        )


def _startup(text: str) -> Startup:
    try:
        return Startup.parse(text)
    except ValueError:
        return Startup()


def _in_order(chosen: Iterable[Guest], *, reverse: bool = False) -> Iterator[list[Guest]]:
    ordered = sorted(chosen, reverse=reverse)
    return (list(group) for _, group in groupby(ordered, key=lambda guest: guest.order))


def _run(group: Sequence[Guest], action: str, options: Callable[[Guest], Mapping[str, str]], limit: int) -> None:
    def job(guest: Guest) -> workers.Job:
        row, variables = tree.find("POST", f"/nodes/{paths.node()}/{guest.kind}/{guest.vmid}/status/{action}")
        return workers.Job(guest.label, lambda: tree.call(row, {**variables, **options(guest)}))

    for label in workers.run([job(guest) for guest in group], limit):
        log.warn(f"{label}: {action} failed")
