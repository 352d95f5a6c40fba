"""Kill -9 at the steps of a command: nothing is lost, nothing stays unseen, and the next command works or says how.

An ordinary run tries a sample of the steps, the same ones each time; with PVETOOLS_WALK=all all of them.
"""

from __future__ import annotations

import pytest

from tests.real.reliability.scenes import SCENES, Known, Material, Scene, bystander_of
from tests.real.reliability.stage import ALL, Case, chosen, copied, temporary_files
from tests.sandbox.steps import Walk
from tests.sandbox.zygote import QuickRoot


def killed(scene: Scene, base: QuickRoot, material: Material, number: int, known: Known) -> int:
    """Kill the command before one step (0: never) and check everything; gives the number of steps."""
    with copied(base, base.zygote) as root:
        facts = {**known, **scene.begin(root)}
        command = scene.command(root, material)
        ended = Walk(root, *map(str, command)).kill_before(number)
        if number == 0:
            assert ended.status == 0, f"{ended.stderr}{ended.stdout}"
            return len(ended.labels)
        try:
            assert ended.killed, f"it ended before step {number}"
            case = Case(root, command, ended, facts)
            case.check_common()
            scene.check(case)
            case.check_quiet()
            assert not temporary_files(root), temporary_files(root)
            assert bystander_of(root) == facts["bystander"]
        except AssertionError as error:
            raise AssertionError(f"killed before step {number} ({ended.label}): {error}") from error
    return number


@pytest.mark.timeout(3600 if ALL else 600)
@pytest.mark.parametrize("name", SCENES)
def test_nothing_is_lost_and_the_next_command_works(name: str, base: QuickRoot, material: Material) -> None:
    scene = SCENES[name]
    known = scene.prepare(base, material)
    count = killed(scene, base, material, 0, known)
    failures = []
    for number in chosen(count, scene.sample):
        try:
            killed(scene, base, material, number, known)
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, f"{len(failures)} failures\n" + "\n\n".join(failures)
