"""What ZFS's tools say and are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.storage import zfs
from pvetools.storage.driver import Snapshot
from pvetools.storage.zfs import Row
from pvetools.system.errors import PveError, RunError

LIST = (
    "tank/vms\tfilesystem\t204800\t1700000000\t-\t-\t0\t/tank/vms\tyes\n"
    "tank/vms/vm-100-disk-0\tvolume\t57344\t1700000001\t-\t33554432\t-\t-\t-\n"
    "tank/vms/vm-101-disk-0\tvolume\t0\t1700000002\ttank/vms/base-100-disk-1@__base__\t1048576\t-\t-\t-\n"
    "tank/vms/subvol-102-disk-0\tfilesystem\t98304\t1700000003\t-\t-\t1073741824\t/tank/vms/subvol-102-disk-0\tyes\n"
    "tank/vms/subvol-103-disk-0\tfilesystem\t98304\t1700000004\t-\t-\t0\tlegacy\tno\n"
    "tank/vms/subvol-103-disk-0/below\tfilesystem\t98304\t1700000005\t-\t-\t0\tnone\tno\n"
)


def test_the_children_of_a_dataset_are_read_from_its_list() -> None:
    assert zfs.parse_rows(LIST, "tank/vms") == [
        Row("vm-100-disk-0", "volume", 57344, 1700000001, size=33554432),
        Row("vm-101-disk-0", "volume", 0, 1700000002, "tank/vms/base-100-disk-1@__base__", 1048576),
        Row(
            "subvol-102-disk-0", "filesystem", 98304, 1700000003,
            size=1073741824, mountpoint="/tank/vms/subvol-102-disk-0", mounted=True,
        ),
        Row("subvol-103-disk-0", "filesystem", 98304, 1700000004),
    ]  # fmt: skip
    assert [row.name for row in zfs.parse_rows(LIST, "tank/vms/subvol-103-disk-0")] == ["below"]
    assert zfs.parse_rows("", "tank") == []


WHOLE = (
    "tank/base-1-disk-0\tvolume\t57344\t1700000001\t-\t33554432\t-\t-\t-\t-\n"
    "tank/base-1-disk-0@zebra\tsnapshot\t0\t1700000002\t-\t33554432\t-\t-\t-\t\n"
    "tank/base-1-disk-0@ape\tsnapshot\t0\t1700000002\t-\t33554432\t-\t-\t-\ttank/vm-2-disk-0,other/theirs\n"
    "tank/base-1-disk-0/below\tfilesystem\t0\t1700000003\t-\t-\t0\tnone\tno\t-\n"
)


def test_snapshots_keep_their_order_and_clones_and_what_lies_below_are_found() -> None:
    row, snapshots, clones, below = zfs.parse_whole(WHOLE, "tank/base-1-disk-0")
    assert row == Row("base-1-disk-0", "volume", 57344, 1700000001, size=33554432)
    assert snapshots == [Snapshot("zebra", 1700000002), Snapshot("ape", 1700000002)]
    assert clones == ["tank/vm-2-disk-0", "other/theirs"]
    assert below == ["tank/base-1-disk-0/below"]


@pytest.mark.parametrize("name", ["tank", "tank/vms", "rpool/data/a.b:c-d_e", "t-1/9"])
def test_names_of_pools_and_datasets_are_taken(name: str) -> None:
    assert zfs.check_dataset(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-f", "1tank", "tank/", "/tank", "tank//a", "tank@snap", "tank#mark", "tank/..", "tank/./a", "tank a", "tänk",
     "tank;reboot", "tank/$(id)", "tank\n", "a" * 201],
)  # fmt: skip
def test_names_that_are_none_reach_no_tool(name: str) -> None:
    with pytest.raises(PveError, match="invalid ZFS pool"):
        zfs.check_dataset(name)


@given(st.text())
def test_a_dataset_never_looks_like_an_option_or_a_snapshot(name: str) -> None:
    try:
        zfs.check_dataset(name)
    except PveError:
        return
    assert name.isascii()
    assert name[0].isalpha()
    assert not {*"@#% \t\n;|&$`'\"\\*?<>()"} & {*name}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "zfs send -p -- tank/a@now"),
        ({"base": "old"}, "zfs send -p -i @old -- tank/a@now"),
        ({"with_snapshots": True}, "zfs send -Rp -- tank/a@now"),
        ({"base": "old", "with_snapshots": True}, "zfs send -Rp -I @old -- tank/a@now"),
        ({"raw": True}, "zfs send -p -w -- tank/a@now"),
    ],
)
def test_streams_are_sent_whole_or_from_a_base_with_or_without_snapshots(options: dict, expected: str) -> None:
    assert " ".join(zfs.send_argv("tank/a", "now", **options)) == expected


def test_a_received_stream_does_not_choose_its_place_in_the_tree() -> None:
    argv = zfs.receive_argv("tank/vm-100-disk-0")
    assert argv[:3] == ["zfs", "receive", "-F"]
    assert argv[-2:] == ["--", "tank/vm-100-disk-0"]
    assert " ".join(argv).count("-x mountpoint") == 1


def test_errors_of_the_tools_are_understood() -> None:
    def error(text: str) -> RunError:
        return RunError(["zfs"], 1, text)

    assert zfs.is_full(error("cannot create 'tank/a': out of space"))
    assert zfs.is_full(error("cannot set property for 'tank/a': size is greater than available space"))
    assert zfs.is_busy(error("cannot destroy 'tank/a': dataset is busy"))
    assert zfs.is_missing(error("cannot open 'tank/a': dataset does not exist"))
    assert not zfs.is_full(error("cannot open 'tank/a': permission denied"))


def test_what_is_busy_for_a_moment_is_tried_again() -> None:
    said: list[list[str]] = []

    def call(argv: list[str]) -> str:
        said.append([*argv])
        if len(said) < 3:
            raise RunError(argv, 1, "cannot destroy 'tank/a': dataset is busy")
        return ""

    zfs.Pool("tank", call).destroy("a")  # type: ignore[arg-type]
    assert said == [["zfs", "destroy", "-r", "--", "tank/a"]] * 3


def test_what_a_shell_says_besides_is_passed_over() -> None:
    greeting = "Welcome!\nlast\tlogin\n\n"
    assert zfs.parse_rows(greeting + LIST, "tank/vms") == zfs.parse_rows(LIST, "tank/vms")
    assert zfs.parse_whole(greeting + WHOLE, "tank/base-1-disk-0") == zfs.parse_whole(WHOLE, "tank/base-1-disk-0")
    pool = zfs.Pool("tank", lambda argv: greeting + ("used\t10\navailable\t32\n" if "used," in argv[5] else "off\n"))
    assert pool.space() == (42, 10, 32)
    assert pool.property("encryption") == "off"
