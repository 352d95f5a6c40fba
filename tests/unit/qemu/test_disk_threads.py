"""Disks get threads of their own where QEMU bears that: older ones abort at the end of a backup of such a disk."""

from __future__ import annotations

import pytest

from pvetools.guest.qemu import host, hypervisor
from tests.unit.qemu.places import define

TEXT = "kvm: 0\nscsihw: virtio-scsi-single\nscsi0: local:100/a.raw,iothread=1\nvirtio1: local:100/b.raw,iothread=1\n"


def test_disks_have_threads_of_their_own() -> None:
    made = define(TEXT)
    assert made.xml.count("<iothread ") == 2
    assert made.warnings == []


def test_where_that_would_end_the_guest_there_are_none_and_it_is_told() -> None:
    made = define(TEXT, threads=False)
    assert "iothread" not in made.xml
    assert [warning.partition(":")[0] for warning in made.warnings] == ["scsi0", "virtio1"]
    assert "iothread=1 has no effect" in made.warnings[0]


@pytest.mark.parametrize(("version", "bears"), [("7.2.22", False), ("8.1.5", False), ("8.2.2", True), ("10.0", True)])
def test_which_qemu_bears_them(version: str, bears: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor, "version", lambda: version)
    assert host.bears_threads() == bears
