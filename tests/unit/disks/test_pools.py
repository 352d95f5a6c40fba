"""ZFS pools: what its tools say, and how they are told what to make."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from pvetools.storage.disks import facts, pools
from pvetools.system import run
from pvetools.system.errors import ParamErrors, RunError

STATUS = """\
  pool: tank
 state: DEGRADED
status: One or more devices could not be used because the label is missing or
\tinvalid.  Sufficient replicas exist for the pool to continue
action: Replace the device using 'zpool replace'.
   see: https://openzfs.example/msg/4J
  scan: scrub repaired 0B in 00:00:01 with 0 errors on Thu Nov 26 07:00:00 2026
config:

\tNAME                      STATE     READ WRITE CKSUM
\ttank                      DEGRADED     0     0     0
\t  mirror-0                DEGRADED     0     0     0
\t    /dev/sdb1             ONLINE       0     0 1.20K
\t    1234567890            UNAVAIL      0     0     0  was /dev/sdc1
\t  mirror-1                ONLINE       0     0     0
\t    /dev/sdd1             ONLINE       0     0     0
\t    /dev/sde1             ONLINE       0     0     0  (resilvering)
\tlogs
\t  /dev/sdf1               ONLINE       0     0     0
\tspares
\t  /dev/sdg1               AVAIL

