"""QEMU, a container's init and libvirt's daemon end without being asked: guests and commands cope with it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.real.reliability.scenes import TO_LOCAL, Ct, Material, Vm, init_pid, qemu_pid
from tests.real.reliability.stage import Case, configs, put_template, temporary_files, wait_until
from tests.sandbox import daemons
from tests.sandbox.root import Root
from tests.sandbox.steps import Ended
from tests.sandbox.zygote import QuickRoot

SLOW = ("--bwlimit", 1024)
UNTOUCHED = Ended(killed=False, labels=[], status=0, stdout="", stderr="", orphans={})


@pytest.fixture
def root(base: QuickRoot, material: Material) -> QuickRoot:
    put_template(base, material.template)
    return base


@pytest.fixture
def vm(root: QuickRoot, material: Material) -> QuickRoot:
    root.cli(*Vm.create(100, material), ok=True)  # type: ignore[arg-type]
    root.cli("qm", "start", 100, ok=True)
    return root


@pytest.fixture
def ct(root: QuickRoot, material: Material) -> QuickRoot:
    root.cli(*Ct.create(100, material), ok=True)  # type: ignore[arg-type]
    Ct.put_data(root)
    root.cli("pct", "start", 100, ok=True)
    return root


def case_of(root: Root, **known: object) -> Case:
    return Case(root, (), UNTOUCHED, known)


def slow_backup(root: Root, *words: object) -> subprocess.Popen[bytes]:
    """A backup of guest 100 that is in the middle of its data."""
    command = ("vzdump", 100, "--storage", "local", *SLOW, *words)
    process = root.spawn(*map(str, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until("data in the archive", lambda: any(path.stat().st_size for path in dump(root).glob("*.dat")))
    return process


def dump(root: Root) -> Path:
    return root / "var/lib/vz/dump"


def check_nothing_of_a_backup(root: Root) -> None:
    assert not temporary_files(root), temporary_files(root)
    assert not configs(root)[100].lock
    assert not list((root / "var/lib/pvetools/vzdump").iterdir())


# -- guests ------------------------------------------------------------------------------------------------------------


def test_a_dead_qemu_is_a_stopped_machine_at_once(vm: QuickRoot) -> None:
    os.kill(qemu_pid(vm), signal.SIGKILL)
    wait_until("no QEMU", lambda: not vm.processes())
    assert vm.cli("qm", "status", 100, ok=True).stdout.strip() == "status: stopped"
    assert "stopped" in vm.cli("qm", "list", ok=True).stdout
    vm.cli("qm", "start", 100, ok=True)
    vm.cli("qm", "stop", 100, ok=True)
    case_of(vm).check_quiet()


def test_a_dead_init_is_a_stopped_container_without_mounts_and_links(ct: QuickRoot) -> None:
    os.kill(init_pid(ct), signal.SIGKILL)
    wait_until("stopped", lambda: "stopped" in ct.cli("pct", "status", 100, ok=True).stdout)
    case_of(ct).check_quiet()
    ct.cli("pct", "start", 100, ok=True)
    ct.cli("pct", "stop", 100, ok=True)
    case_of(ct).check_quiet()
    ct.cli("pct", "destroy", 100, ok=True)


def test_a_qemu_that_dies_during_a_backup_ends_the_backup(vm: QuickRoot) -> None:
    backup = slow_backup(vm)
    os.kill(qemu_pid(vm), signal.SIGKILL)
    _, said = backup.communicate(timeout=60)
    assert backup.returncode == 255
    assert b"of VM 100 failed - " in said
    assert b"internal error" not in said
    check_nothing_of_a_backup(vm)
    vm.cli("qm", "start", 100, ok=True)
    vm.cli("qm", "stop", 100, ok=True)
    case_of(vm).check_quiet()


def test_a_container_that_dies_during_a_backup_does_not_come_back(ct: QuickRoot) -> None:
    backup = slow_backup(ct, "--mode", "suspend")
    os.kill(init_pid(ct), signal.SIGKILL)
    _, said = backup.communicate(timeout=60)
    assert b"internal error" not in said
    check_nothing_of_a_backup(ct)
    wait_until("stopped", lambda: "stopped" in ct.cli("pct", "status", 100, ok=True).stdout)
    case_of(ct).check_quiet()


# -- libvirt -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_machine_survives_a_new_libvirt_and_obeys_it(vm: QuickRoot, sig: signal.Signals) -> None:
    pid = qemu_pid(vm)
    daemons.stop(sig)
    try:
        assert f"pid: {pid}\n" in vm.cli("qm", "status", 100, "--verbose", ok=True).stdout
    finally:
        daemons.start()
    Vm.check_alive(case_of(vm, pid=pid))
    vm.cli("qm", "suspend", 100, ok=True)
    assert "qmpstatus: paused" in vm.cli("qm", "status", 100, "--verbose", ok=True).stdout
    vm.cli("qm", "resume", 100, ok=True)
    vm.cli("vzdump", 100, *TO_LOCAL, ok=True)
    vm.cli("qm", "stop", 100, ok=True)
    case_of(vm).check_quiet()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_backup_goes_on_beyond_a_new_libvirt(vm: QuickRoot, sig: signal.Signals) -> None:
    pid, content = qemu_pid(vm), Vm.content(vm, 100)
    backup = slow_backup(vm)
    daemons.stop(sig)
    daemons.start()
    _, said = backup.communicate(timeout=60)
    assert backup.returncode == 0, said.decode()
    check_nothing_of_a_backup(vm)
    Vm.check_alive(case_of(vm, pid=pid))
    (archive,) = dump(vm).glob("*.vma")
    vm.cli(*Vm.restore(101, f"local:backup/{archive.name}"), ok=True)  # type: ignore[arg-type]
    assert Vm.content(vm, 101) == content
    vm.cli("qm", "stop", 100, ok=True)


def test_a_start_that_was_killed_while_libvirt_worked_on_it_is_a_start(root: QuickRoot, material: Material) -> None:
    root.cli(*Vm.create(100, material), ok=True)  # type: ignore[arg-type]
    start = root.spawn("qm", "start", 100, stdout=subprocess.DEVNULL)
    wait_until("a QEMU", lambda: any("qemu-system" in words.split()[0] for words in root.processes().values()), 60)
    start.kill()
    start.wait(10)
    again = root.cli("qm", "start", 100)
    assert again.status == 0 or "100 already running" in again.stderr, again
    wait_until("running", lambda: "qmpstatus: running" in root.cli("qm", "status", 100, "--verbose", ok=True).stdout)
    root.cli("qm", "stop", 100, ok=True)
    case_of(root).check_quiet()
