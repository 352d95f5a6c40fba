"""QEMU's command line of a guest, as libvirt would start it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

from pvetools.config import guest as config
from pvetools.guest.qemu import hypervisor, prepare
from pvetools.guest.qemu.place import domain_name
from pvetools.system.errors import NotFound

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
    words = list(_normalised(vmid, hypervisor.check(vmid, _without_taps(domain.xml))))
    words = _with_taps(words, domain.xml)
    return _pretty(words) if pretty else shlex.join(words)


def _without_taps(xml: str) -> str:
    """Cards behind QEMU's own NAT: libvirt forgets addresses of bridged cards when it only prints the command."""
    xml = re.sub(r'<interface type="bridge">', '<interface type="user">', xml)
    xml = re.sub(r"\n *<source bridge=[^\n]*\n *<target dev=[^\n]*", "", xml)
    return re.sub(r"\n *<driver (queues|rx_queue_size)=[^\n]*", "", xml)


def _with_taps(words: list[str], xml: str) -> list[str]:
    """Put the taps back in place of the NAT."""
    cards = re.findall(r'<interface type="(bridge|user)">(.*?)</interface>', xml, re.DOTALL)
    out = list(words)
    for number, (kind, body) in enumerate(cards):
        tap = re.search(r'<target dev="([^"]+)"', body)
        queues = re.search(r'queues="(\d+)"', body)
        if kind == "bridge" and tap:
            _replace_backend(out, f"hostnet{number}", tap[1], int(queues[1]) if queues else 0)
    return out


def _replace_backend(words: list[str], name: str, tap: str, queues: int) -> None:
    for place, word in enumerate(words):
        if not word.startswith("{"):
            continue
        fields = json.loads(word)
        if words[place - 1] == "-netdev" and fields.get("id") == name:
            more = {"queues": queues} if queues else {}
            words[place] = _json({"type": "tap", "ifname": tap, "script": "no", "id": name, **more})
        elif words[place - 1] == "-device" and fields.get("netdev") == name and queues:
            words[place] = _json({**fields, "mq": True, "vectors": 2 * queues + 2})


def _json(fields: dict[str, object]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _normalised(vmid: int, words: list[str]) -> Iterator[str]:
    """Without the environment, and with the number that libvirt gives a running domain left out of paths."""
    name = domain_name(vmid)
    started = False
    for word in words:
        started = started or not _ENVIRONMENT.fullmatch(word)
        if started:
            yield word.replace(f"domain--1-{name}", f"domain-{name}")


def _pretty(words: list[str]) -> str:
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-") and len(word) > 1:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)
