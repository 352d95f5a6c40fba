"""Which backups the keep rules leave."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvetools.backup import names, retention
from pvetools.backup.retention import PERIODS, Backup
from pvetools.system.errors import PveError


def backup(stamp: str, *, vmid: int = 100, kind: str = "qemu", protected: bool = False) -> Backup:
    return Backup(f"local:backup/vzdump-{kind}-{vmid}-{stamp}.vma.zst", 0, vmid, protected)


def at(ctime: int, vmid: int = 100) -> Backup:
    return Backup(f"local:backup/{names.archive_name('qemu', vmid, ctime, 'zst')}", ctime, vmid)


def test_the_rules_work_together_from_fine_to_coarse() -> None:
    expected = {
        "2024_03_31-10_00_00": "keep",  # last
        "2024_03_31-04_00_00": "remove",  # its day is covered
        "2024_03_30-10_00_00": "keep",
        "2024_03_29-10_00_00": "keep",
        "2024_03_25-10_00_00": "remove",  # its week is covered
        "2024_03_24-10_00_00": "keep",
        "2024_02_29-10_00_00": "keep",
        "2024_02_10-10_00_00": "remove",
        "2023_12_31-10_00_00": "remove",
    }
    keep = {"keep-last": 1, "keep-daily": 2, "keep-weekly": 1, "keep-monthly": 1}
    found = retention.prune([backup(stamp) for stamp in expected], keep)
    assert {
        b.volid.removeprefix("local:backup/vzdump-qemu-100-").removesuffix(".vma.zst"): b.mark for b in found
    } == expected


def test_the_two_hours_of_a_clock_change_count_as_one(zone: Callable[[str], None]) -> None:
    zone("Europe/Berlin")
    changes = 1729987200  # 2024-10-27 02:00 summer time, an hour before it becomes 02:00 again
    found = retention.prune(
        [
            Backup("x:backup/vzdump-qemu-100-2024_10_27-01_30_00.vma", 0),
            Backup("x:backup/vzdump-qemu-100-2024_10_27-02_30_00.vma", 0),
        ],
        {"keep-hourly": 2},
    )
    assert [b.mark for b in found] == ["keep", "keep"]
    assert PERIODS["keep-hourly"](changes) == PERIODS["keep-hourly"](changes + 3600)


def test_weeks_begin_on_monday_and_belong_to_the_iso_year() -> None:
    found = retention.prune(
        [backup("2024_12_29-10_00_00"), backup("2024_12_30-10_00_00"), backup("2025_01_05-10_00_00")],
        {"keep-weekly": 2},
    )
    assert [b.mark for b in found] == ["keep", "remove", "keep"]


def test_protected_and_renamed_archives_are_out_of_the_game() -> None:
    found = retention.prune(
        [
            backup("2024_01_03-10_00_00", protected=True),
            backup("2024_01_02-10_00_00"),
            backup("2024_01_01-10_00_00"),
            Backup("local:backup/vzdump-qemu-100-mine.vma", 5, 100),
            Backup("local:backup/vzdump-qemu-100-theirs.vma", 5, 100, protected=True),
        ],
        {"keep-last": 1},
    )
    assert [b.mark for b in found] == ["remove", "keep", "protected", "renamed", "protected"]


def test_each_guest_is_judged_by_itself_and_can_be_chosen() -> None:
    several = [
        backup(f"2024_01_0{day}-10_00_00", vmid=vmid, kind=kind)
        for day in (1, 2)
        for vmid, kind in ((100, "qemu"), (101, "qemu"), (100, "lxc"))
    ]
    assert sorted(b.mark for b in retention.prune(several, {"keep-last": 1})) == ["keep"] * 3 + ["remove"] * 3
    assert {b.vmid for b in retention.prune(several, {"keep-last": 1}, vmid=101)} == {101}
    assert {(b.vmid, b.kind) for b in retention.prune(several, {"keep-last": 1}, kind="lxc")} == {(100, "lxc")}


@pytest.mark.parametrize(
    "keep", [{}, {"keep-all": 1}, {"keep-last": 0, "keep-yearly": 0}, {"keep-all": True, "keep-last": 0}]
)
def test_without_limits_everything_stays(keep: dict[str, int]) -> None:
    found = retention.prune([backup("2024_01_01-10_00_00"), backup("2024_01_02-10_00_00")], keep)
    assert [b.mark for b in found] == ["keep", "keep"]
    assert retention.describe(keep) == "keep-all=1"


def test_contradictions_are_refused() -> None:
    with pytest.raises(PveError, match="keep-all cannot be set together"):
        retention.limits({"keep-all": 1, "keep-daily": 2})
    with pytest.raises(PveError, match="'-1' for keep-weekly"):
        retention.limits({"keep-weekly": -1})


def test_log_lines_sort_the_limits_by_name() -> None:
    assert retention.describe({"keep-last": 3, "keep-daily": "7", "keep-weekly": 0}) == "keep-daily=7, keep-last=3"


times = st.lists(st.integers(1_500_000_000, 1_520_000_000), min_size=1, max_size=40, unique=True)
limits = st.dictionaries(st.sampled_from(sorted(PERIODS)), st.integers(0, 5), max_size=6)


@settings(deadline=None)
@given(times, limits, st.randoms(use_true_random=False))
def test_what_always_holds(stamps: list[int], keep: dict[str, int], random: object) -> None:
    everything = [at(ctime) for ctime in stamps]
    found = retention.prune(everything, keep)
    assert sorted(b.volid for b in found) == [b.volid for b in found]
    assert {b.volid for b in found} == {b.volid for b in everything}
    random.shuffle(everything)  # type: ignore[attr-defined]
    assert retention.prune(everything, keep) == found
    total = sum(keep.values())
    kept = [b for b in found if b.mark == "keep"]
    if total:
        assert 1 <= len(kept) <= min(total, len(found))
        assert max(found, key=lambda b: b.ctime).mark == "keep"
    else:
        assert len(kept) == len(found)


@settings(deadline=None)
@given(times, st.sampled_from(sorted(PERIODS)), st.integers(1, 6))
def test_one_rule_alone_keeps_the_newest_of_the_last_n_periods(stamps: list[int], option: str, limit: int) -> None:
    newest: dict[str, int] = {}
    for ctime in sorted(stamps, reverse=True):
        newest.setdefault(PERIODS[option](ctime), ctime)
    expected = set(sorted(newest.values(), reverse=True)[:limit])
    found = retention.prune([at(ctime) for ctime in stamps], {option: limit})
    assert {b.ctime for b in found if b.mark == "keep"} == expected
