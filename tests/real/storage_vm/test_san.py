"""LUNs and namespaces that the kernel brings here: the contract of foreign storages, several paths, servers that go."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.storage import defining, registry, volumes
from pvetools.system import paths, run
from pvetools.system.errors import PveError, Refused
from tests.real.storage_vm import san_beds
from tests.real.storage_vm.beds import STORAGE, sh
from tests.real.storage_vm.contract import holds, put
from tests.real.storage_vm.foreign import *  # noqa: F403 - the tests are the point
from tests.real.storage_vm.foreign import Server
from tests.real.storage_vm.san_beds import HOSTS, Portals, eventually

BEDS = {"iscsi": san_beds.lio, "nvmeof": san_beds.nvmet}


@pytest.fixture(scope="module", params=BEDS)
def portals(request: pytest.FixtureRequest, module_root: Path) -> Iterator[Portals]:
    with BEDS[request.param]() as made:
        made.server.define()
        yield made


@pytest.fixture(scope="module")
def server(portals: Portals) -> Server:
    return portals.server


def driver() -> registry.Driver:
    return registry.driver(volumes.get(STORAGE))


def forget() -> None:
    """As if the storage had not been looked at for a while."""
    for stamp in paths.run_dir().glob("san-*"):
        stamp.unlink()


# Coming and going.


@pytest.mark.core
def test_all_portals_of_a_target_are_connected_and_left_again(portals: Portals) -> None:
    driver().deactivate()
    assert portals.connected() == []
    volumes.usable(STORAGE)
    assert portals.connected() == [*HOSTS]
    volumes.usable(STORAGE)
    forget()
    volumes.usable(STORAGE)
    assert portals.connected() == [*HOSTS]
    driver().deactivate()
    assert portals.connected() == []
    driver().deactivate()


def test_each_volume_is_listed_once_however_many_paths_there_are(portals: Portals) -> None:
    volumes.usable(STORAGE)
    assert portals.connected() == [*HOSTS]
    listed = [row.volid for row in volumes.list_volumes(STORAGE)]
    assert len(listed) == len({*listed}) == len(portals.server.backing)
    assert all(re.fullmatch(r"store:(0\.0\.[01]\.scsi-3\w+|ns[17]\.nvme-uuid\.[0-9a-f-]+)", volid) for volid in listed)


def test_what_is_active_is_not_asked_again_at_once(portals: Portals, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes.usable(STORAGE)
    asked: list[object] = []
    real = run.run
    monkeypatch.setattr(run, "run", lambda argv, **more: (asked.append(argv), real(argv, **more))[1])
    for _ in range(20):
        volumes.usable(STORAGE)
    assert len(asked) <= 2, asked


@contextlib.contextmanager
def mounted(volid: str) -> Iterator[None]:
    device = volumes.source(volid).path
    sh(f"mkfs.ext4 -qF {device}; mkdir -p /mnt/lun; mount {device} /mnt/lun")
    try:
        yield
    finally:
        sh(f"umount /mnt/lun; wipefs -qa {device}")


def test_nobody_loses_a_volume_in_use(portals: Portals) -> None:
    volid = portals.server.volume()
    stays = f"storage 'store' stays connected to '{driver().definition.options.target}': "
    with mounted(volid):
        with pytest.raises(Refused, match=f"{stays}volume '{volid}' is in use by the mount '/mnt/lun'"):
            driver().deactivate()
        assert portals.connected() == [*HOSTS]
        Path("/mnt/lun/file").write_text("still here")
        sh("sync")
    driver().deactivate()
    assert portals.connected() == []


def test_a_connection_that_another_storage_needs_stays(portals: Portals) -> None:
    volumes.usable(STORAGE)
    second = portals.server.section.replace(STORAGE, "second").replace(HOSTS[0], HOSTS[1])
    paths.storage_config().write_text(f"{portals.server.section}\n{second}")
    with pytest.raises(Refused, match="storage 'second' uses it as well"):
        driver().deactivate()
    assert portals.connected() == [*HOSTS]
    assert len(volumes.list_volumes("second")) == len(portals.server.backing)
    portals.server.define()


# Paths that fail.


def test_one_portal_is_enough(portals: Portals) -> None:
    driver().deactivate()
    portals.close(HOSTS[1])
    try:
        volid = portals.server.volume()
        assert portals.connected() == [HOSTS[0]]
        put(volid, 0x21)
        assert holds(volid, 0x21)
    finally:
        portals.open(HOSTS[1])
    forget()
    volumes.usable(STORAGE)
    eventually("both portals are connected", lambda: portals.connected() == [*HOSTS])


def test_the_configured_portal_may_be_the_one_that_is_down(portals: Portals) -> None:
    volid = portals.server.volume()
    portals.close(HOSTS[0])
    try:
        eventually("the path is lost", lambda: portals.connected() == [HOSTS[1]])
        forget()
        assert volumes.status(STORAGE)[0].active
        assert volumes.exists(volid)
    finally:
        portals.open(HOSTS[0])
    forget()
    volumes.usable(STORAGE)
    eventually("both portals are connected", lambda: portals.connected() == [*HOSTS])


def test_a_server_that_is_down_is_inactive_and_others_are_not(portals: Portals) -> None:
    driver().deactivate()
    for host in HOSTS:
        portals.close(host)
    try:
        start = time.monotonic()
        rows = {row.definition.id: row for row in volumes.status()}
        assert time.monotonic() - start < 13
        assert rows["local"].active
        assert not rows[STORAGE].active
        assert re.search(r"portal '127\.0\.0\.1:\d+' does not answer: Connection refused", rows[STORAGE].reason)
    finally:
        for host in HOSTS:
            portals.open(host)
    assert volumes.status(STORAGE)[0].active


def test_a_server_that_says_nothing_is_inactive_and_others_are_not(portals: Portals) -> None:
    with socket.create_server(("127.0.0.3", 3333)):
        target = str(driver().definition.options.target)
        section = portals.server.section.replace(HOSTS[0], "127.0.0.3:3333").replace(STORAGE, "mute")
        paths.storage_config().write_text(section.replace(target, f"{target}-of-nobody"))
        start = time.monotonic()
        rows = {row.definition.id: row for row in volumes.status()}
        assert time.monotonic() - start < 16
        assert rows["local"].active
        assert not rows["mute"].active
        assert "mute" in rows["mute"].reason
    portals.server.define()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("portal", "127.0.0.1:9", "portal '127.0.0.1:9' does not answer: Connection refused"),
        ("portal", "no.such.host.invalid", "the name 'no.such.host.invalid' is not known"),
        ("target", "iqn.2024-01.org.example:none", "does not offer the "),
        ("target", "-x", "of option 'target' does not look like"),
        ("target", "iqn.2024-01.org.example:a b", "of option 'target' does not look like"),
    ],
)
def test_what_is_not_there_cannot_be_added(portals: Portals, option: str, value: str, reason: str) -> None:
    found = driver().definition
    given = {"portal": HOSTS[0], "target": str(found.options.target), option: value}
    with pytest.raises(PveError, match=reason):
        defining.add("bad", found.type, given)
    assert "bad" not in paths.storage_config().read_text()


# Volume groups on volumes.


@pytest.fixture
def one_device(portals: Portals) -> Iterator[None]:
    """LVM wants a volume to be one device: of iSCSI's paths multipathd makes one, of NVMe's the kernel."""
    driver().deactivate()
    joining = san_beds.multipathd() if driver().definition.type == "iscsi" else contextlib.nullcontext()
    with joining, san_beds.lvm_knows_no_server():
        yield
        driver().deactivate()


def test_a_volume_group_lies_on_a_volume(portals: Portals, one_device: None) -> None:
    portals.server.define("content none")
    base = portals.server.volume(-1)
    defining.add("onsan", "lvm", {"vgname": "vgsan", "base": base, "shared": "1", "content": "images"})
    try:
        volid = volumes.alloc("onsan", 100, 64 << 20)
        put(volid, 0x71)
        assert holds(volid, 0x71)
        with pytest.raises(Refused, match=f"can't be removed: storage 'onsan' lies on its volume '{base}'"):
            defining.remove(STORAGE)
        sh("vgchange -an -q vgsan")
        driver().deactivate()
        assert portals.connected() == []
        assert holds(volid, 0x71)  # the group's storage brings its base back
        assert portals.connected() == [*HOSTS]
        volumes.free(volid)
    finally:
        sh("vgremove -qfy vgsan; pvremove -qffy $(pvs --noheadings -o pv_name -S vg_name='')", check=False)
        portals.server.define()
        with contextlib.suppress(PveError):
            sh(f"wipefs -qa {volumes.source(base).path}", check=False)


# Several paths to a LUN as one device.


@pytest.fixture
def joined(portals: Portals) -> Iterator[Portals]:
    if driver().definition.type != "iscsi":
        pytest.skip("the kernel joins the paths of NVMe itself")
    driver().deactivate()
    with san_beds.multipathd():
        yield portals
        driver().deactivate()
        assert portals.connected() == []


def _map_of(volid: str) -> str:
    device = Path(os.path.realpath(volumes.source(volid).path)).name
    return san_beds.attribute(Path("/sys/class/block", device, "dm/uuid"))


def test_the_device_above_the_paths_is_used(joined: Portals) -> None:
    volid = joined.server.volume()
    eventually("the paths are one device", lambda: _map_of(volid).startswith("mpath-"))
    assert joined.server.volume() == volid
    assert sorted(row.size for row in volumes.list_volumes(STORAGE)) == sorted(joined.server.backing)
    put(volid, 0x31)
    joined.close(HOSTS[0])
    try:
        put(volid, 0x32, 1 << 20)
        assert holds(volid, 0x31)
        assert holds(volid, 0x32, 1 << 20)
    finally:
        joined.open(HOSTS[0])
    eventually("the path is back", lambda: joined.connected() == [*HOSTS], 90)


def test_a_joined_device_in_use_stays(joined: Portals) -> None:
    volid = joined.server.volume()
    eventually("the paths are one device", lambda: _map_of(volid).startswith("mpath-"))
    with mounted(volid):
        with pytest.raises(Refused, match="is in use by the mount '/mnt/lun'"):
            driver().deactivate()
        assert joined.connected() == [*HOSTS]
        assert _map_of(volid).startswith("mpath-")


# The server's own changes.


def test_qemu_reaches_the_same_luns_itself(portals: Portals) -> None:
    if driver().definition.type != "iscsi":
        pytest.skip("QEMU has no client for NVMe over TCP")
    put(portals.server.volume(), 0x41)
    direct = portals.server.section.replace(f"iscsi: {STORAGE}", "iscsidirect: direct")
    paths.storage_config().write_text(f"{portals.server.section}\n{direct}")
    rows = volumes.list_volumes("direct")
    assert [(row.volid, row.size) for row in rows] == [
        ("direct:lun0", san_beds.DISK_SIZE),
        ("direct:lun1", san_beds.IMAGE_SIZE),
    ]
    assert holds("direct:lun1", 0x41)
    portals.server.define()


def test_a_volume_that_has_grown_on_the_server_is_as_large_here(portals: Portals, one_device: None) -> None:
    volid = portals.server.volume()
    san_beds.grow(2 * san_beds.IMAGE_SIZE)
    forget()
    volumes.usable(STORAGE)
    eventually("the volume has grown", lambda: volumes.info(volid).size == 2 * san_beds.IMAGE_SIZE)
