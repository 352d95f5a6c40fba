"""Libvirt takes every definition that we make, and QEMU's command line is shown as it would be run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.qemu.machine import create
from tests.sandbox.root import Root

GOLDEN = Path(__file__).parents[2] / "golden/qemu"
# hosts differ in what they have of these
NEEDS = {"numa": "a second NUMA node and huge pages"}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.xml")), ids=lambda path: path.stem)
def test_libvirt_accepts(path: Path) -> None:
    from pvetools.guest.qemu import hypervisor

    if path.stem in NEEDS:
        pytest.skip(f"needs {NEEDS[path.stem]}")
    xml = path.read_text()
    if not Path("/dev/kvm").exists():
        xml = xml.replace('type="kvm"', 'type="qemu"').replace("host-passthrough", "maximum")
    assert hypervisor.check(100, xml)


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


def test_the_command_line_of_a_snapshot_is_that_of_its_options(root: Root) -> None:
    create(root, 100)
    with root.config(100).open("a") as file:
        file.write("\n[before]\nkvm: 0\nmemory: 1024\nsnaptime: 1700000000\n")
    assert "-m 64 " in root.cli("qm", "showcmd", 100, ok=True).stdout
    assert "-m 1024 " in root.cli("qm", "showcmd", 100, "--snapshot", "before", ok=True).stdout
    missing = root.cli("qm", "showcmd", 100, "--snapshot", "after")
    assert missing.status != 0
    assert "after" in missing.stderr