errors: No known data errors
"""


def test_the_state_of_a_pool_is_a_tree() -> None:
    found = pools.parse_status(STATUS)
    assert (found["name"], found["state"], found["leaf"]) == ("tank", "DEGRADED", 0)
    assert found["status"].endswith("missing or invalid.  Sufficient replicas exist for the pool to continue")
    assert found["scan"].startswith("scrub repaired 0B in 00:00:01")
    assert found["errors"] == "No known data errors"
    assert [row["name"] for row in found["children"]] == ["tank", "logs", "spares"]
    tank, logs, spares = found["children"]
    assert [row["name"] for row in tank["children"]] == ["mirror-0", "mirror-1"]
    good, bad = tank["children"][0]["children"]
    assert good == {
        "name": "/dev/sdb1", "state": "ONLINE", "read": 0, "write": 0, "cksum": 1200, "msg": "", "leaf": 1,
    }  # fmt: skip
    assert (bad["state"], bad["msg"]) == ("UNAVAIL", "was /dev/sdc1")
    assert tank["children"][1]["children"][1]["msg"] == "(resilvering)"
    assert logs["children"][0]["name"] == "/dev/sdf1"
    assert spares["children"][0] == {"name": "/dev/sdg1", "state": "AVAIL", "msg": "", "leaf": 1}


def test_lists() -> None:
    text = "tank\t5905580032\t102400\t5905477632\t3\t1.00\tONLINE\nold\t-\t-\t-\t-\t-\tFAULTED\n"
    assert pools.parse_list(text) == [
        {"name": "tank", "size": 5905580032, "alloc": 102400, "free": 5905477632, "frag": 3, "dedup": 1.0,
         "health": "ONLINE"},
        {"name": "old", "size": 0, "alloc": 0, "free": 0, "frag": 0, "dedup": 1.0, "health": "FAULTED"},
    ]  # fmt: skip


D = [f"/dev/sd{letter}" for letter in "bcdefg"]


@pytest.mark.parametrize(
    ("level", "count", "draid", "words"),
    [
        ("single", 1, None, D[:1]),
        ("mirror", 3, None, ["mirror", *D[:3]]),
        ("raid10", 4, None, ["mirror", *D[:2], "mirror", *D[2:4]]),
        ("raidz2", 4, None, ["raidz2", *D[:4]]),
        ("draid", 3, None, ["draid", *D[:3]]),
        ("draid2", 6, pools.Draid(2, 1), ["draid2:2d:1s", *D]),
    ],
)
def test_layouts(level: str, count: int, draid: pools.Draid | None, words: list[str]) -> None:
    pools.check(level, D[:count], draid)
    assert pools.layout(level, D[:count], draid) == words


@pytest.mark.parametrize(
    ("level", "devices", "draid", "wrong"),
    [
        ("single", D[:2], None, "takes exactly 1 disk, 2 are given"),
        ("mirror", D[:1], None, "needs at least 2 disks, 1 are given"),
        ("raid10", D[:3], None, "needs at least 4 disks"),
        ("raid10", D[:5], None, "needs an even number of disks, 5 are given"),
        ("raidz", D[:2], None, "needs at least 3"),
        ("raidz3", D[:4], None, "needs at least 5"),
        ("draid3", D[:4], None, "needs at least 5"),
        ("mirror", [D[0], D[0]], None, "a disk is named twice"),
        ("raidz", D[:3], pools.Draid(1, 0), "is for the levels draid, draid2 and draid3 only"),
        ("draid", D[:3], pools.Draid(3, 1), "needs at least 5 disks"),
    ],
)
def test_numbers_of_disks_that_make_no_level(
    level: str, devices: list[str], draid: pools.Draid | None, wrong: str
) -> None:
    with pytest.raises(ParamErrors, match=wrong):
        pools.check(level, devices, draid)


def test_every_level_of_the_interface_is_known() -> None:
    from pvetools.api import disks

    schema = disks.PoolParams.FIELDS["raidlevel"].kind.json
    assert schema["enum"] == [*pools.LEVELS]


def test_members_of_logs_and_caches_belong_to_their_pool() -> None:
    dashes = "\t-" * 9
    text = (
        f"tank\t9\t1\t8\t-\t-\t0\t0\t1.00\tONLINE\t-\n\t/dev/sdb1\t9\t1\t8\t-\t-\t0\t0.0\t-\tONLINE\n"
        f"dedup{dashes}\n\tmirror-1\t9\t1\t8\t-\t-\t0\t0.0\t-\tONLINE\n\t/dev/sdc1{dashes}\n\t/dev/sdd1{dashes}\n"
        f"special{dashes}\n\t/dev/sde1{dashes}\nlogs{dashes}\n\t/dev/sdf1{dashes}\n"
        "cache                 -      -      -        -         -      -      -      -         -\n"
        f"\t/dev/sdg1{dashes}\nspare{dashes}\n\t/dev/sdh1{dashes}\n"
        "special\t-\t-\t-\t-\t-\t-\t-\t-\tFAULTED\t-\n\t/dev/sdi1\t-\t-\t-\t-\t-\t-\t-\t-\tFAULTED\n"
    )
    assert facts.parse_members(text) == {
        "tank": frozenset(f"/dev/sd{letter}1" for letter in "bcdefgh"), "special": frozenset({"/dev/sdi1"}),
    }  # fmt: skip


@pytest.mark.parametrize("gone", [True, False])
def test_a_pool_that_stays_is_still_imported_at_boot(monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    said: list[str] = []

    def run_(words: list[str], **_: object) -> run.Completed:
        said.append(" ".join(words[:2]))
        if words[0] == "zpool" and words[1] == "list":
            return run.Completed("tank\t9\t1\t8\t0\t1.00\tONLINE\n", "", 0)
        if words[0] == "zpool" and not gone:
            raise RunError(words, 1, "pool is busy")
        if words[0] == "systemctl":
            raise RunError(words, 1, "no bus")
        return run.Completed("", "", 0)

    monkeypatch.setattr(run, "run", run_)
    monkeypatch.setattr(pools, "IMPORT_UNIT", Path("/"))
    monkeypatch.setattr(pools.storages, "require_unused", lambda *_, **__: None)
    monkeypatch.setattr(pools.facts, "pools", dict)
    monkeypatch.setattr(pools.checks, "locked", contextlib.nullcontext)
    if gone:
        pools.destroy("tank")
        assert said == ["zpool list", "zpool destroy", "systemctl disable"]
    else:
        with pytest.raises(RunError, match="pool is busy"):
            pools.destroy("tank")
        assert said == ["zpool list", "zpool destroy"]
