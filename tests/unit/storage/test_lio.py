"""What a server with LIO offers, and what it is told."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from pvetools.storage import lio
from pvetools.storage.lio import Lun, Target
from pvetools.system.errors import PveError, RunError

LIST = (
    "lun_0\ttank-vm-100-disk-0\t/dev/zvol/tank/vm-100-disk-0\n"
    "lun_17\told\t/dev/tank/vm-101-disk-0\n"
    "-\ttank-vm-100-disk-0\t/dev/zvol/tank/vm-100-disk-0\n"
    "-\ttank-vm-102-disk-0\t/dev/zvol/tank/vm-102-disk-0\n"
    "-\told\t/dev/tank/vm-101-disk-0\n"
)


def test_luns_and_devices_that_are_only_kept_are_told_apart() -> None:
    found = lio.parse_luns(LIST)
    assert found == [
        Lun(0, "tank-vm-100-disk-0", "/dev/zvol/tank/vm-100-disk-0"),
        Lun(17, "old", "/dev/tank/vm-101-disk-0"),
        Lun(-1, "tank-vm-102-disk-0", "/dev/zvol/tank/vm-102-disk-0"),
    ]
    assert [lun.offered for lun in found] == [True, True, False]
    assert lio.parse_luns("") == []


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel shows of two LUNs and a backstore without one, on a disk."""
    monkeypatch.setattr(lio, "_KERNEL", str(tmp_path))
    for number, store in enumerate(("one", "with blank", "kept")):
        made = tmp_path / f"core/iblock_{number}" / store
        made.mkdir(parents=True)
        (made / "udev_path").write_text(f"/dev/tank/{store}\n")
        place = tmp_path / f"iscsi/iqn.x/tpgt_1/lun/lun_{number * 10}"
        place.mkdir(parents=True)
        (place / "alua_tg_pt_gp").write_text("")
        if store != "kept":
            (place / f"{number:010x}").symlink_to(f"../../../../../core/iblock_{number}/{store}")
    return tmp_path


