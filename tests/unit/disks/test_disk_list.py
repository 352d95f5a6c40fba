"""What the list of disks says about the use of a disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.storage.disks import facts, smart
from pvetools.storage.disks import list as disks
from pvetools.storage.disks.list import Block, Content, Facts, Osd

EFI = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
LVM_TYPE = "e6d6d379-f507-44c2-a23c-238f2a3df928"
ZFS_TYPE = "6a898cc3-1dd2-11b2-99a6-080020736631"
ZFS_RESERVED = "6a945a3b-1dd2-11b2-99a6-080020736631"
BARE = Block("sda", 1 << 30, 1)


def with_parts(*parts: Block) -> Block:
    return Block("sda", 1 << 30, 1, partitions=parts)


def part(number: int, *holders: str) -> Block:
    return Block(f"sda{number}", 1 << 20, holders=holders)


def no_health(block: Block, type_: str) -> None:
    return None


@pytest.mark.parametrize(
    ("block", "known", "use"),
    [
        (BARE, {}, ""),
        (BARE, {"lvm": frozenset({"/dev/sda"})}, "LVM"),
        (BARE, {"zfs": frozenset({"/dev/sda"})}, "ZFS"),
        (BARE, {"contents": {"/dev/sda": Content("", "ext4")}}, "ext4"),
        (BARE, {"mounts": {"/dev/sda": "/mnt"}}, "mounted"),
        (BARE, {"contents": {"/dev/sda": Content("", "xfs")}, "mounts": {"/dev/sda": "/mnt"}}, "xfs"),
        (Block("sda", holders=("dm-0",)), {}, "Device Mapper"),
        (with_parts(part(1)), {}, "partitions"),
        (with_parts(part(1, "dm-3")), {}, "Device Mapper"),
        (with_parts(part(1), part(2)), {"contents": {"/dev/sda2": Content(LVM_TYPE)}}, "LVM"),
        (with_parts(part(1), part(9)), {"contents": {"/dev/sda1": Content(ZFS_TYPE, "zfs_member")}}, "ZFS"),
        (with_parts(part(9)), {"contents": {"/dev/sda9": Content(ZFS_RESERVED)}}, "ZFS reserved"),
        (with_parts(part(1), part(2)), {"contents": {"/dev/sda1": Content(BIOS_BOOT)}}, "BIOS boot"),
        (with_parts(part(1)), {"contents": {"/dev/sda1": Content(EFI, "vfat")}}, "EFI"),
        (with_parts(part(1)), {"mounts": {"/dev/sda1": "/"}}, "mounted"),
    ],
)
def test_the_use_of_a_disk(block: Block, known: dict, use: str) -> None:
    assert disks.used(block, Facts((block,), **known)) == use
    row = disks.rows(Facts((block,), **known), no_health)["sda"]
    assert row.get("used", "") == use


def test_partitions_are_listed_behind_their_disk() -> None:
    block = Block("sda", 1 << 30, 1, udev={"ID_PART_TABLE_TYPE": "gpt"}, partitions=(part(1), part(2)))
    known = Facts((block,), contents={"/dev/sda2": Content("", "ext4")}, mounts={"/dev/sda2": "/mnt"})
    found = disks.rows(known, no_health, partitions=True)
    assert [*found] == ["sda", "sda1", "sda2"]
    assert found["sda"]["used"] == "partitions"
    assert found["sda1"] == {
        "devpath": "/dev/sda1", "parent": "/dev/sda", "size": 1 << 20, "type": "partition", "gpt": 1, "osdid": -1,
        "osdid-list": None,
    }  # fmt: skip
    assert found["sda2"]["used"] == "ext4"
    assert found["sda2"]["mounted"] == 1


def test_osds_of_ceph() -> None:
    text = (
        "  /dev/sda(0);osd-block-1f;ceph.osd_id=7,ceph.encrypted=1,ceph.type=block\n"
        "  /dev/sda(2560);osd-block-2a;ceph.osd_id=4,ceph.type=block\n"
        "  /dev/sda(9);osd-db-33;ceph.osd_id=5,ceph.type=db\n"
        "  /dev/sda(12);osd-db-34;ceph.osd_id=6,ceph.type=db\n"
        "  /dev/sdb(0);root;\n"
        "  unknown device(0);osd-block-9;ceph.osd_id=9\n"
    )
    osds = facts.parse_osds(text)
    assert osds == {"/dev/sda": Osd([7, 4], True, True, {"db": 2})}
    row = disks.rows(Facts((BARE,), osds=osds), no_health)["sda"]
    assert (row["osdid"], row["osdid-list"], row["db"]) == (4, [7, 4], 2)
    assert (row["bluestore"], row["osdencrypted"]) == (1, 1)


def test_osds_from_before_they_lay_on_logical_volumes() -> None:
    disk = Block("sda", 1 << 30, 1, partitions=tuple(part(number) for number in range(1, 6)))
    known = Facts(
        (disk,),
        contents={
            "/dev/sda2": Content("45b0969e-9b03-4f30-b4c6-b4b80ceff106"),
            "/dev/sda3": Content("30cd0809-c2b2-499c-8879-2d6b78529876"),
            "/dev/sda4": Content("5ce17fce-4087-4169-b7ff-056cc58473f9"),
        },
        mounts={"/dev/sda1": "/var/lib/ceph/osd/ceph-44", "/dev/sda5": "/var/lib/ceph/osd/ceph-x"},
    )
    row = disks.rows(known, no_health)["sda"]
    assert (row["osdid"], row["osdid-list"], row["bluestore"], row["osdencrypted"]) == (44, [44], 0, 0)
    assert (row["journals"], row["db"], row["wal"]) == (1, 1, 1)
    block = replace(known, contents={"/dev/sda5": Content("cafecafe-9b03-4f30-b4c6-b4b80ceff106")})
    assert disks.rows(block, no_health)["sda"]["bluestore"] == 1


@pytest.mark.parametrize(
    ("wanted", "row", "kept"),
    [
        ("", {"used": "LVM", "osdid": 1}, True),
        ("unused", {"osdid": -1}, True),
        ("unused", {"used": "partitions", "osdid": -1}, False),
        ("journal_disks", {"osdid": -1}, True),
        ("journal_disks", {"osdid": 3}, False),
        ("journal_disks", {"osdid": -1, "used": "LVM"}, True),
        ("journal_disks", {"osdid": -1, "used": "partitions"}, True),
        ("journal_disks", {"osdid": -1, "used": "partitions", "gpt": 0}, False),
        ("journal_disks", {"osdid": -1, "used": "ext4"}, False),
    ],
)
def test_disks_for_a_purpose(wanted: str, row: dict, kept: bool) -> None:
    assert disks.FILTERS[wanted]({"gpt": 1, **row}) == kept


@pytest.mark.parametrize(
    ("block", "type_", "rpm"),
    [
        (Block("sda", rotational=0), "ssd", 0),
        (Block("nvme0n1", rotational=0), "nvme", 0),
        (Block("sda", rotational=1, udev={"ID_ATA_ROTATION_RATE_RPM": "7200"}), "hdd", 7200),
        (Block("sda", rotational=1, udev={"ID_BUS": "usb"}), "usb", 0),
        (Block("vda", rotational=1), "unknown", -1),
        (Block("vda"), "unknown", -1),
    ],
)
def test_types_of_disks(block: Block, type_: str, rpm: int) -> None:
    assert disks.kind(block) == (type_, rpm)


def test_a_solid_state_disk_says_how_much_of_it_is_left() -> None:
    report = smart.Report("PASSED", "ata", attributes=[{"name": "Wear_Leveling_Count", "value": 97}])
    row = disks.rows(Facts((Block("sda", rotational=0),)), lambda block, type_: report)["sda"]
    assert (row["health"], row["wearout"]) == ("PASSED", 97)
    row = disks.rows(Facts((Block("sda", rotational=1),)), lambda block, type_: report)["sda"]
    assert row["wearout"] == "N/A"


def test_names_of_old_array_controllers_have_a_folder() -> None:
    block = Block("cciss!c0d0", partitions=(Block("cciss!c0d0p1"),))
    found = disks.rows(Facts((block,)), no_health, partitions=True)
    assert [row["devpath"] for row in found.values()] == ["/dev/cciss/c0d0", "/dev/cciss/c0d0p1"]


def test_links_that_last() -> None:
    links = "/dev/disk/by-id/wwn-1 /dev/disk/by-id/nvme-eui.1 /dev/disk/by-id/nvme-Model_1 /dev/disk/by-path/x"
    assert Block("nvme0n1", udev={"DEVLINKS": links}).by_id == "/dev/disk/by-id/nvme-Model_1"
    assert Block("nvme0n1").by_id == ""


# What the tools say.


def test_lsblk() -> None:
    rows = [{"path": "/dev/sda", "parttype": None, "fstype": None, "children": [
        {"path": "/dev/sda1", "parttype": EFI.upper(), "fstype": "vfat"}]}]  # fmt: skip
    text = json.dumps({"blockdevices": rows})
    assert facts.parse_lsblk(text) == {"/dev/sda": Content(), "/dev/sda1": Content(EFI, "vfat")}
    assert facts.parse_lsblk("") == {}


def test_zpool_list() -> None:
    mirror = "\tmirror-0\t5G\n\t/dev/sdb1\t5G\n\t/dev/disk/by-id/ata-x-part1\t5G\n"
    text = f"tank\t5.5G\t-\n{mirror}rpool\t1G\n\t/dev/sdc\t1G\n"
    assert facts.parse_zpools(text) == {"/dev/sdb1", "/dev/disk/by-id/ata-x-part1", "/dev/sdc"}
    assert facts.parse_members(text) == {
        "tank": {"/dev/sdb1", "/dev/disk/by-id/ata-x-part1"},
        "rpool": {"/dev/sdc"},
    }


@given(
    st.dictionaries(st.from_regex(r"[A-Z_]{1,20}", fullmatch=True), st.text("abcdefg= /:-x", max_size=30), max_size=8)
)
def test_udev_round_trip(properties: dict[str, str]) -> None:
    text = "P: /devices/x\n" + "".join(f"E: {key}={value}\n" for key, value in properties.items())
    assert facts.parse_udev(text) == properties


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    smart.parse(text)
    facts.parse_udev(text)
    facts.parse_osds(text)
    facts.parse_zpools(text)
    facts.parse_members(text)


def test_a_folder_of_sysfs(tmp_path: Path) -> None:
    files = {
        "size": "2048", "queue/rotational": "0", "device/model": "M", "sda1/size": "8", "sda1/partition": "1",
        "sda2/size": "4", "sda2/partition": "2", "sda1/holders/dm-0": "",
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / "sda" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    found = facts.block(tmp_path / "sda", {"ID_MODEL": "Better"})
    assert (found.size, found.rotational, found.model, found.vendor) == (1 << 20, 0, "M", "unknown")
    assert [(one.name, one.size, one.holders) for one in found.partitions] == [
        ("sda1", 4096, ("dm-0",)),
        ("sda2", 2048, ()),
    ]
    assert disks.rows(Facts((found,)), no_health)["sda"]["model"] == "Better"
