"""Starting and ending containers, by command, by themselves and by force: nothing stays behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest

from pvetools.guest.lxc import stats
from tests.real.lxc.conftest import put_template, until
from tests.sandbox.root import Root
from tests.signals import ask_to_end

ROOTS = {"image": "local:1", "folder": "local:0"}
NET = ("--net0", "name=eth0,bridge=vmbr0")
GROUPS = Path("/sys/fs/cgroup")


def state(root: Root) -> str:
    return root.cli("pct", "status", 101, ok=True).stdout.removeprefix("status: ").strip()


def control_groups(root: Root) -> list[Path]:
    """Those of this root's container; other programs of the host may have some of that id."""
    tag = f"{crc32(os.path.realpath(root.path).encode()):08x}"
    return [path for path in GROUPS.glob("**/lxc*/*-101") if path.name.endswith(f"{tag}-101")]


def monitor(root: Root, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("PVETOOLS_ROOT", str(root.path))
    return stats.monitor_pid(101)


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("unprivileged", [1, 0])
def test_from_creation_to_destruction(small: Callable[..., Root], kind: str, unprivileged: int) -> None:
    root = small("--rootfs", ROOTS[kind], "--unprivileged", unprivileged, *NET)
    assert root.running() == {}
    for _ in ("first", "second"):
        root.cli("pct", "start", 101, ok=True)
        uid = root.cli("pct", "exec", 101, "--", "stat", "-c", "%u", "/etc/hostname", ok=True).stdout
        assert uid == "0\n"
        assert root.containers() == ["101"]
        assert control_groups(root)
        assert root.mounts() == []  # the host sees none of them
        root.cli("pct", "stop", 101, ok=True)
        assert root.running() == {}
    root.cli("pct", "destroy", 101, ok=True)
    assert not root.config(101).exists()
    assert list((root / "var/lib/vz/images").iterdir()) == [] == list((root / "var/lib/lxc").iterdir())
    assert control_groups(root) == []


def test_data_survive_restarts(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1", "--start", 1)
    root.cli("pct", "exec", 101, "--", "sh", "-c", "head -c 3M /dev/urandom > /data; md5sum /data > /sum", ok=True)
    root.cli("pct", "stop", 101, ok=True)
    root.cli("pct", "start", 101, ok=True)
    assert "OK" in root.cli("pct", "exec", 101, "--", "md5sum", "-c", "/sum", ok=True).stdout


def test_start_of_a_running_and_stop_of_a_stopped_one_are_refused(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--start", 1)
    done = root.cli("pct", "start", 101)
    assert done.status != 0 and "CT 101 already running" in done.stderr
    root.cli("pct", "stop", 101, ok=True)
    for command in ("stop", "shutdown", "reboot", "suspend", "resume"):
        done = root.cli("pct", command, 101)
        assert done.status != 0 and "CT 101 not running" in done.stderr


def test_shutdown_and_reboot_of_a_real_init(root: Root, ct_template: Path) -> None:
    root.cli("pct", "create", 101, put_template(root, ct_template), "--rootfs", "local:1", *NET, "--start", 1, ok=True)
    root.cli("pct", "exec", 101, "--", "touch", "/run/only-until-reboot", ok=True)
    root.cli("pct", "set", 101, "--searchdomain", "later.example.org", ok=True)
    root.cli("pct", "reboot", 101, "--timeout", 60, ok=True)
    done = root.cli("pct", "exec", 101, "--", "sh", "-c", "cat /etc/resolv.conf; ls /run/only-until-reboot")
    assert done.status != 0 and "search later.example.org" in done.stdout  # a new start, with what was pending
    root.cli("pct", "shutdown", 101, "--timeout", 60, ok=True)
    assert state(root) == "stopped"
    assert root.running() == {}


def test_a_shutdown_right_after_the_start_is_not_lost(root: Root, ct_template: Path) -> None:
    root.cli("pct", "create", 101, put_template(root, ct_template), "--rootfs", "local:0", "--start", 1, ok=True)
    root.cli("pct", "shutdown", 101, "--timeout", 60, ok=True)
    assert state(root) == "stopped"


def test_busybox_shuts_down_when_asked(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1", "--start", 1)
    root.cli("pct", "shutdown", 101, "--timeout", 30, ok=True)
    assert root.running() == {}


def test_an_init_that_does_not_listen_is_stopped_when_asked(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--entrypoint", "/bin/sleep 1000", "--start", 1)
    done = root.cli("pct", "shutdown", 101, "--timeout", 1)
    assert done.status != 0 and "CT 101 did not shut down within 1 seconds" in done.stderr
    assert state(root) == "running"
    root.cli("pct", "shutdown", 101, "--timeout", 1, "--forceStop", 1, ok=True)
    assert state(root) == "stopped"


def test_stop_overrules_a_waiting_shutdown(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--entrypoint", "/bin/sleep 1000", "--start", 1)
    waiting = root.spawn("pct", "shutdown", 101, "--timeout", 100)
    until(lambda: "vzshutdown" in (root / "var/log/pve/tasks/active").read_text(), "the task")
    root.cli("pct", "stop", 101, "--overrule-shutdown", 1, ok=True)
    assert waiting.wait(20) != 0
    assert state(root) == "stopped"


def test_a_frozen_container_goes_on_where_it_was(small: Callable[..., Root], monkeypatch: pytest.MonkeyPatch) -> None:
    root = small("--rootfs", "local:0", "--start", 1)
    loop = "(while :; do echo >> /ticks; sleep 0.01; done) >/dev/null 2>&1 &"
    root.cli("pct", "exec", 101, "--", "sh", "-c", loop, ok=True)
    ticks = root / "var/lib/vz/images/101/subvol-101-disk-0.subvol/ticks"
    until(ticks.exists, "a tick")
    root.cli("pct", "suspend", 101, ok=True)
    before = ticks.stat().st_size
    time.sleep(0.1)
    assert ticks.stat().st_size == before
    root.cli("pct", "resume", 101, ok=True)
    until(lambda: ticks.stat().st_size > before, "another tick")
    root.cli("pct", "suspend", 101, ok=True)
    root.cli("pct", "stop", 101, ok=True)
    assert root.running() == {}


def test_a_container_that_ends_by_itself_leaves_nothing(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1", "--mp0", "local:1,mp=/data", *NET, "--start", 1)
    root.cli("pct", "exec", 101, "--", "poweroff")
    until(lambda: state(root) == "stopped", "the end")
    until(lambda: root.running() == {}, "nothing left")
    assert control_groups(root) == []
    root.cli("pct", "start", 101, ok=True)


def test_a_reboot_from_inside_keeps_volumes_and_links(root: Root, ct_template: Path) -> None:
    root.cli("pct", "create", 101, put_template(root, ct_template), "--rootfs", "local:1", "--mp0",
             "local:1,mp=/srv/data", *NET, "--start", 1, ok=True)  # fmt: skip
    again = "touch /run/only-until-reboot /srv/data/stays; while ! runlevel | grep -q 2; do sleep 0.1; done; reboot"
    root.cli("pct", "exec", 101, "--", "sh", "-c", again, ok=True)
    command = ("pct", "exec", 101, "--", "sh", "-c", "ls /srv/data/stays /sys/class/net/eth0/mtu; ls /run/only*")
    until(lambda: (done := root.cli(*command)).stdout.count("\n") == 2 and done.status != 0, "the second boot")


def test_a_frozen_container_dies_with_its_monitor_at_the_next_start(
    small: Callable[..., Root], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small("--rootfs", "local:1", "--start", 1)
    root.cli("pct", "suspend", 101, ok=True)
    os.kill(monitor(root, monkeypatch), signal.SIGKILL)
    until(lambda: state(root) == "stopped", "the end of the monitor")
    root.cli("pct", "start", 101, ok=True)
    root.cli("pct", "stop", 101, ok=True)
    assert root.running() == {}


def test_after_the_monitors_death_the_next_start_works(
    small: Callable[..., Root], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small("--rootfs", "local:1", *NET, "--start", 1)
    os.kill(monitor(root, monkeypatch), signal.SIGKILL)
    until(lambda: root.running() == {}, "its end")
    assert state(root) == "stopped"
    root.cli("pct", "start", 101, ok=True)
    root.cli("pct", "stop", 101, ok=True)
    until(lambda: control_groups(root) == [], "no groups left", 2)


def test_lxcs_own_tools_see_the_container(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--hostname", "seen", "--start", 1)
    assert root.containers() == ["101"]
    text = (root / "var/lib/lxc/101/config").read_text()
    assert "lxc.uts.name = seen\n" in text


def test_two_roots_do_not_disturb_each_other(
    small: Callable[..., Root], ct_template_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.sandbox.root import fresh

    one = small("--rootfs", "local:0", *NET, "--start", 1)
    with fresh() as two:
        two.cli("pct", "create", 101, put_template(two, ct_template_small), "--rootfs", "local:0", *NET, ok=True)
        assert state(two) == "stopped"
        two.cli("pct", "start", 101, ok=True)
        two.cli("pct", "stop", 101, ok=True)
        assert state(one) == "running"


def test_one_that_is_asked_for_twice_starts_once(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1")
    done = [root.spawn("pct", "start", 101, stderr=-3) for _ in range(3)]
    assert sorted(process.wait(60) for process in done) == [0, 255, 255]
    assert root.containers() == ["101"]


def test_an_interrupted_shutdown_leaves_it_running(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--entrypoint", "/bin/sleep 1000", "--start", 1)
    waiting = root.spawn("pct", "shutdown", 101, "--timeout", 100)
    until(lambda: "vzshutdown" in (root / "var/log/pve/tasks/active").read_text(), "the task")
    assert ask_to_end(waiting, signal.SIGINT) == 130
    assert state(root) == "running"


def test_the_log_tells_why_a_start_failed(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--entrypoint", "/no/such/init")
    done = root.cli("pct", "start", 101)
    assert done.status != 0
    assert "CT 101 did not start: " in done.stderr and "/no/such/init" in done.stderr
    assert "DEBUG" in root.cli("pct", "start", 101, "--debug", 1).stderr
    assert root.running() == {}
