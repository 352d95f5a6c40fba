"""Machines that run, seen from outside: start, stop, pause, states, taps, what is left behind."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from pvetools.guest.qemu import place
from tests.real.qemu.machine import config, create, status, virsh, volumes, wait_until
from tests.sandbox import daemons
from tests.sandbox.root import Result, Root

LINKS = Path("/sys/class/net")


def started(root: Root, *words: object) -> int:
    """Make and start machine 100; gives QEMU's process id."""
    create(root, 100, *words)
    root.cli("qm", "start", 100, ok=True)
    return pid(root)


def pid(root: Root) -> int:
    listed = root.cli("qm", "list", ok=True).stdout.splitlines()[1].split()
    return int(listed[-1])


def test_a_machine_starts_and_stops_without_leaving_anything(root: Root) -> None:
    qemu = started(root, "--scsi0", "local:1", "--net0", "virtio,bridge=vmbr0", "--serial0", "socket")
    assert status(root) == "status: running"
    assert Path(f"/proc/{qemu}").exists()
    (tap,) = root.links()
    assert (LINKS / tap / "master").resolve().name == "vmbr0"
    assert len(tap) <= 15
    root.cli("qm", "stop", 100, ok=True)
    assert status(root) == "status: stopped"
    assert not Path(f"/proc/{qemu}").exists()
    assert root.running() == {}
    assert list((root / "run/pvetools/qemu").iterdir()) == []
    assert place.domain_name(100) not in virsh("list", "--all", "--name").split()


def test_a_second_start_is_refused_and_a_second_stop_does_nothing(root: Root) -> None:
    started(root)
    again = root.cli("qm", "start", 100)
    assert (again.status, again.stderr.strip()) == (255, "VM 100 already running")
    root.cli("qm", "stop", 100, ok=True)
    root.cli("qm", "stop", 100, ok=True)
    root.cli("qm", "shutdown", 100, ok=True)


@pytest.mark.parametrize("command", ["reset", "suspend", "resume", "reboot", "terminal"])
def test_a_stopped_machine_cannot_be(root: Root, command: str) -> None:
    create(root, 100, "--serial0", "socket")
    said = root.cli("qm", command, 100)
    assert said.status != 0
    assert said.stderr.strip() == "VM 100 not running"


def test_a_killed_qemu_leaves_a_machine_that_can_be_started_again(root: Root) -> None:
    qemu = started(root, "--net0", "virtio,bridge=vmbr0")
    os.kill(qemu, signal.SIGKILL)
    wait_until("the machine is stopped", lambda: status(root) == "status: stopped")
    root.cli("qm", "start", 100, ok=True)
    assert status(root) == "status: running"
    assert pid(root) != qemu


def test_suspend_stops_the_processors_until_resume(root: Root) -> None:
    started(root)
    root.cli("qm", "suspend", 100, ok=True)
    verbose = root.cli("qm", "status", 100, "--verbose", ok=True).stdout
    assert "qmpstatus: paused" in verbose
    assert "status: running" in verbose
    refused = root.cli("qm", "shutdown", 100)
    assert refused.status != 0
    assert "paused" in refused.stderr
    root.cli("qm", "shutdown", 100, "--forceStop", 1, ok=True, timeout=30)
    root.cli("qm", "start", 100, ok=True)
    root.cli("qm", "suspend", 100, ok=True)
    root.cli("qm", "resume", 100, ok=True)
    assert "qmpstatus: running" in root.cli("qm", "status", 100, "--verbose", ok=True).stdout


def test_a_shutdown_that_the_system_ignores_runs_into_its_time_out(root: Root) -> None:
    started(root)
    ignored = root.cli("qm", "shutdown", 100, "--timeout", 1)
    assert ignored.status != 0
    assert "got timeout" in ignored.stderr
    assert status(root) == "status: running"
    root.cli("qm", "shutdown", 100, "--timeout", 1, "--forceStop", ok=True)
    assert status(root) == "status: stopped"


def test_a_waiting_shutdown_can_be_overruled_by_a_stop(root: Root) -> None:
    started(root)
    waiting = root.spawn("qm", "shutdown", "100", "--timeout", "60", stderr=-3)
    active = root / "var/log/pve/tasks/active"
    wait_until("the shutdown is a task", lambda: active.exists() and "qmshutdown" in active.read_text())
    root.cli("qm", "stop", 100, "--overrule-shutdown", ok=True, timeout=60)
    assert waiting.wait(20) != 0
    assert status(root) == "status: stopped"


def test_wait_returns_when_the_machine_has_stopped(root: Root) -> None:
    qemu = started(root)
    late = root.cli("qm", "wait", 100, "--timeout", 1)
    assert late.status != 0
    assert "still running" in late.stderr
    waiting = root.spawn("qm", "wait", "100")
    os.kill(qemu, signal.SIGKILL)
    assert waiting.wait(20) == 0
    assert root.cli("qm", "wait", 100, ok=True).stderr == ""


