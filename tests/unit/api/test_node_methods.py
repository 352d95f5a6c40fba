"""Methods of the node and the cluster."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvetools.api import cluster, nodes, tree
from pvetools.api.tree import Method
from pvetools.system import log, paths, task
from pvetools.system.errors import NotFound, ParamErrors, PveError, Refused


def _call(row: Method, **raw: str) -> Any:
    given = {"node": paths.node(), **raw} if "{node}" in row.path else raw
    result = tree.call(row, given)
    json.dumps(result)
    return result


def test_the_version_is_in_the_form_that_clients_check() -> None:
    for row in (nodes.version, nodes.node_version):
        found = _call(row)
        assert re.fullmatch(r"\d+\.\d+\.\d+", found["version"])
        assert found["version"].startswith(found["release"])
        assert re.fullmatch("[0-9a-fA-F]{8,64}", found["repoid"])


def test_the_state_of_the_node_is_that_of_the_host(root: Path) -> None:
    found = _call(nodes.node_status)
    meminfo = Path("/proc/meminfo").read_text()
    assert found["memory"]["total"] == int(re.findall(r"MemTotal:\s+(\d+) kB", meminfo)[0]) * 1024
    assert found["cpuinfo"]["cpus"] == os.cpu_count()
    assert abs(found["uptime"] - float(Path("/proc/uptime").read_text().split()[0])) < 5
    assert 0 <= found["cpu"] <= 1
    assert found["rootfs"]["total"] >= found["rootfs"]["used"] > 0
    assert [len(word.split(".")[1]) for word in found["loadavg"]] == [2, 2, 2]
    assert found["current-kernel"]["release"] == os.uname().release
    assert found["pveversion"].startswith("pve-manager/")


def test_the_list_of_nodes_has_this_one(root: Path) -> None:
    (row,) = _call(nodes.node_list)
    assert (row["node"], row["status"], row["id"]) == (paths.node(), "online", f"node/{paths.node()}")
    assert row["maxcpu"] == os.cpu_count()
    assert 0 < row["mem"] < row["maxmem"]


def test_the_time_is_told_in_both_forms() -> None:
    found = _call(nodes.node_time)
    assert abs(found["time"] - time.time()) < 5
    assert found["localtime"] - found["time"] == time.localtime(found["time"]).tm_gmtoff
    assert found["timezone"]


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def history(root: Path) -> list[str]:
    """Four ended tasks, oldest first: ok, with a warning, failed, and one that died; and one that runs."""

    def fail() -> None:
        raise PveError("no space")

    names = [task.run("qmstart", "100", lambda: log.emit("line"))]
    names.append(task.run("vzdump", "101", lambda: log.warn("x"), "tester@pam"))
    with pytest.raises(PveError):
        task.run("vzcreate", "102", fail)
    names.append(str(next(task.archived()).upid))
    dead = task.parse_upid(names[0])._replace(pid=1, pstart=1, id="103", type="qmstop")
    running = task.parse_upid(names[0])._replace(starttime=int(time.time()) + 60, id="104", type="qmreboot")
    for upid in (dead, running):
        task.log_path(upid).parent.mkdir(parents=True, exist_ok=True)
        task.log_path(upid).write_text("")
        with (root / "var/log/pve/tasks/active").open("a") as file:
            file.write(f"{upid} 0\n")
    return [*names, str(dead), str(running)]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, ["103", "102", "101", "100"]),
        ({"source": "active"}, ["104"]),
        ({"source": "all"}, ["104", "103", "102", "101", "100"]),
        ({"limit": "2"}, ["103", "102"]),
        ({"limit": "2", "start": "1"}, ["102", "101"]),
        ({"limit": "0", "start": "1"}, ["102", "101", "100"]),
        ({"errors": "1"}, ["103", "102"]),
        ({"statusfilter": "ok"}, ["100"]),
        ({"statusfilter": "warning,unknown"}, ["103", "101"]),
        ({"statusfilter": "error", "source": "all"}, ["102"]),
        ({"typefilter": "vzdump"}, ["101"]),
        ({"userfilter": "test"}, ["101"]),
        ({"vmid": "102"}, ["102"]),
        ({"since": "99999999999"}, []),
        ({"until": "1"}, []),
        ({"since": "1", "until": "99999999999"}, ["103", "102", "101", "100"]),
    ],
)
def test_tasks_are_listed_newest_first_and_filtered(
    history: list[str], filters: dict[str, str], ids: list[str]
) -> None:
    assert [row["id"] for row in _call(nodes.task_list, **filters)] == ids


def test_a_listed_task_has_its_parts_and_its_result(history: list[str]) -> None:
    rows = {row["id"]: row for row in _call(nodes.task_list, source="all")}
    assert {key: row["status"] for key, row in rows.items()} == {
        "100": "OK",
        "101": "WARNINGS: 1",
        "102": "no space",
        "103": "unexpected status",
        "104": "RUNNING",
    }
    assert rows["100"]["upid"] == history[0]
    assert rows["101"]["user"] == "tester@pam"
    assert isinstance(rows["100"]["endtime"], int)
    assert "endtime" not in rows["104"]


def test_recent_tasks_of_the_cluster_are_listed_with_those_that_run(history: list[str]) -> None:
    assert {row["id"] for row in _call(cluster.tasks)} == {"100", "101", "102", "103", "104"}


def test_the_state_of_a_task_is_running_or_stopped_with_its_result(history: list[str]) -> None:
    states = [_call(nodes.task_status, upid=name) for name in history]
    assert [state["status"] for state in states] == ["stopped"] * 4 + ["running"]
    assert [state.get("exitstatus") for state in states] == ["OK", "WARNINGS: 1", "no space", "unexpected status", None]
    assert {"pid", "pstart", "starttime", "node", "user", "type", "id", "upid"} <= states[0].keys()


def test_a_log_is_read_in_parts(root: Path) -> None:
    def body() -> None:
        for number in range(60):
            log.emit(f"line {number}")

    upid = task.run("vzdump", "", body)
    assert len(_call(nodes.task_log, upid=upid)) == 50
    assert _call(nodes.task_log, upid=upid, start="59") == [{"n": 60, "t": "line 59"}, {"n": 61, "t": "TASK OK"}]
    assert _call(nodes.task_log, upid=upid, start="3", limit="1") == [{"n": 4, "t": "line 3"}]
    assert len(_call(nodes.task_log, upid=upid, limit="0")) == 61
    assert _call(nodes.task_log, upid=upid, start="100") == [{"n": 1, "t": "no content"}]


def test_a_log_is_not_sent_as_a_file(history: list[str]) -> None:
    with pytest.raises(Refused, match="download"):
        _call(nodes.task_log, upid=history[0], download="1")


@pytest.mark.parametrize("row", [nodes.task_log, nodes.task_status, nodes.task_stop])
def test_an_unknown_task_is_not_found_and_a_malformed_name_refused(root: Path, row: Method) -> None:
    upid = f"UPID:{paths.node()}:0000C346:165A0CE4:68D7279C:qmstart:100:root@pam:"
    with pytest.raises(NotFound, match="no such task"):
        _call(row, upid=upid)
    with pytest.raises(NotFound, match="belongs to node 'far'"):
        _call(row, upid=upid.replace(paths.node(), "far", 1))
    with pytest.raises(PveError, match="unable to parse"):
        _call(row, upid="UPID:x")


# -- cluster -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def guests(root: Path) -> Callable[..., None]:
    def make(*vmids: int, node: str = "", kind: str = "qemu") -> None:
        folder = paths.guest_dir(kind, node)
        folder.mkdir(parents=True, exist_ok=True)
        for vmid in vmids:
            (folder / f"{vmid}.conf").write_text("memory: 128\n")

    return make


def test_the_next_id_is_the_lowest_free_one_of_all_nodes_and_kinds(guests: Callable[..., None]) -> None:
    assert _call(cluster.next_id) == 100
    guests(100)
    guests(101, kind="lxc")
    guests(102, 104, node="far")
    assert _call(cluster.next_id) == 103
    assert _call(cluster.next_id, vmid="103") == 103
    with pytest.raises(ParamErrors, match="CT 101 already exists"):
        _call(cluster.next_id, vmid="101")


def test_the_range_of_ids_comes_from_the_datacenter_file(root: Path, guests: Callable[..., None]) -> None:
    (root / "etc/pve/datacenter.cfg").write_text("keyboard: de\nnext-id: lower=200,upper=202\n")
    guests(200)
    assert _call(cluster.next_id) == 201
    guests(201)
    with pytest.raises(PveError, match="no free guest id from 200 to 201"):
        _call(cluster.next_id)
    (root / "etc/pve/datacenter.cfg").write_text("next-id: lower=x\n")
    with pytest.raises(PveError, match=r"datacenter\.cfg: next-id: "):
        _call(cluster.next_id)


def test_the_cluster_has_this_host_alone() -> None:
    (row,) = _call(cluster.status)
    assert (row["name"], row["local"], row["online"]) == (paths.node(), 1, 1)
