"""SIGTERM and Ctrl-C at the steps of a command, and again while it undoes: nothing stays, the task log says so."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest

from tests.real.reliability.scenes import SCENES, Known, Material, Restore, Scene, Vm, Vzdump
from tests.real.reliability.stage import ALL, Case, chosen, configs, copied, temporary_files, volumes
from tests.sandbox.root import Root
from tests.sandbox.steps import Walk
from tests.sandbox.zygote import QuickRoot

INTERRUPTED, JOB_FAILED = 130, 255


@dataclass(frozen=True)
class Import(Scene):
    """A disk for guest 100."""

    def prepare(self, root: Root, material: Material) -> Known:
        return self.make_guest(root, material)

    def command(self, root: Root, material: Material) -> tuple[object, ...]:
        return ("qm", "disk", "import", 100, material.image, "local", "--format", "qcow2")


COMMANDS = {
    **{name: scene for name, scene in SCENES.items() if not name.endswith(("start", "destroy"))},
    "qm disk import": Import(Vm, 4),
}


def task_status(root: Root) -> str:
    """Result of the task that ended last, as its log's last line has it."""
    logs = sorted((root / "var/log/pve/tasks").glob("?/UPID*"), key=lambda path: path.stat().st_mtime)
    return logs[-1].read_text().rstrip("\n").rpartition("\n")[2]


def is_finished(scene: Scene, case: Case) -> bool:
    """A restored guest is complete; what comes after it was interrupted."""
    guests = configs(case.root)
    if not isinstance(scene, Restore) or scene.vmid not in guests or guests[scene.vmid].lock:
        return False
    return scene.kind.content(case.root, scene.vmid) == case.known["archived"]


def check_undone(scene: Scene, case: Case, files_before: set[str]) -> None:
    """The command was interrupted: everything is as it was before."""
    root = case.root
    assert set(volumes(root)) == files_before
    guests = configs(root)
    assert 101 not in guests
    assert not any(guest.lock for guest in guests.values())
    assert not (root / "var/lib/lxc/101").exists()
    assert not temporary_files(root), temporary_files(root)
    assert not list((root / "var/lib/pvetools").glob("vzdump/*"))
    if isinstance(scene, Vzdump):
        assert len(list((root / "var/lib/vz/dump").glob("*.zst"))) <= 1
        if scene.running:
            scene.check_running(case)
    assert scene.kind.content(root, 100) == case.known["content"]


def interrupted(scene: Scene, base: QuickRoot, material: Material, number: int, known: Known) -> None:
    sig = signal.SIGINT if number % 2 else signal.SIGTERM
    with copied(base, base.zygote) as root:
        facts = {**known, **scene.begin(root)}
        before = set(volumes(root))
        command = scene.command(root, material)
        ended = Walk(root, *map(str, command)).kill_before(number, sig=sig)
        try:
            case = Case(root, command, ended, facts)
            case.check_common()
            if ended.status == 0:  # it came too late, or to a helper that had ended
                return
            expected = JOB_FAILED if isinstance(scene, Vzdump) else INTERRUPTED
            assert ended.killed or ended.status == expected, ended
            if ended.status == expected:
                assert "interrupted" in ended.stderr
                assert task_status(root) == "TASK ERROR: interrupted by signal"
            if not is_finished(scene, case):
                check_undone(scene, case, before)
            case.check_quiet()
        except AssertionError as error:
            raise AssertionError(f"{sig.name} at step {number} ({ended.labels[number - 1]}): {error}") from error


@pytest.mark.timeout(3600 if ALL else 600)
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_left(name: str, base: QuickRoot, material: Material) -> None:
    scene = COMMANDS[name]
    known = scene.prepare(base, material)
    with copied(base, base.zygote) as root:
        scene.begin(root)
        count = len(Walk(root, *map(str, scene.command(root, material))).count())
    failures = []
    for number in chosen(count, min(scene.sample, 5)):
        try:
            interrupted(scene, base, material, number, known)
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, f"{len(failures)} failures\n" + "\n\n".join(failures)
