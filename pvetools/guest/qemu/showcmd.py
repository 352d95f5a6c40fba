"""QEMU's command line of a guest, as libvirt would start it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

from pvetools.config import guest as config
from pvetools.guest.qemu import hypervisor, prepare
from pvetools.guest.qemu.place import domain_name
from pvetools.system.errors import NotFound

# libvirt's folder of a domain, with a number in place of -1 while it runs; long names are cut
_FOLDER = re.compile(r"domain--1-[^/]+/")
_ENVIRONMENT = re.compile(r"[A-Z_]+=.*")


def command_line(vmid: int, *, pretty: bool = False, snapshot: str = "") -> str:
    """The command line, quoted for a shell; ``pretty`` puts each option on a line of its own.

    Nothing is started, and volumes and bridges need not exist.

    Raises:
        NotFound: no such guest or snapshot. Refused: an option that is not supported yet.
    """
    current = config.load("qemu", vmid)
    if snapshot and snapshot not in current.snapshots:
        raise NotFound(f"snapshot '{snapshot}' does not exist")
    domain = prepare.domain_of(current, snapshot=snapshot, strict=False)
    words = list(_normalised(vmid, hypervisor.check(vmid, domain)))
    words = _with_cards(words, domain.xml, q35='"pcie-root"' in domain.xml)
    return _pretty(words) if pretty else shlex.join(words)


def _with_cards(words: list[str], xml: str, *, q35: bool) -> list[str]:
    """Put in what libvirt leaves out of a command that it only prints: where the cards are, and their taps."""
    from xml.etree import ElementTree

    out = list(words)
    root = ElementTree.fromstring(xml)  # noqa: S314 - our own text
    for card in root.iterfind("devices/interface"):
        for place, word in enumerate(out):
            if out[place - 1] == "-device" and word.startswith("{"):
                device = json.loads(word)
                if device.get("mac") == _attribute(card, "mac", "address"):
                    out[place] = _json({**device, **_device(card, q35=q35)})
                    _set_backend(out, device["netdev"], card)
    return out


def _attribute(card: Any, child: str, name: str) -> str | None:
    found = card.find(child)
    return None if found is None else found.get(name)


def _device(card: Any, *, q35: bool) -> dict[str, object]:
    """Fields of a card's device that libvirt left out."""
    fields: dict[str, object] = {"id": _attribute(card, "alias", "name")}
    bus, slot = _attribute(card, "address", "bus"), _attribute(card, "address", "slot")
    if bus and slot:
        number = int(bus, 16)
        fields |= {"bus": f"pci.{number}" if number or not q35 else "pcie.0", "addr": f"0x{int(slot, 16):x}"}
    for name, child, attribute in (
        ("bootindex", "boot", "order"), ("rx_queue_size", "driver", "rx_queue_size"), ("host_mtu", "mtu", "size"),
    ):  # fmt: skip
        value = _attribute(card, child, attribute)
        if value:
            fields[name] = int(value)
    queues = int(_attribute(card, "driver", "queues") or 0)
    return {**fields, "mq": True, "vectors": 2 * queues + 2} if queues else fields


def _set_backend(words: list[str], name: str, card: Any) -> None:
    tap = _attribute(card, "target", "dev")
    queues = int(_attribute(card, "driver", "queues") or 0)
    fields = {"type": "tap", "ifname": tap, "script": "no", "id": name} if tap else {"type": "user", "id": name}
    for place, word in enumerate(words):
        if words[place - 1] == "-netdev" and word.startswith("{") and json.loads(word).get("id") == name:
            words[place] = _json({**fields, **({"queues": queues} if queues else {})})


def _json(fields: dict[str, object]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _normalised(vmid: int, words: list[str]) -> Iterator[str]:
    """Without the environment, and with the number that libvirt gives a running domain left out of paths."""
    name = domain_name(vmid)
    started = False
    for word in words:
        started = started or not _ENVIRONMENT.fullmatch(word)
        if started:
            yield _FOLDER.sub(f"domain-{name}/", word)


def _pretty(words: list[str]) -> str:
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-") and len(word) > 1:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)
