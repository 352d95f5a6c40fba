"""The step walker sees every change, kills exactly there, and finds the children that are left."""

from __future__ import annotations

from tests.sandbox.root import Root
from tests.sandbox.steps import Walk

CODE = """
import os
from pathlib import Path
from pvetools.system.files import remove, write_atomic
from pvetools.system.run import popen, run
root = Path(os.environ["PVETOOLS_ROOT"])
run(["true"])
run(["true"])
write_atomic(root / "etc/one", "1")
(root / "etc/folder").mkdir()
child = popen(["sleep", "300"])
remove(root / "etc/one")
child.kill()
child.wait()
"""
STEPS = [
    "run.run true",
    "started true",
    "run.run true",
    "started true",
    "files.write_atomic /etc/one",
    "os.rename /etc/.one.tmp",
    "os.mkdir /etc/folder",
    "run.popen sleep 300",
    "started sleep 300",
    "files.remove /etc/one",
    "os.remove /etc/one",
]


def test_every_step_is_counted_in_order(root: Root):
    walk = Walk.of_code(root, CODE)
    labels = walk.count()
    assert [label.partition(".tmp.")[0] for label in labels] == [step.partition(".tmp")[0] for step in STEPS]


def test_a_kill_before_the_rename_leaves_the_old_state(root: Root):
    ended = Walk.of_code(root, CODE).kill_before(6)
    assert ended.killed
    assert ended.label.startswith("os.rename /etc/.one.tmp")
    assert not (root / "etc/one").exists()


def test_a_kill_after_a_child_was_started_finds_the_child(root: Root):
    ended = Walk.of_code(root, CODE).kill_before(9, linger=0.1)
    assert ended.killed
    assert next(iter(ended.orphans.values())).endswith("sleep 300")
    assert (root / "etc/one").exists()
    assert Walk.of_code(root, CODE).kill_before(99).killed is False
