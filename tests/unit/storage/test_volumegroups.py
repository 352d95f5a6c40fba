"""What LVM's tools say, and which of it belongs to a storage."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.options.storage import StorageOptions
from pvetools.storage import volumegroups
from pvetools.storage.backends.lvm import VolumeGroup, rate
from pvetools.storage.backends.lvmthin import ThinPool
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Space
from pvetools.storage.flat import Record
from pvetools.storage.volumechains import needed
from pvetools.storage.volumegroups import Group, Logical
from pvetools.system import log, paths, run
from pvetools.system.errors import PveError, RunError

LVS = """
  {
      "report": [
          {
              "lv": [
                  {"lv_name":"base-100-disk-1", "lv_size":"33554432", "lv_attr":"Vri---tz-k", "pool_lv":"pool", "origin":"", "data_percent":"", "metadata_percent":"", "lv_time":"1795676570", "lv_tags":"", "thin_id":"3"},
                  {"lv_name":"pool", "lv_size":"3221225472", "lv_attr":"twi-aotz--", "pool_lv":"", "origin":"", "data_percent":"12.50", "metadata_percent":"10.61", "lv_time":"1795676560", "lv_tags":"", "thin_id":""},
                  {"lv_name":"vm-100-disk-0", "lv_size":"8388608", "lv_attr":"-wi-a-----", "pool_lv":"", "origin":"", "data_percent":"", "metadata_percent":"", "lv_time":"1795676576", "lv_tags":"one,pve-vm-100", "thin_id":""},
                  {"lv_name":"vm-100-disk-0", "lv_size":"8388608", "lv_attr":"-wi-a-----", "pool_lv":"", "origin":"", "data_percent":"", "metadata_percent":"", "lv_time":"1795676576", "lv_tags":"one,pve-vm-100", "thin_id":""},
                  {"lv_name":"vm-101-disk-0", "lv_size":"33554432", "lv_attr":"Vwi-a-tz--", "pool_lv":"pool", "origin":"base-100-disk-1", "data_percent":"50.00", "metadata_percent":"", "lv_time":"1795676577", "lv_tags":"", "thin_id":"12"}
              ]
          }
      ]
  }
