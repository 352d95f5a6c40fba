"""Libvirt takes every definition that we make, and QEMU's command line is shown as it would be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.real.qemu.machine import create
from tests.sandbox.root import Root
from tests.unit.qemu.places import define

GOLDEN = Path(__file__).parents[2] / "golden/qemu"
# hosts differ in what they have of these
NEEDS = {"numa": "a second NUMA node and huge pages"}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.xml")), ids=lambda path: path.stem)
def test_libvirt_accepts(path: Path) -> None:
    from pvetools.guest.qemu import hypervisor

    if path.stem in NEEDS:
        pytest.skip(f"needs {NEEDS[path.stem]}")
    domain = define(path.with_suffix(".conf").read_text())
    xml = domain.xml
    if not Path("/dev/kvm").exists():
        xml = xml.replace('type="kvm"', 'type="qemu"').replace("host-passthrough", "maximum")
    assert hypervisor.check(100, domain._replace(xml=xml))


def test_the_command_line_can_be_read_and_names_disks_and_taps(root: Root) -> None:
    create(
        root, 100, "--scsi0", "local:1", "--scsihw", "virtio-scsi-pci", "--name", "web", "--machine", "q35",
        "--net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0",
    )  # fmt: skip
    line = root.cli("qm", "showcmd", 100, ok=True).stdout
    pretty = root.cli("qm", "showcmd", 100, "--pretty", ok=True).stdout
    assert line.count("\n") == 1
    assert line.startswith("/usr/bin/qemu-system-x86_64 -name guest=")
    assert pretty.replace(" \\\n  ", " ") == line
    assert str(root / "var/lib/vz/images/100/vm-100-disk-0.raw") in line
    assert '"type":"tap","ifname":"t' in line
    assert '"mac":"bc:24:11:00:00:01","bus":"pci.6","addr":"0x12","bootindex":2' in line
    assert "domain--1-" not in line
    assert root.running() == {}


def memory(line: str) -> int:
    """MiB in a command line of QEMU; newer versions of libvirt write them as KiB with a name."""
    found = re.search(r" -m (?:size=(\d+)k|(\d+)) ", line)
    assert found, line
    return int(found[1]) // 1024 if found[1] else int(found[2])


def test_the_command_line_of_a_snapshot_is_that_of_its_options(root: Root) -> None:
    create(root, 100)
    with root.config(100).open("a") as file:
        file.write("\n[before]\nkvm: 0\nmemory: 1024\nsnaptime: 1700000000\n")
    assert memory(root.cli("qm", "showcmd", 100, ok=True).stdout) == 64
    assert memory(root.cli("qm", "showcmd", 100, "--snapshot", "before", ok=True).stdout) == 1024
    missing = root.cli("qm", "showcmd", 100, "--snapshot", "after")
    assert missing.status != 0
    assert "after" in missing.stderr