def by_shell(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise RunError([*argv], done.returncode, done.stderr)
    return done.stdout


def test_the_server_lists_its_luns(kernel: Path) -> None:
    (kernel / "core/iblock_1/with blank/udev_path").unlink()  # it goes in this moment
    assert Target("iqn.x", 1, by_shell).luns() == [
        Lun(0, "one", "/dev/tank/one"), Lun(10, "with blank", ""), Lun(-1, "kept", "/dev/tank/kept"),
    ]  # fmt: skip
    with pytest.raises(PveError, match=r"the server has no target 'iqn\.y' with portal group tpg1"):
        Target("iqn.y", 1, by_shell).luns()


@pytest.mark.parametrize(("text", "number"), [("tpg1", 1), ("1", 1), ("tpg12", 12)])
def test_portal_groups_are_numbers(text: str, number: int) -> None:
    assert lio.group_number(text) == number


@pytest.mark.parametrize("text", ["", "tpg", "tpg0", "-1", "tpg1/../x", "tpg1 ", "x1", "tpg١"])
def test_other_portal_groups_reach_no_tool(text: str) -> None:
    with pytest.raises(PveError, match="does not look like a target portal group"):
        lio.group_number(text)


class Server:
    """Says what it is to say, and remembers what it was told."""

    def __init__(self, *answers: str | RunError) -> None:
        self.answers, self.told = [*answers], list[list[str]]()

    def __call__(self, argv: Sequence[str]) -> str:
        if argv[0] == "python3":
            self.told.append([*argv[3:]])
            raise RunError(argv, 1, "Ouch!")
        answer = self.answers.pop(0)
        if isinstance(answer, RunError):
            raise answer
        return answer


def test_a_device_is_offered_under_the_number_that_the_server_chooses() -> None:
    server = Server("lun_3\tstore\t/dev/x\n")
    assert Target("iqn.x", 1, server).offer("store", "/dev/x") == Lun(3, "store", "/dev/x")
    assert server.told == [["offer", "iqn.x", "1", "store", "/dev/x"]]


def test_a_device_that_could_not_be_offered_is_let_go() -> None:
    server = Server("-\tstore\t/dev/x\n", "")
    with pytest.raises(PveError, match=r"target 'iqn\.x' does not offer device '/dev/x': Ouch!"):
        Target("iqn.x", 1, server).offer("store", "/dev/x")
    assert server.told[-1] == ["withdraw", "iqn.x", "1", "store", "/dev/x"]


def test_a_server_that_keeps_a_device_is_told_of() -> None:
    with pytest.raises(PveError, match="does not let go of device '/dev/x': Ouch!"):
        Target("iqn.x", 1, Server("-\tstore\t/dev/x\n")).withdraw(Lun(3, "store", "/dev/x"))


def test_a_target_that_is_not_there_is_told_of() -> None:
    with pytest.raises(PveError, match=r"no target 'iqn\.x' with portal group tpg2"):
        Target("iqn.x", 2, Server(RunError(["sh"], 3, "can't cd"))).luns()


def test_what_the_server_is_to_run_is_a_program() -> None:
    compile(lio._CHANGE, "change", "exec")


def test_what_a_shell_says_besides_is_passed_over() -> None:
    greeting = "Welcome!\nlast\tlogin\n\nlun_x\ta\tb\na\tb\tc\td\n"
    assert lio.parse_luns(greeting + LIST) == lio.parse_luns(LIST)


def test_one_name_of_two_devices_is_not_taken_for_one() -> None:
    found = lio.parse_luns("lun_0\tstore\t/dev/x\n-\tstore\t/dev/x\n-\tstore\t/dev/y\n")
    assert found == [Lun(0, "store", "/dev/x"), Lun(-1, "store", "/dev/y")]


def test_another_device_of_the_same_name_is_neither_served_nor_let_go() -> None:
    server = Server("lun_3\tstore\t/dev/other\n")
    with pytest.raises(PveError, match=r"target 'iqn\.x' does not offer device '/dev/x': Ouch!"):
        Target("iqn.x", 1, server).offer("store", "/dev/x")
    assert [words[0] for words in server.told] == ["offer"]


class Library:
    """As much of the server's library as the change needs: one backstore, which is there already."""

    def __init__(self, device: str) -> None:
        self.done = list[str]()
        self.store = SimpleNamespace(
            udev_path=device, delete=lambda: self.done.append("deleted"), set_attribute=lambda *_words: None
        )
        self.RTSLibError, self.RTSLibNotInCFS = ValueError, KeyError

    def BlockStorageObject(self, _name: str, _device: str = "") -> SimpleNamespace:  # noqa: N802 - theirs
        return self.store

    def __getattr__(self, name: str) -> object:
        def act(*_words: object) -> SimpleNamespace:
            self.done.append(name)
            return SimpleNamespace(node_acls=[], luns=[], save_to_file=lambda: None)

        return act


@pytest.mark.parametrize(("action", "does"), [("offer", "LUN"), ("withdraw", "deleted")])
def test_a_name_on_the_server_counts_only_with_its_device(
    monkeypatch: pytest.MonkeyPatch, action: str, does: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["-c", action, "iqn.x", "1", "tank-vms-vm-100-disk-0", "/dev/zvol/tank/vms/x"])
    monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(flock=lambda *_words: None, LOCK_EX=0))
    own = {"open": lambda *_words: io.StringIO(), "__builtins__": builtins}
    library = Library("/dev/zvol/tank/vms/x")
    monkeypatch.setitem(sys.modules, "rtslib_fb", library)
    exec(lio._CHANGE, {**own})
    assert does in library.done
    library = Library("/dev/zvol/tank-vms/x")
    monkeypatch.setitem(sys.modules, "rtslib_fb", library)
    with pytest.raises(SystemExit, match=r"'tank-vms-vm-100-disk-0'.*'/dev/zvol/tank-vms/x'"):
        exec(lio._CHANGE, {**own})
    assert not {"LUN", "deleted"} & {*library.done}
