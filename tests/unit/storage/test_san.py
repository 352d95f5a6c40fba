"""What the storages of a SAN read and refuse before they ask anybody: portals, names, listings of tools."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pvetools.storage import iscsi, registry, san, scan, volumes
from pvetools.storage.san import Portal
from pvetools.system import paths
from pvetools.system.errors import NotFound, PveError

DEFINED = """\
iscsi: one
	portal 10.0.0.1
	target iqn.2003-01.org.example:disks

nvmeof: two
	portal 10.0.0.1
	target nqn.2014-08.org.nvmexpress:disks

iscsidirect: three
	portal [fd00::1]:3261
	target iqn.2003-01.org.example:disks
"""


@pytest.fixture(autouse=True)
def defined(root: Path) -> None:
    paths.storage_config().write_text(DEFINED)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 3260), ("10.0.0.1:3261", "10.0.0.1", 3261), ("san", "san", 3260),
        ("san.example.org:1", "san.example.org", 1), ("fd00::1", "fd00::1", 3260), ("[fd00::1]", "fd00::1", 3260),
        ("[fd00::1]:3261", "fd00::1", 3261),
    ],
)  # fmt: skip
def test_a_portal_is_an_address_or_a_name_with_or_without_a_port(text: str, host: str, port: int) -> None:
    found = san.portal(text, 3260)
    assert found == (host, port)
    assert str(found) == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    assert san.portal(str(found), 1) == found


def test_of_several_portals_those_that_answer_are_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        places = [Portal(*made.getsockname()) for made in (one, other)]
        assert san.answering([Portal("127.0.0.1", 9), *places, places[0]]) == places
    with pytest.raises(PveError, match=r"^portal '127\.0\.0\.1:9' does not answer: Connection refused$"):
        san.answering([Portal("127.0.0.1", 9), Portal("127.0.0.1", 10)])


def test_paths_whose_names_udev_has_shared_out_are_one_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(san, "BY_ID", tmp_path)
    for name, device in (
        ("scsi-3600", "sdb"),
        ("scsi-SLIO_x", "sdc"),
        ("wwn-0x600", "sdc"),
        ("scsi-3600-part1", "sdb1"),
    ):
        (tmp_path / name).symlink_to(f"../../{device}")
    names = san.stable_names(("scsi-3", "scsi-"))
    assert names == {"sdb": (0, "scsi-3600"), "sdc": (1, "scsi-SLIO_x")}
    assert [*san.best({name: device for device, name in names.items()})] == [("scsi-3600", "sdb")]
    others = {san.StableName(0, "scsi-3600"): "sdb", san.StableName(0, "scsi-3601"): "sdd"}  # two LUNs with one number
    assert [*san.best(others)] == [("scsi-3600", "sdb"), ("scsi-3601", "sdd")]


def test_a_volume_is_found_by_each_name_of_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(san, "BY_ID", tmp_path)
    for name, device in (("scsi-3600", "sdb"), ("scsi-SLIO_x", "sdb"), ("scsi-3601", "sdc"), ("scsi-SATA_own", "sda")):
        (tmp_path / name).symlink_to(f"../../{device}")
    driver = registry.driver(volumes.get("one"))
    luns = [san.Lun("0.0.1.scsi-3600", "sdb"), san.Lun("0.0.2.scsi-3601", "sdc")]
    monkeypatch.setattr(driver, "luns", lambda: luns)
    for name in ("0.0.1.scsi-3600", "0.0.1.scsi-SLIO_x", "0.0.7.scsi-SLIO_x"):
        assert driver.source(name).path == tmp_path / "scsi-3600"
    assert driver.source("0.0.1.scsi-3601").path == tmp_path / "scsi-3601"
    for name in ("0.0.1.scsi-SATA_own", "0.0.1.scsi-3602"):  # a disk of the host, and nothing
        with pytest.raises(NotFound):
            driver.source(name)


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_name_that_can_be_none_is_told(host: str) -> None:
    with pytest.raises(PveError, match=rf"^portal '{host}:3260' has no address: the name '{host}' is not known$"):
        san.reach(Portal(host, 3260))


@pytest.mark.parametrize(
    ("volid", "place"),
    [
        ("one:0.0.1.scsi-36001405f3a7e0000000000000000000a", "/dev/disk/by-id/scsi-36001405f3a7e0000000000000000000a"),
        ("one:0.0.255.scsi-SIET_VIRTUAL-DISK", "/dev/disk/by-id/scsi-SIET_VIRTUAL-DISK"),
        ("one:0.0.1.dm-uuid-mpath-36001405f3a", "/dev/disk/by-id/dm-uuid-mpath-36001405f3a"),
        ("two:ns1.nvme-uuid.83a9c8f9-cc6b-4d8f-ac4a-36d46a6bc35a",
         "/dev/disk/by-id/nvme-uuid.83a9c8f9-cc6b-4d8f-ac4a-36d46a6bc35a"),
        ("two:ns12.nvme-eui.0025385b21404a9c", "/dev/disk/by-id/nvme-eui.0025385b21404a9c"),
    ],
)  # fmt: skip
def test_a_volume_is_named_by_its_place_at_the_server_and_its_device_here(volid: str, place: str) -> None:
    assert str(volumes.path(volid)) == place
    found = volumes.parse(volid)
    assert (found.content, found.format, found.vmid) == ("images", "raw", None)


@pytest.mark.parametrize(
    "volid",
    [
        "one:scsi-36001405f3a", "one:0.0.1.sda", "one:0.0.1.scsi-", "one:0.0.1.scsi-../../sda", "one:0.0.1.scsi-a b",
        "one:0.0.x.scsi-3600", "one:-1.0.0.scsi-3600", "one:0.0.1.scsi-3600\n", "one:vm-100-disk-0", "one:lun1",
        "two:1.nvme-uuid.83a9", "two:ns1.scsi-3600", "two:ns1.nvme-/x", "two:ns.nvme-eui.00", "three:lun",
        "three:lun-1", "three:1", "three:lun١", "three:lun1/2",
    ],
)  # fmt: skip
def test_other_names_are_refused(volid: str) -> None:
    for act in (volumes.path, volumes.parse):
        with pytest.raises(PveError, match="unable to parse"):
            act(volid)


@pytest.mark.parametrize("target", ["-x", "--help", "iqn.2003-01.org.example:a b", "x/y", "a" * 300])
@pytest.mark.parametrize("kind", ["iscsi", "nvmeof", "iscsidirect"])
def test_targets_that_could_mean_something_else_reach_no_tool(kind: str, target: str) -> None:
    paths.storage_config().write_text(f"{kind}: bad\n\tportal 127.0.0.1\n\ttarget {target}\n")
    with pytest.raises(PveError):
        _ = registry.driver(volumes.get("bad")).target  # type: ignore[attr-defined]


def test_the_listing_of_iscsiadm_is_read() -> None:
    said = """\
10.0.0.1:3260,1 iqn.2003-01.org.example:disks
[fd00::1]:3261,1 iqn.2003-01.org.example:disks
10.0.0.2:3260,4294967295 iqn.2003-01.org.example:other
iscsiadm: nothing else
"""
    assert [*iscsi.portals(said)] == [
        (Portal("10.0.0.1", 3260), "iqn.2003-01.org.example:disks"),
        (Portal("fd00::1", 3261), "iqn.2003-01.org.example:disks"),
        (Portal("10.0.0.2", 3260), "iqn.2003-01.org.example:other"),
    ]


@pytest.mark.parametrize(
    ("username", "password"), [("one\ntwo", "x"), ("one", "x\ndomain = other"), ("one\0", "x"), ("one", "\r")]
)
def test_a_login_with_line_breaks_is_refused_before_a_server_is_asked(username: str, password: str) -> None:
    with pytest.raises(PveError, match=r"^the (username|password) must not contain line breaks$"):
        scan.cifs("127.0.0.1", username, password)