"""  # noqa: E501
VGS = """{"report": [{"vg": [
    {"vg_name":"vgx", "vg_size":"532676608", "vg_free":"524288000", "vg_extent_size":"4194304"}]}]}"""


def storage(kind: type, **options: str) -> VolumeGroup | ThinPool:
    type_ = "lvm" if kind is VolumeGroup else "lvmthin"
    raw = {"storage": "store", "type": type_, "vgname": "vgx", "thinpool": "pool", **options}
    return kind(Definition("store", type_, StorageOptions.read(raw)))


def thin(name: str, **fields: object) -> Logical:
    return Logical(**{"name": name, "size": 1 << 20, "attr": "Vwi-a-tz--", "pool": "pool", **fields})


def test_logical_volumes_are_read_from_a_report() -> None:
    found = [volumegroups.logical_of(row) for row in volumegroups.rows(LVS)]
    assert found[0] == Logical("base-100-disk-1", 33554432, "Vri---tz-k", "pool", ctime=1795676570, number=3)
    assert found[1] == Logical("pool", 3221225472, "twi-aotz--", data=12.5, metadata=10.61, ctime=1795676560)
    assert found[2] == Logical(
        "vm-100-disk-0", 8388608, "-wi-a-----", ctime=1795676576, tags=frozenset({"one", "pve-vm-100"})
    )
    assert found[4] == Logical(
        "vm-101-disk-0", 33554432, "Vwi-a-tz--", "pool", "base-100-disk-1", 50, ctime=1795676577, number=12
    )
    assert [row.kind for row in found] == ["V", "t", "-", "-", "V"]
    assert [row.active for row in found] == [False, True, True, True, True]
    assert [row.writable for row in found] == [False, True, True, True, True]
    assert found[1].zeroes


def test_volume_groups_are_read_from_a_report() -> None:
    assert [volumegroups.group_of(row) for row in volumegroups.rows(VGS)] == [
        Group("vgx", 532676608, 524288000, 4194304)
    ]


def test_an_empty_group_has_no_volumes() -> None:
    assert volumegroups.rows('{"report": [{"lv": []}]}') == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"report": []}', '{"report": [{}]}', "Volume group not found"])
def test_what_is_no_report_is_an_error(text: str) -> None:
    with pytest.raises(PveError, match="LVM's report can't be read"):
        volumegroups.rows(text)


@given(st.lists(st.from_regex(r"\A[a-z][a-z0-9_.-]{0,20}\Z"), max_size=5))
def test_whatever_tags_a_volume_has(tags: list[str]) -> None:
    row = volumegroups.rows(LVS)[2] | {"lv_tags": ",".join(tags)}
    assert volumegroups.logical_of(row).tags == {*tags}


@given(st.integers(1, 1 << 60))
def test_sizes_are_given_to_lvm_in_whole_kib_and_never_less(size: int) -> None:
    told = volumegroups.kib(size)
    assert told.endswith("k")
    assert 0 <= int(told[:-1]) * 1024 - size < 1024


@pytest.mark.parametrize(
    ("name", "attr", "tags", "anyway", "tagged"),
    [
        ("vm-100-disk-0", "-wi-a-----", ("pve-vm-100",), True, True),
        ("vm-100-disk-0", "-wi-a-----", ("mine", "pve-vm-1"), True, True),
        ("vm-100-disk-0", "-wi-a-----", (), True, False),
        ("vm-100-disk-0", "-wi-a-----", ("pve-vm-x",), True, False),
        ("vm-100-disk-0", "owi-a-----", ("pve-vm-100",), True, True),
        ("vm-100-disk-0", "rwi-a-r---", ("pve-vm-100",), True, True),
        ("vm-100-disk-0", "Vwi-a-tz--", ("pve-vm-100",), False, False),
        ("vm-100-disk-0", "swi-a-s---", ("pve-vm-100",), False, False),
        ("del-vm-100-disk-0", "-wi-a-----", ("pve-vm-100",), False, False),
        ("base-100-disk-0", "-wi-a-----", ("pve-vm-100",), False, False),
        ("root", "-wi-ao----", ("pve-vm-100",), False, False),
        ("vm-0-disk-0", "-wi-a-----", ("pve-vm-0",), False, False),
    ],
)
def test_which_volumes_of_a_group_are_those_of_a_storage(
    name: str, attr: str, tags: tuple[str, ...], anyway: bool, tagged: bool
) -> None:
    found = Logical(name, 1 << 22, attr, tags=frozenset(tags))
    assert storage(VolumeGroup).mine(found) is anyway
    assert storage(VolumeGroup, tagged_only="1").mine(found) is tagged


@pytest.mark.parametrize(
    ("found", "mine"),
    [
        (thin("vm-100-disk-0"), True),
        (thin("base-100-disk-0"), True),
        (thin("vm-100-disk-0", pool="other"), False),
        (thin("snap_vm-100-disk-0_x"), False),
        (thin("coming-vm-100-disk-0"), False),
        (thin("vm-100-disk-0", attr="-wi-a-----", pool=""), False),
        (thin("pool", attr="twi-aotz--", pool=""), False),
    ],
)
def test_which_volumes_of_a_pool_are_those_of_a_storage(found: Logical, mine: bool) -> None:
    assert storage(ThinPool).mine(found) is mine


def test_a_thin_volume_is_listed_with_what_it_takes_and_its_base() -> None:
    rows = {row["lv_name"]: volumegroups.logical_of(row) for row in volumegroups.rows(LVS)}
    assert storage(ThinPool).record(rows["vm-101-disk-0"]) == Record(
        "vm-101-disk-0", 33554432, used=33554432 // 2, ctime=1795676577, parent="base-100-disk-1"
    )
    assert not storage(ThinPool).record(thin("vm-100-disk-0", origin="snap_vm-100-disk-0_x")).parent


def test_removals_to_be_finished_are_known_by_name_and_tag() -> None:
    here, there = (frozenset({f"pvetools-wipe-{node}"}) for node in (paths.node(), "elsewhere"))
    cases = [("del-vm-100-disk-0", here), ("del-vm-100-disk-0", there), ("del-vm-100-disk-0", frozenset()),
             ("vm-100-disk-0", here)]  # fmt: skip
    rows = [Logical(name, 1 << 22, "-wi-------", tags=tags) for name, tags in cases]
    assert [storage(VolumeGroup).is_remnant(row) for row in rows] == [True, True, False, False]
    shared = storage(VolumeGroup, shared="1")
    assert [shared.is_remnant(row) for row in rows] == [True, False, False, False]


def test_what_was_to_take_a_volumes_place_is_known_by_name_and_tag() -> None:
    tags = frozenset({f"pvetools-coming-{paths.node()}"})
    rows = [thin("coming-vm-100-disk-0", tags=tags), thin("coming-vm-100-disk-0"), thin("vm-100-disk-0", tags=tags)]
    kind = ("coming-", "pvetools-coming-")
    assert [storage(ThinPool).is_remnant(row, kind) for row in rows] == [True, False, False]


def test_snapshots_belong_to_the_volume_with_the_longest_name_and_are_in_order() -> None:
    rows = [
        thin("vm-100-a"), thin("vm-100-a_b"), thin("snap_vm-100-a_new", ctime=9, number=5),
        thin("snap_vm-100-a_old", ctime=8, number=7), thin("snap_vm-100-a_older", ctime=8, number=6),
        thin("snap_vm-100-a_b_c"), thin("snap_vm-100-a_x", pool="other"), thin("snap_vm-100-ab_x"),
    ]  # fmt: skip
    names = [row.name for row in storage(ThinPool).kept_volumes("vm-100-a", rows)]
    assert names == ["snap_vm-100-a_older", "snap_vm-100-a_old", "snap_vm-100-a_new"]
    assert [row.name for row in storage(ThinPool).kept_volumes("vm-100-a_b", rows)] == ["snap_vm-100-a_b_c"]


CHAINED = {"snapshot-as-volume-chain": "1"}


def test_layers_of_a_chain_belong_to_the_volume_with_the_longest_name() -> None:
    found = [
        "vm-100-a.qcow2", "vm-100-a_b.qcow2", "snap_vm-100-a_x.qcow2", "snap_vm-100-a_b_c.qcow2", "snap_vm-100-a_x",
        "snap_vm-100-ab_x.qcow2",
    ]  # fmt: skip
    rows, chained = [Logical(name, 1 << 22, "-wi-a-----") for name in found], storage(VolumeGroup, **CHAINED)
    assert [row.name for row in chained.layers("vm-100-a.qcow2", rows)] == ["snap_vm-100-a_x.qcow2"]
    assert [row.name for row in chained.layers("vm-100-a_b.qcow2", rows)] == ["snap_vm-100-a_b_c.qcow2"]
    assert chained.layers("vm-100-a", rows) == []


def test_a_qcow2_volume_is_none_where_the_storage_has_no_chains() -> None:
    found = Logical("vm-100-disk-0.qcow2", 1 << 22, "-wi-a-----", tags=frozenset({"pve-vm-100"}))
    assert not storage(VolumeGroup).mine(found)
    assert storage(VolumeGroup, **CHAINED).mine(found)


def test_a_snapshot_without_its_volume_keeps_the_name_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    chained = storage(VolumeGroup, **CHAINED)
    monkeypatch.setattr(chained, "rows", lambda: [Logical("snap_vm-100-disk-0_x.qcow2", 1 << 22, "-wi-a-----")])
    assert {"vm-100-disk-0", "vm-100-disk-0.qcow2"} < {*chained.taken()}


@pytest.mark.parametrize("size", [1 << 20, 32 << 20, 1 << 40])
@pytest.mark.parametrize("form", [(), ("-o", "extended_l2=on,cluster_size=128k")])
def test_the_space_of_a_written_image_holds_its_tables_too(size: int, form: tuple[str, ...]) -> None:
    assert size < needed(size, *form) < size * 1.01 + (3 << 20)


@pytest.mark.parametrize(
    ("tags", "own"),
    [
        ((), ""),
        (("pve-vm-100", "pvetools-merging"), ""),
        (("pvetools-merging", "pvetools-merged-{here}/vm-100-disk-0.qcow2"), "vm-100-disk-0.qcow2"),
        (("pvetools-merged-elsewhere/vm-100-disk-0.qcow2",), ""),
    ],
)
def test_what_a_snapshots_volume_was_to_become_stands_in_a_tag(tags: tuple[str, ...], own: str) -> None:
    marks = frozenset(tag.format(here=paths.node()) for tag in tags)
    chained = storage(VolumeGroup, **CHAINED)
    rows = [Logical(name, 1 << 22, "-wi-------", tags=marks) for name in ("snap_vm-100-disk-0_x.qcow2", "del-snap_y")]
    assert [chained.unsettled([row]) for row in rows] == [bool(own), False]


@pytest.mark.parametrize(
    ("type_", "options", "wanted"),
    [
        ("lvm", {}, "raw"), ("lvm", CHAINED, "qcow2"), ("dir", {}, "raw"), ("dir", CHAINED, "raw"),
        ("dir", {"format": "qcow2"}, "qcow2"),
    ],
)  # fmt: skip
def test_the_format_of_new_images(type_: str, options: dict[str, str], wanted: str) -> None:
    raw = {"storage": "store", "type": type_, **options}
    assert Definition("store", type_, StorageOptions.read(raw)).default_format == wanted


def test_a_removal_that_can_not_be_finished_hinders_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Logical(f"del-vm-{vmid}-disk-0", 1 << 22, "-wi-------") for vmid in (100, 101)]
    found, removed, told = storage(VolumeGroup), [], []
    found.remnants = [*rows]

    def remove(self: VolumeGroup, doomed: str, held: contextlib.ExitStack) -> None:
        if doomed == rows[0].name:
            raise PveError("can't overwrite block device: Input/output error")
        removed.append(doomed)

    monkeypatch.setattr(VolumeGroup, "rows", lambda _: rows)
    monkeypatch.setattr(VolumeGroup, "locked", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(VolumeGroup, "_to_wipe", lambda *_: contextlib.nullcontext(True))
    monkeypatch.setattr(VolumeGroup, "_remove", remove)
    monkeypatch.setattr(log, "warn", told.append)
    found.finish_removals(slow=True)
    assert removed == [rows[1].name]
    assert told == ["can't overwrite block device: Input/output error"]


@pytest.mark.parametrize("said", ["Insufficient free space: 5 extents needed", "insufficient suitable space"])
def test_a_full_group_is_told_in_whichever_case(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def fail(words: list[str], *, timeout: float, **_: object) -> run.Completed:
        assert timeout == volumegroups.TIMEOUT
        raise RunError(words, 5, f"  {said}, but only 3 available\n")

    monkeypatch.setattr(run, "run", fail)
    monkeypatch.setattr(VolumeGroup, "status", lambda _: Space(10 << 20, 7 << 20, 3 << 20))
    with pytest.raises(PveError, match="storage 'store' is full"):
        storage(VolumeGroup).create("lvcreate", "-L", "5m", "vgx", size=5 << 20)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("0", 0), ("10485760", 10 << 20), ("-10485760", 10 << 20), ("10m", 10 << 20), ("1K", 1024), ("2G", 2 << 30)],
)
def test_limits_for_overwriting(text: str, bytes_: int) -> None:
    assert rate(text) == bytes_


@pytest.mark.parametrize("text", ["", "x", "1.5", "10 m", "--1", "1mb"])
def test_wrong_limits_for_overwriting_are_refused(text: str) -> None:
    with pytest.raises(PveError, match="invalid saferemove_throughput"):
        rate(text)
