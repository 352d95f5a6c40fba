"""Names of volumes that lie side by side in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.storage import flat, registry, volumes
from pvetools.storage.driver import Wish
from pvetools.storage.flat import base_name, next_name, parse
from pvetools.system import paths
from pvetools.system.errors import PveError

FORMATS = ("raw", "subvol", "qcow2")
KINDS = {"vm": "raw", "base": "raw", "subvol": "subvol", "basevol": "subvol"}
vmids = st.integers(1, 999_999_999)
tails = st.one_of(
    st.from_regex(re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.+-]{0,99}", re.ASCII), fullmatch=True),
    st.from_regex(re.compile(r"disk-\d{1,3}(?:\.qcow2)?", re.ASCII), fullmatch=True),
)
kinds = st.sampled_from(sorted(KINDS))
own_names = st.builds("{}-{}-{}".format, kinds, vmids, tails)
base_names = st.builds("{}-{}-{}".format, st.sampled_from(["base", "basevol"]), vmids, tails)
disks = st.builds("{}-{}-disk-{}".format, kinds, st.integers(100, 103), st.integers(0, 12))


@given(kinds, vmids, tails, st.one_of(st.none(), base_names))
def test_a_name_says_owner_kind_and_base(kind: str, vmid: int, tail: str, base: str | None) -> None:
    own = f"{kind}-{vmid}-{tail}"
    parsed = parse(f"{base}/{own}" if base else own, FORMATS)
    assert (parsed.name, parsed.vmid, parsed.base) == (own, vmid, base or "")
    assert parsed.is_base == kind.startswith("base")
    assert parsed.base_vmid == (int(base.split("-")[1]) if base else None)
    chained = KINDS[kind] == "raw" and tail.endswith(".qcow2")
    assert parsed.format == ("qcow2" if chained else KINDS[kind])


@given(
    st.one_of(st.text(), own_names, st.text("vmbaseul-/.@0123456789"), st.builds("{}{}".format, own_names, st.text()))
)
def test_what_is_no_name_never_gets_through(name: str) -> None:
    try:
        parsed = parse(name, FORMATS)
    except PveError:
        return
    assert re.fullmatch(r"[a-zA-Z0-9_.+/-]+", name)
    assert name == (f"{parsed.base}/{parsed.name}" if parsed.base else parsed.name)
    assert not name.startswith("-")
    assert not {".", ".."} & {*name.split("/")}
    assert parsed.vmid


@pytest.mark.parametrize(
    "name",
    ["", "vm-100-", "vm-0-disk-0", "vm-01-disk-0", "vm-100", "vm--disk-0", "VM-100-disk-0", "vm-100-disk-0/",
     "/vm-100-disk-0", "vm-100-disk-0@snap", "vm-100-disk-0/vm-101-disk-0", "base-1-disk-0/base-2-disk-0/vm-3-disk-0",
     "vm-100-../x", "vm-100--x", "vm-100-disk-0\n", "vm-١٠٠-disk-0", "images/vm-100-disk-0", "100/vm-100-disk-0",
     "tank/vm-100-disk-0"],
)  # fmt: skip
def test_malformed_and_foreign_names_are_refused(name: str) -> None:
    with pytest.raises(PveError, match="unable to parse volume name"):
        parse(name, FORMATS)


def test_a_format_that_the_storage_does_not_have_is_no_format() -> None:
    assert parse("vm-100-disk-0.qcow2", ("raw",)).format == "raw"
    assert parse("vm-100-disk-0.qcow2", ("raw", "qcow2")).format == "qcow2"
    with pytest.raises(PveError, match="no volumes of format 'subvol' here"):
        parse("subvol-100-disk-0", ("raw",))


@given(st.lists(st.one_of(disks, own_names)), st.integers(100, 103), st.sampled_from(FORMATS))
def test_the_next_name_is_the_lowest_that_no_kind_of_volume_has(taken: list[str], vmid: int, form: str) -> None:
    name = next_name(taken, vmid, form)
    parsed = parse(name, FORMATS)
    assert (parsed.vmid, parsed.format, parsed.is_base) == (vmid, form, False)
    match = re.fullmatch(rf"(?:vm|subvol)-{vmid}-disk-(\d+)(?:\.qcow2)?", name)
    assert match
    number = int(match[1])
    matches = [re.fullmatch(r"[a-z]+-(\d+)-disk-(\d+)(\.\w+)?", other, re.ASCII) for other in taken]
    used = {int(disk[2]) for disk in matches if disk and int(disk[1]) == vmid}
    assert number not in used
    assert all(lower in used for lower in range(number))


@given(st.lists(disks), st.integers(100, 103), st.integers(1, 20))
def test_names_that_are_taken_one_after_the_other_are_different(taken: list[str], vmid: int, count: int) -> None:
    made: list[str] = []
    for _ in range(count):
        made.append(next_name([*taken, *made], vmid, "raw"))
    assert len({*made}) == count
    assert not {*made} & {*taken}


@given(own_names)
def test_a_base_keeps_owner_format_and_tail(own: str) -> None:
    before, base = parse(own, FORMATS), parse(base_name(own), FORMATS)
    assert base.is_base
    assert (base.vmid, base.format) == (before.vmid, before.format)
    assert base.name.split("-", 1)[1] == own.split("-", 1)[1]
    assert base_name(base.name) == base.name


@given(own_names)
def test_folders_are_told_by_their_names(own: str) -> None:
    assert own.startswith(tuple(f"{kind}-" for kind in flat.FOLDER_KINDS)) == (parse(own, FORMATS).format == "subvol")


@pytest.mark.parametrize(("size", "sentence"), [(0, "larger than 0"), (1 << 63, "smaller than 8 EiB")])
def test_sizes_that_no_volume_can_have_are_refused(root: Path, size: int, sentence: str) -> None:
    paths.storage_config().write_text("lvm: one\n\tvgname vg\n")
    made = registry.driver(volumes.get("one"))
    assert isinstance(made, flat.FlatStorage)
    with pytest.raises(PveError, match=rf"^the size of a volume must be {sentence}$"):
        made.choose_name(Wish(100, size, "raw"))
