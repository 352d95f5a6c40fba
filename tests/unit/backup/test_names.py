"""Names of archives and of what lies beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.backup import names
from pvetools.system.errors import PveError


@given(
    st.sampled_from(["qemu", "lxc"]),
    st.integers(100, 999999999),
    st.integers(0, 4_000_000_000),
    st.sampled_from(["", "gz", "lzo", "zst"]),
)
def test_a_name_tells_what_it_was_made_from(kind: str, vmid: int, started: int, compression: str) -> None:
    name = names.archive_name(kind, vmid, started, compression)
    info = names.parse(name)
    assert (info.kind, info.vmid, info.compression, info.standard) == (kind, vmid, compression, True)
    assert info.ctime is not None
    assert names.archive_name(kind, vmid, info.ctime, compression) == name
    assert abs(info.ctime - started) in (0, 3600, 1800)  # an hour that exists twice has one name


def test_the_stamp_is_local_time(zone: Callable[[str], None]) -> None:
    zone("Europe/Berlin")
    assert names.archive_name("qemu", 100, 1704164645, "zst") == "vzdump-qemu-100-2024_01_02-04_04_05.vma.zst"
    assert names.parse("vzdump-qemu-100-2024_01_02-04_04_05.vma.zst").ctime == 1704164645


def test_of_an_hour_that_the_clock_shows_twice_the_first_is_meant(zone: Callable[[str], None]) -> None:
    zone("Europe/Vienna")
    twice, summer = "vzdump-lxc-100-2021_10_31-02_30_00.tgz", "vzdump-lxc-100-2021_07_01-02_30_00.tgz"
    assert names.parse(twice).ctime == 1635640200
    assert names.parse(summer).ctime == 1625099400
    assert names.parse(twice).ctime == 1635640200


def test_companions_lie_beside_the_archive() -> None:
    info = names.parse("/dump/vzdump-lxc-200-2024_01_02-03_04_05.tar.zst")
    assert info.log == "vzdump-lxc-200-2024_01_02-03_04_05.log"
    assert info.notes == "vzdump-lxc-200-2024_01_02-03_04_05.tar.zst.notes"
    assert info.protected == "vzdump-lxc-200-2024_01_02-03_04_05.tar.zst.protected"
    assert names.companions(info.filename) == (info.log, info.notes)
    assert names.companions("vzdump-lxc-old.tgz") == ()


@pytest.mark.parametrize(
    ("final", "growing"),
    [
        ("vzdump-qemu-100-2024_01_02-03_04_05.vma.zst", "vzdump-qemu-100-2024_01_02-03_04_05.vma.dat"),
        ("vzdump-qemu-100-2024_01_02-03_04_05.vma", "vzdump-qemu-100-2024_01_02-03_04_05.dat"),
    ],
)
def test_the_temporary_name_replaces_the_last_extension(final: str, growing: str) -> None:
    assert names.temporary_name(final) == growing


@pytest.mark.parametrize(
    "name",
    [
        "vzdump-qemu-99-2024_01_02-03_04_05.vma",  # ids begin at 100
        "vzdump-qemu-0100-2024_01_02-03_04_05.vma",
        "vzdump-qemu-1000000000-2024_01_02-03_04_05.vma",
        "vzdump-qemu-100-2024_13_02-03_04_05.vma",  # no such month
        "vzdump-qemu-100-2024_01_02-03_04_05-copy.vma",
        "vzdump-qemu-whatever.vma.zst",
    ],
)
def test_other_names_are_archives_but_not_standard_ones(name: str) -> None:
    info = names.parse(name)
    assert not info.standard
    assert (info.log, info.notes, info.ctime) == (None, None, None)


@pytest.mark.parametrize("name", ["backup.vma", "vzdump-qemu-100.zip", "vzdump-qemu-.vma.xz", "vzdump-vm-100.vma", ""])
def test_foreign_names_are_refused(name: str) -> None:
    with pytest.raises(PveError, match=f"couldn't determine archive info from '{name}'"):
        names.parse(name)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("vzdump-qemu-1.vma", []),
        ("vzdump-qemu-1.vma.lzo", ["lzop", "-d", "-c"]),
        ("vzdump-lxc-1.tar.bz2", ["tar", "--bzip2"]),
        ("vzdump-lxc-1.tgz", ["tar", "-z"]),
    ],
)
def test_each_extension_has_its_decompressor(name: str, command: list[str]) -> None:
    assert names.decompressor(names.parse(name)) == command
