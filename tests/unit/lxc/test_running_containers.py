"""Which containers run, told by the kernel's list of sockets; on which CPUs new ones go."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvetools.guest.lxc import groups, running
from pvetools.guest.lxc.host import Host, parse_cpus
from pvetools.system import paths
from pvetools.system.errors import PveError

LINE = "00000000: 00000002 00000000 00010000 0001 01 12345"


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", "/r")
    monkeypatch.setattr(running, "SOCKETS", tmp_path / "unix")
    (tmp_path / "unix").write_text("Num RefCount Protocol Flags Type St Inode Path\n")
    return tmp_path / "unix"


def test_only_monitors_of_this_root_count(sockets: Path) -> None:
    names = ["@/r/var/lib/lxc/101/command", "@/r/var/lib/lxc/101/command", "@/other/var/lib/lxc/102/command",
             "@/r/var/lib/lxc/web/command", "@/r/var/lib/lxc/103/other", "/r/var/lib/lxc/104/command"]  # fmt: skip
    with sockets.open("a") as file:
        file.writelines(f"{LINE} {name}\n" for name in names)
        file.write(f"{LINE}\n")
    assert running.running() == {101}
    assert running.is_running(101) and not running.is_running(103)


def test_long_paths_are_told_by_their_hash(sockets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / ("x" * 80)
    monkeypatch.setenv("PVETOOLS_ROOT", str(root))
    for vmid in (101, 102):
        paths.guest_dir("lxc").mkdir(parents=True, exist_ok=True)
        paths.guest_config("lxc", vmid).touch()
    name = running._socket(102)
    assert name.startswith("@lxc/") and name != running._socket(101)
    with sockets.open("a") as file:
        file.write(f"{LINE} {name}\n")
    assert running.running() == {102}


def test_the_hash_is_that_of_lxc() -> None:
    assert running._fnv64(b"foobar") == 0x85944171F73967E8  # FNV-1a, 64 bits: a published value


def test_waiting_for_an_end_has_a_limit(sockets: Path) -> None:
    running.wait_gone(101, 0.1)
    with sockets.open("a") as file:
        file.write(f"{LINE} @/r/var/lib/lxc/101/command\n")
    with pytest.raises(PveError, match="CT 101 did not end within"):
        running.wait_gone(101, 0.05)


@pytest.mark.parametrize(("text", "cpus"), [("0-2,5", (0, 1, 2, 5)), ("3\n", (3,)), ("\n", ())])
def test_lists_of_cpus(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text) == cpus


def test_containers_go_to_the_cpus_with_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(2, frozenset(), True, False, (0, 1, 2, 3), (), Path(), Path(), "")
    bound = {101: (0, 1), 102: (1,), 103: (3,)}
    monkeypatch.setattr(groups.running, "running", lambda: {*bound})
    monkeypatch.setattr(groups, "bound_cpus", bound.__getitem__)
    assert groups.choose_cpus(200, 1, host) == (2,)
    assert groups.choose_cpus(200, 3, host) == (0, 2, 3)
    assert groups.choose_cpus(102, 2, host) == (1, 2) or groups.choose_cpus(102, 2, host) == (0, 2)
    assert groups.choose_cpus(200, None, host) == groups.choose_cpus(200, 4, host) == ()
