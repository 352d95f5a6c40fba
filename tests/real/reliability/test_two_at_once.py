"""Two commands at once on one guest: one after the other, or one of them is refused in a clear sentence."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.real.reliability.scenes import TO_LOCAL, Ct, Kind, Material, Vm
from tests.real.reliability.stage import configs, put_template, volumes, wait_until
from tests.sandbox.root import Root
from tests.sandbox.zygote import QuickRoot

KINDS = pytest.mark.parametrize("kind", [Vm, Ct], ids=["VM", "CT"])
SLOW = ("--bwlimit", 512)  # KiB a second: long enough for other commands to come in between


class Said(NamedTuple):
    """How one of several processes ended."""

    status: int
    stderr: str


def together(root: Root, *commands: tuple[object, ...]) -> list[Said]:
    """Run commands at the same time."""
    started = [root.spawn(*map(str, words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for words in commands]
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    return [Said(status, text.decode()) for text, status in ended]


@contextmanager
def under_way(root: Root, lock: str, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command that has locked guest 100 and takes its time; it has to succeed in the end."""
    process = root.spawn(*map(str, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(f"lock {lock}", lambda: root.config(100).exists() and f"lock: {lock}" in root.config(100).read_text())
    time.sleep(0.05)
    try:
        yield process
        assert process.poll() is None, "it was over too soon for this test"
    except BaseException:
        process.kill()
        raise
    finally:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()


@pytest.fixture
def root(base: QuickRoot, material: Material) -> QuickRoot:
    put_template(base, material.template)
    return base


def make(root: Root, kind: Kind, material: Material) -> None:
    root.cli(*kind.create(100, material), ok=True)  # type: ignore[arg-type]


@KINDS
def test_of_several_starts_one_starts_it(root: QuickRoot, kind: Kind, material: Material) -> None:
    make(root, kind, material)
    said = together(root, *[(kind.tool, "start", 100)] * 3)
    assert sorted(one.status for one in said) == [0, 255, 255], said
    assert all("100 already running" in one.stderr for one in said if one.status)
    assert len(root.domains() + root.containers()) == 1


@KINDS
def test_changes_at_once_are_all_kept(root: QuickRoot, kind: Kind, material: Material) -> None:
    make(root, kind, material)
    wanted = {"memory": "96", "onboot": "1", "tags": "one", "description": "said", "cores": "1"}
    said = together(root, *[(kind.tool, "set", 100, f"--{key}", value) for key, value in wanted.items()])
    assert {one.status for one in said} == {0}, said
    current = configs(root)[100].current
    assert {key: current[key].strip() for key in wanted} == wanted


def test_of_two_changes_of_what_both_have_read_one_is_refused(root: QuickRoot, material: Material) -> None:
    make(root, Vm, material)
    seen = json.loads(root.cli("qm", "config", 100, "--output-format", "json", ok=True).stdout)["digest"]
    said = together(root, *[("qm", "set", 100, "--memory", size, "--digest", seen) for size in (96, 128)])
    assert sorted(one.status for one in said) == [0, 255], said
    assert any("file changed by other user? Try again" in one.stderr for one in said)


@KINDS
def test_disks_that_are_added_at_once_are_different_ones(root: QuickRoot, kind: Kind, material: Material) -> None:
    make(root, kind, material)
    new = {Vm: ("--virtio{}", "local:0.01"), Ct: ("--mp1{}", "local:0.01,mp=/more{}")}[kind]
    said = together(root, *[(kind.tool, "set", 100, *(word.format(n) for word in new)) for n in range(3)])
    assert {one.status for one in said} == {0}, said
    text = configs(root)[100].text()
    assert len(volumes(root, 100)) == 5
    assert all(volid in text for volid in volumes(root, 100))


@KINDS
def test_start_or_destroy_comes_first(root: QuickRoot, kind: Kind, material: Material) -> None:
    make(root, kind, material)
    destroy, start = together(root, (kind.tool, "destroy", 100), (kind.tool, "start", 100))
    assert sorted((destroy.status == 0, start.status == 0)) == [False, True]
    if destroy.status == 0:
        assert "100.conf' does not exist" in start.stderr
        assert not root.running()
        assert not volumes(root, 100)
    else:
        assert f"{kind.tool} stop 100" in destroy.stderr
        assert len(volumes(root, 100)) == 2


@KINDS
def test_of_two_creations_one_makes_it(root: QuickRoot, kind: Kind, material: Material) -> None:
    said = together(root, *[kind.create(100, material)] * 2)
    assert sorted(one.status == 0 for one in said) == [False, True], said
    sentences = ("100 already exists", "guest 100 is in use by another process")
    assert any(sentence in one.stderr for one in said if one.status for sentence in sentences), said
    assert len(volumes(root, 100)) == 2
    assert not configs(root)[100].lock


@KINDS
def test_a_guest_that_is_backed_up_is_not_touched(root: QuickRoot, kind: Kind, material: Material) -> None:
    make(root, kind, material)
    kind.put_data(root)
    with under_way(root, "backup", "vzdump", 100, "--storage", "local", *SLOW):
        for words in (("destroy",), ("start",), ("set", "--memory", 96)):
            refused = root.cli(kind.tool, words[0], 100, *words[1:])
            assert refused.status != 0, refused
            assert "is locked (backup) by the task 'UPID:" in refused.stderr
            assert "at work" in refused.stderr
        second = root.cli("vzdump", 100, *TO_LOCAL, "--lockwait", 0)
        assert second.status != 0
        assert "another backup job is running" in second.stderr
    assert len(list((root / "var/lib/vz/dump").glob("*.vma*" if kind is Vm else "*.tar*"))) == 1


@KINDS
def test_a_guest_that_is_restored_is_not_touched(root: QuickRoot, kind: Kind, material: Material) -> None:
    make(root, kind, material)
    kind.put_data(root)
    root.cli("vzdump", 100, *TO_LOCAL, ok=True)
    (archive,) = (root / "var/lib/vz/dump").glob("*.zst")
    words = (*kind.restore(100, f"local:backup/{archive.name}"), "--force", 1, *SLOW)
    with under_way(root, "create", *words):
        for command in ("destroy", "start"):
            refused = root.cli(kind.tool, command, 100)
            assert refused.status != 0, refused
            assert "is locked (create) by the task 'UPID:" in refused.stderr
            assert "at work" in refused.stderr
        again = root.cli(*kind.create(100, material))  # type: ignore[arg-type]
        assert again.status != 0
        assert "already exists; it is locked (create) by the task" in again.stderr
