"""A command line that is only shown names the volumes of storages that nobody activates for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvetools.guest.qemu import host
from pvetools.guest.qemu.place import Source
from pvetools.options.drive import Drive
from pvetools.storage import definition, registry
from pvetools.system import paths
from pvetools.system.errors import PveError

STORAGES = """\
nfs: share
\tserver 192.0.2.1
\texport /x
\tpath /mnt/pve/share
\tcontent images,iso

rbd: ceph
\tmonhost 192.0.2.1
\tpool vms
\tusername me
\tcontent images

rbd: krbd
\tmonhost 192.0.2.1
\tpool vms
\tkrbd 1
\tcontent images

lvm: lvm
\tvgname vg
\tcontent images

iscsi: lun
\tportal 192.0.2.1
\ttarget iqn.2003-01.org.linux-iscsi:disks
\tcontent images
"""


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storages of servers that do not answer; whoever activates one or asks for a volume fails."""
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    paths.etc_pve().mkdir(parents=True)
    paths.storage_config().write_text(STORAGES)

    def touched(*_: object) -> None:
        raise AssertionError("touched")

    for storage in ("share", "ceph", "krbd", "lvm", "lun"):
        kind = type(registry.driver(definition.get(storage)))
        for method in ("activate", "source", "mountable", "require"):
            if hasattr(kind, method):
                monkeypatch.setattr(kind, method, touched)


@pytest.mark.parametrize(
    ("volid", "path", "form", "block"),
    [
        ("share:100/vm-100-disk-0.qcow2", "/mnt/pve/share/images/100/vm-100-disk-0.qcow2", "qcow2", False),
        ("krbd:vm-100-disk-0", "/dev/rbd/vms/vm-100-disk-0", "raw", True),
        ("lvm:vm-100-disk-0", "/dev/vg/vm-100-disk-0", "raw", True),
        ("lun:0.0.1.scsi-36001405f3a", "/dev/disk/by-id/scsi-36001405f3a", "raw", True),
    ],
)
def test_volumes_are_named_as_they_would_be_found(
    untouched: None, volid: str, path: str, form: str, block: bool
) -> None:
    found = told(volid)
    assert (found.path, found.format, found.block) == (path, form, block)
    assert found.network is None


def test_volumes_on_servers_as_qemu_would_ask_for_them(untouched: None) -> None:
    network = told("ceph:vm-100-disk-0").network
    assert network is not None
    assert (network.protocol, network.name) == ("rbd", "vms/vm-100-disk-0")
    assert network.hosts == (("192.0.2.1", 3300), ("192.0.2.1", 6789))


def test_the_hints_of_the_storage_count_as_well(untouched: None) -> None:
    assert told("krbd:vm-100-disk-0").io_uring == "direct"


def test_who_starts_a_guest_touches_its_storages(untouched: None) -> None:
    with pytest.raises((AssertionError, PveError)):
        host.source("scsi0", Drive.parse("krbd:vm-100-disk-0"))


def told(volid: str) -> Source:
    return host.source("scsi0", Drive.parse(volid), strict=False)
