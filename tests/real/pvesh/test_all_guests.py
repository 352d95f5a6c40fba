"""Starting and stopping all guests of the host in their order, and the doctor."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.sandbox.root import Result, Root
from tests.signals import ask_to_end

Cli = Callable[..., Result]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def containers(cli: Cli, local_template: str) -> Callable[..., None]:
    """Make small containers: `containers({101: "order=2"})`; an empty text gives onboot without an order."""

    def make(startup: dict[int, str], onboot: bool = True) -> None:
        for vmid, text in startup.items():
            words = ["--startup", text] if text else []
            cli(
                "pct", "create", vmid, local_template, "--ostype", "unmanaged", "--memory", 32, "--rootfs", "local:0",
                "--unprivileged", 1, "--onboot", int(onboot), *words, ok=True,
            )  # fmt: skip

    return make


def _running(cli: Cli) -> list[int]:
    rows = json.loads(cli("pvesh", "get", "/nodes/localhost/lxc", "--output-format", "json", ok=True).stdout)
    return sorted(row["vmid"] for row in rows if row["status"] == "running")


def _said(done: Result, word: str) -> list[int]:
    return [int(vmid) for vmid in re.findall(rf"^{word} CT (\d+)", done.stderr, re.MULTILINE)]


def test_guests_start_in_their_order_with_delays_and_stop_in_the_reverse(
    cli: Cli, containers: Callable[..., None]
) -> None:
    containers({101: "", 102: "order=2", 103: "order=1,up=2", 104: "order=2,down=1"})
    containers({105: "order=1"}, onboot=False)
    started = cli("pvenode", "startall", ok=True)
    assert _said(started, "starting") == [103, 102, 104, 101]
    assert "waiting for 2 seconds (startup delay)" in started.stderr
    assert started.seconds > 2
    assert _running(cli) == [101, 102, 103, 104]
    again = cli("pvenode", "startall", ok=True)
    assert _said(again, "starting") == []

    stopped = cli("pvenode", "stopall", "--timeout", 3, ok=True)
    assert _said(stopped, "shutting down") == [101, 104, 102, 103]
    assert "shutting down CT 104 (timeout 1 seconds)" in stopped.stderr
    assert "shutting down CT 102 (timeout 3 seconds)" in stopped.stderr
    assert _running(cli) == []
    tasks = json.loads(cli("pvenode", "task", "list", "--output-format", "json", ok=True).stdout)
    assert [row["type"] for row in tasks].count("vzstart") == 4
    assert {row["status"] for row in tasks} == {"OK"}


def test_chosen_guests_start_also_without_onboot(cli: Cli, containers: Callable[..., None]) -> None:
    containers({101: "", 102: ""}, onboot=False)
    cli("pvenode", "startall", "--vms", "102", "--force", ok=True)
    assert _running(cli) == [102]
    missing = cli("pvenode", "stopall", "--vms", "102,999")
    assert missing.status != 0
    assert "there is no guest 999" in missing.stderr
    assert _running(cli) == [102]
    cli("pvenode", "stopall", "--vms", "102", "--timeout", 1, ok=True)
    assert _running(cli) == []


def test_one_guest_that_cannot_start_does_not_keep_the_others(
    cli: Cli, root: Root, containers: Callable[..., None]
) -> None:
    containers({101: "order=1", 102: "order=2"})
    config = root.config(101)
    config.write_text(config.read_text() + "lock: backup\n")
    done = cli("pvenode", "startall", ok=True)
    assert re.search(r"^CT 101: .*lock", done.stderr, re.MULTILINE)
    assert "WARN: CT 101: start failed" in done.stderr
    assert _running(cli) == [102]
    (task,) = json.loads(
        cli("pvenode", "task", "list", "--typefilter", "startall", "--output-format", "json", ok=True).stdout
    )
    assert task["status"] == "WARNINGS: 1"
    log = cli("pvenode", "task", "log", task["upid"], ok=True).stdout
    assert log.startswith("starting CT 101\n")
    assert log.endswith("TASK WARNINGS: 1\n")
    shown = json.loads(cli("pvenode", "task", "status", task["upid"], "--output-format", "json", ok=True).stdout)
    assert (shown["status"], shown["exitstatus"]) == ("stopped", "WARNINGS: 1")


def test_an_interrupt_ends_the_waiting(cli: Cli, root: Root, containers: Callable[..., None]) -> None:
    containers({101: "order=1,up=100", 102: "order=2"})
    with root.spawn("pvenode", "startall", stderr=subprocess.PIPE) as process:
        assert any(b"waiting for 100 seconds" in line for line in process.stderr or ())
        assert ask_to_end(process, signal.SIGINT) == 130
    assert _running(cli) == [101]


def test_the_doctor_finds_a_fit_host(cli: Cli) -> None:
    done = cli("pvenode", "doctor", "--output-format", "json", ok=True)
    findings = {row["check"]: row for row in json.loads(done.stdout)}
    assert findings["libvirt"]["status"] == "ok"
    assert "vmbr0" in findings["bridges"]["detail"]
    assert findings["id ranges"]["status"] == "ok"
    assert findings["cgroups"]["status"] in ("ok", "warning")
    assert all(row["mend"] == "" for row in findings.values() if row["status"] == "ok")


@pytest.mark.usefixtures("no_libvirt")
def test_the_doctor_tells_what_is_missing_and_how_to_mend_it(cli: Cli) -> None:
    done = cli("pvenode", "doctor")
    assert done.status == 1
    assert re.search(r"^error +libvirt +can't reach libvirt", done.stdout, re.MULTILINE)
    assert re.search(r"^ +mend: .*systemctl enable --now libvirtd", done.stdout, re.MULTILINE)
    assert done.stderr == "this host cannot run guests yet: libvirt\n"