def test_changes_of_a_running_machine_wait_for_its_next_start(root: Root) -> None:
    started(root, "--scsi0", "local:1")
    root.cli("qm", "set", 100, "--memory", 96, "--name", "other", "--delete", "scsi0", ok=True)
    pending = root.cli("qm", "pending", 100, ok=True).stdout
    assert "cur memory: 64\nnew memory: 96\n" in pending
    assert "del scsi0: local:100/vm-100-disk-0.raw,size=1G" in pending
    assert "cur name: other" in pending
    now, later = config(root, 100, "--current"), config(root)
    assert (now["memory"], later["memory"]) == ("64", "96")
    assert "scsi0" in now
    assert "scsi0" not in later
    root.cli("qm", "stop", 100, ok=True)
    root.cli("qm", "start", 100, ok=True)
    found = config(root, 100, "--current")
    assert found["memory"] == "96"
    assert found["unused0"] == "local:100/vm-100-disk-0.raw"
    assert "98304" in virsh("dommemstat", root.domains()[0])


def test_pending_changes_can_be_forgotten(root: Root) -> None:
    started(root)
    root.cli("qm", "set", 100, "--memory", 96, "--cores", 2, ok=True)
    root.cli("qm", "set", 100, "--revert", "memory", ok=True)
    assert "[PENDING]\ncores: 2\n" in root.config(100).read_text()


def test_a_disk_grows_while_the_machine_runs(root: Root) -> None:
    started(root, "--scsi0", "local:1,format=qcow2", "--scsihw", "virtio-scsi-pci")
    root.cli("qm", "disk", "resize", 100, "scsi0", "+512M", ok=True)
    assert config(root)["scsi0"] == "local:100/vm-100-disk-0.qcow2,size=1536M"
    name = root.domains()[0]
    assert f"{1536 << 20}" in virsh("domblkinfo", name, "sdg")


def test_a_start_corrects_the_sizes_of_disks(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    with (root / "var/lib/vz/images/100/vm-100-disk-0.raw").open("r+b") as image:
        image.truncate(2 << 30)
    root.cli("qm", "start", 100, ok=True)
    assert config(root)["scsi0"] == "local:100/vm-100-disk-0.raw,size=2G"


def test_two_starts_at_once_give_one_machine(root: Root) -> None:
    create(root, 100, "--net0", "virtio,bridge=vmbr0")
    results: list[Result] = []
    threads = [threading.Thread(target=lambda: results.append(root.cli("qm", "start", 100))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.status for result in results) == [0, 255, 255]
    assert {result.stderr.strip() for result in results if result.status} == {"VM 100 already running"}
    assert len(root.domains()) == 1


def test_a_start_that_fails_leaves_nothing(root: Root) -> None:
    create(root, 100, "--net0", "virtio,bridge=vmbr0", "--args", "-device no-such-device")
    said = root.cli("qm", "start", 100)
    assert said.status != 0
    assert "no-such-device" in said.stderr
    assert root.running() == {}


def test_a_machine_survives_the_end_of_libvirt(root: Root) -> None:
    qemu = started(root)
    with daemons.stopped():
        assert status(root) == "status: running"
        assert str(qemu) in root.cli("qm", "list", ok=True).stdout
        said = root.cli("qm", "stop", 100)
        assert said.status != 0
        assert "systemctl start" in said.stderr
    root.cli("qm", "stop", 100, ok=True)
    assert status(root) == "status: stopped"


def test_hook_scripts_run_around_start_and_stop(root: Root) -> None:
    hook = root / "var/lib/vz/snippets/hook"
    hook.write_text(f'#!/bin/sh\necho "$1 $2" >> {root / "said"}\necho hello from $2\n')
    hook.chmod(0o755)
    create(root, 100, "--hookscript", "local:snippets/hook")
    said = root.cli("qm", "start", 100, ok=True)
    assert "hello from pre-start" in said.stderr
    root.cli("qm", "stop", 100, ok=True)
    phases = (root / "said").read_text().splitlines()
    assert phases == ["100 pre-start", "100 post-start", "100 pre-stop", "100 post-stop"]
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 3\n")
    refused = root.cli("qm", "start", 100)
    assert refused.status != 0
    assert "not today" in refused.stderr
    assert status(root) == "status: stopped"


def test_two_roots_run_machines_with_the_same_id_and_the_same_uuid(root: Root) -> None:
    from tests.sandbox.root import fresh

    words = (
        "--smbios1",
        "uuid=7b10d7af-b932-4c66-b2c3-3996152ec465",
        "--net0",
        "virtio=BC:24:11:00:00:01,bridge=vmbr0",
    )
    started(root, *words)
    with fresh() as other:
        create(other, 100, *words)
        other.cli("qm", "start", 100, ok=True)
        assert len(root.domains()) == len(other.domains()) == 1
        other.cli("qm", "stop", 100, ok=True)
        assert status(root) == "status: running"


def test_the_state_of_a_disk_image_is_kept_by_a_refused_destroy(root: Root) -> None:
    started(root, "--scsi0", "local:1")
    said = root.cli("qm", "destroy", 100)
    assert said.status != 0
    assert "running" in said.stderr
    assert volumes(root) == ["vm-100-disk-0.raw"]
