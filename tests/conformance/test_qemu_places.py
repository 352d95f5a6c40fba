"""Devices are where Proxmox VE puts them: PCI bus and slot of each device in the public command lines.

Our command lines come from libvirt and differ in form, so only what a guest can see is compared. Configurations that
we refuse (their options are not supported yet) are left out; how many are compared is checked, so that a change which
refuses too much is noticed.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pvetools.config import guest
from pvetools.guest.qemu import domain
from pvetools.options.qemu import QemuOptions
from pvetools.schema.core import NestedErrors
from pvetools.system.errors import Refused
from tests.conformance.loader import FOLDER
from tests.unit.qemu.places import place

CASES = sorted((FOLDER / "qemu-cmdline").glob("*.cmd"))
AT_LEAST = 25
# devices whose place is compared: id in the command line -> how we know the device
SIMPLE = {"vga": "video", "balloon0": "memballoon", "ahci0": "controller:sata", "qga0": "controller:virtio-serial"}


def section(path: Path) -> dict[str, str]:
    parsed = guest.parse("qemu", 100, path.read_text(), path).current
    return {key: value for key, value in parsed.items() if value}


def expected(path: Path) -> dict[str, tuple[str, int]]:
    """Device id -> (bus, slot)."""
    found: dict[str, tuple[str, int]] = {}
    for word in shlex.split(path.read_text().replace("\\\n", " ")):
        fields = dict(part.partition("=")[::2] for part in word.split(","))
        if {"id", "bus", "addr"} <= fields.keys() and re.fullmatch(r"pcie?\.\d+", fields["bus"]):
            found[fields["id"]] = (fields["bus"], int(fields["addr"].partition(".")[0], 16))
    return found


def ours(xml: str) -> dict[str, tuple[str, int]]:
    """The same from a definition, with buses named as in Proxmox VE."""
    root = ElementTree.fromstring(xml)
    q35 = root.find("devices/controller[@model='pcie-root']") is not None
    found: dict[str, tuple[str, int]] = {}
    for device in root.iterfind("devices/*"):
        address = device.find("address[@type='pci']")
        name = _name(device)
        if name and address is not None:
            bus = int(address.get("bus", ""), 16)
            named = "pcie.0" if q35 and bus == 0 else f"pci.{bus - 6 if q35 else bus}"
            found[name] = (named, int(address.get("slot", ""), 16))
    return found


def _name(device: ElementTree.Element) -> str:
    alias = device.find("alias")
    if alias is not None:
        return alias.get("name", "").removeprefix("ua-")
    if device.get("type") == "scsi":
        single = device.get("model") == "virtio-scsi" and int(device.get("index", "0")) > 1
        return f"{'virtioscsi' if single else 'scsihw'}{device.get('index')}"
    kind = f"controller:{device.get('type')}" if device.tag == "controller" else device.tag
    return next((name for name, known in SIMPLE.items() if known == kind), "")


def compared(path: Path) -> dict[str, tuple[tuple[str, int], tuple[str, int]]] | None:
    """Devices that both have, with both places; None when we refuse the configuration."""
    try:
        made = domain.define(QemuOptions.read(section(path.with_suffix(".conf"))), place(vmid=8006))
    except (Refused, NestedErrors):
        return None
    there, here = expected(path), ours(made.xml)
    return {name: (there[name], here[name]) for name in there.keys() & here.keys()}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_devices_are_where_guests_expect_them(path: Path) -> None:
    found = compared(path)
    if found is None:
        pytest.skip("an option of this configuration is not supported yet")
    assert {name: here for name, (_, here) in found.items()} == {name: there for name, (there, _) in found.items()}


@pytest.mark.skipif(not CASES, reason="no public cases")
def test_enough_configurations_are_compared() -> None:
    assert sum(bool(compared(path)) for path in CASES) >= min(AT_LEAST, len(CASES) // 3)
