"""Names, pid files, terminals, command lines: what needs no hypervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.guest.qemu import hypervisor, place, running, showcmd, terminal
from pvetools.guest.qemu.element import Element
from pvetools.network import bridges, firewall, taps
from pvetools.render import guests
from pvetools.render.output import OutputOptions
from pvetools.system.errors import ParamErrors, Refused


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    return tmp_path


def process(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE)


@pytest.fixture
def pid_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = root / "pids"
    folder.mkdir()
    monkeypatch.setattr(running, "PID_FOLDER", folder)
    yield folder


def test_a_machine_runs_when_its_pid_file_names_its_own_process(pid_files: Path) -> None:
    name = place.domain_name(100)
    with process("-name", f"guest={name},debug-threads=on") as ours, process("-name", "guest=other") as other:
        (pid_files / f"{name}.pid").write_text(f"{ours.pid}\n")
        (pid_files / f"{place.domain_name(101)}.pid").write_text(str(other.pid))
        (pid_files / f"{place.domain_name(102)}.pid").write_text("999999999")
        (pid_files / f"{place.domain_name(103)}.pid").write_text("nonsense")
        (pid_files / "pvetools-104.pid").write_text(str(ours.pid))
        assert running.running_pids() == {100: ours.pid}
        assert running.running_pid(100) == ours.pid
        assert running.running_pid(101) == 0
        assert not running.wait_for_end(ours.pid, 0.05)
        ours.kill()
        assert running.wait_for_end(ours.pid, 10)
        other.kill()
    assert running.running_pids() == {}
    assert running.wait_for_end(ours.pid, 0)


def test_names_of_two_roots_differ(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = (place.domain_name(100), place.domain_uuid(100), taps.tap_prefix(100))
    monkeypatch.setenv("PVETOOLS_ROOT", "/")
    there = (place.domain_name(100), place.domain_uuid(100), taps.tap_prefix(100))
    assert there[0] == "pvetools-100"
    assert there[2] == "tap100"
    assert all(a != b for a, b in zip(here, there, strict=True))


@given(st.integers(100, 999_999_999), st.sampled_from(["/", "/srv/other"]))
def test_names_of_taps_fit_into_an_interface_name(vmid: int, folder: str) -> None:
    before = os.environ.get("PVETOOLS_ROOT")
    os.environ["PVETOOLS_ROOT"] = folder
    try:
        assert len(taps.tap_name(taps.tap_prefix(vmid), 31)) <= 15
    finally:
        os.environ.pop("PVETOOLS_ROOT")
        if before is not None:
            os.environ["PVETOOLS_ROOT"] = before


@pytest.mark.parametrize(
    ("cluster", "guest", "filtered"),
    [
        ("", "", False),
        ("[OPTIONS]\nenable: 1\n", "", False),
        ("", "[OPTIONS]\nenable: 1\n", False),
        ("[OPTIONS]\nenable: 1\n", "[OPTIONS]\n\nenable: 1\n", True),
        ("[options]\nEnable: 2\n", "[OPTIONS]\nenable: 1\n", True),
        ("[OPTIONS]\nenable: 0\n", "[OPTIONS]\nenable: 1\n", False),
        ("[RULES]\nenable: 1\n", "[OPTIONS]\nenable: 1\n", False),
    ],
)
def test_a_card_is_filtered_when_both_firewalls_are_on(root: Path, cluster: str, guest: str, filtered: bool) -> None:
    folder = root / "etc/pve/firewall"
    folder.mkdir(parents=True)
    (folder / "cluster.fw").write_text(cluster)
    (folder / "100.fw").write_text(guest)
    assert firewall.in_force(100) == filtered
    firewall.check_unfiltered(100, [])
    if filtered:
        with pytest.raises(Refused, match="net3"):
            firewall.check_unfiltered(100, ["net3"])


def test_a_bridge_that_is_none_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(Refused, match="net0: bridge 'nobridge' does not exist"):
        bridges.require("nobridge", "net0")
    with pytest.raises(Refused, match="net0: bridge 'lo' is not a bridge"):
        bridges.require("lo", "net0")
    assert bridges.counters(["no-such-link"]) == (0, 0)


@pytest.mark.parametrize(
    ("text", "key"), [("^O", b"\x0f"), ("^a", b"\x01"), ("^]", b"\x1d"), ("q", b"q"), ("none", b"")]
)
def test_the_key_that_leaves_the_terminal(text: str, key: bytes) -> None:
    assert terminal.escape_byte(text) == key


@pytest.mark.parametrize("text", ["", "^1", "Ctrl-O", "é"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ParamErrors, match="escape"):
        terminal.escape_byte(text)


def test_a_serial_port_is_chosen_or_must_be_named() -> None:
    assert terminal._interface({"serial2": "socket", "serial0": "/dev/ttyS0"}, 100, "") == "serial2"
    for ports, wanted, word in (({}, "", "serial0 socket"), ({"serial0": "/dev/ttyS0"}, "serial0", "serial0"),
                                ({"serial0": "socket", "serial1": "socket"}, "", "serial0, serial1")):  # fmt: skip
        with pytest.raises(Refused, match=word):
            terminal._interface(ports, 100, wanted)


def test_a_command_line_loses_its_environment_and_passing_numbers(root: Path) -> None:
    name = place.domain_name(100)
    words = [
        "LC_ALL=C",
        "HOME=/x/domain--1-abc",
        "/usr/bin/qemu",
        "-name",
        "A=b",
        "path=/lib/domain--1-pvetools/m.sock,a",
    ]
    assert list(showcmd._normalised(100, words)) == [
        "/usr/bin/qemu", "-name", "A=b", f"path=/lib/domain-{name}/m.sock,a",
    ]  # fmt: skip
    assert showcmd._pretty(["qemu", "-S", "-name", "a b"]) == "qemu \\\n  -S \\\n  -name 'a b'"


def test_libvirts_sentences_are_shortened() -> None:
    said = "internal error: process exited: 2026-11-25T22:05:12.361519Z qemu-system-x86_64: -device x: no."
    assert hypervisor._words(Exception(said)) == "process exited: -device x: no"


def test_elements_are_written_with_escapes() -> None:
    top = Element("a", x=1, y=None, z='"<&>\n')
    top.add("b", "<text>")
    top.one("c").add("d")
    assert top.one("c") is top.children[1]
    assert top.serialise() == (
        '<a x="1" z="&quot;&lt;&amp;&gt;&#10;">\n  <b>&lt;text&gt;</b>\n  <c>\n    <d/>\n  </c>\n</a>\n'
    )


def test_the_table_of_machines() -> None:
    rows = [
        {"vmid": 100, "name": "web", "status": "running", "maxmem": 512 << 20, "maxdisk": 1 << 30, "pid": 4711},
        {"vmid": 999999999, "name": "a" * 25, "status": "stopped", "maxmem": 64 << 20, "maxdisk": 0},
    ]
    assert guests.qm_list(rows, None, OutputOptions()).splitlines() == [
        "      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID",
        "       100 web                  running    512                1.00 4711",
        " 999999999 aaaaaaaaaaaaaaaaaaaaaaaaa stopped    64                 0.00 0",
    ]
    assert guests.qm_list([], None, OutputOptions()) == ""
    assert len(guests.qm_list(rows, None, OutputOptions(noheader=True)).splitlines()) == 2


def test_a_configuration_is_shown_line_by_line() -> None:
    data = {"memory": "512", "digest": "0" * 40, "description": "two\nlines: here\n", "lxc": [["lxc.x", "1"]]}
    assert guests.config(data, None, OutputOptions()).splitlines() == [
        "description: two%0Alines%3A here%0A", "memory: 512", "lxc.x: 1",
    ]  # fmt: skip


def test_pending_changes_are_shown_with_what_is_in_force() -> None:
    data = [
        {"key": "cores", "value": 2},
        {"key": "memory", "value": "512", "pending": "1024"},
        {"key": "net0", "value": "virtio", "delete": 1},
        {"key": "tags", "pending": "a"},
    ]
    assert guests.pending(data, None, OutputOptions()).splitlines() == [
        "cur cores: 2", "cur memory: 512", "new memory: 1024", "del net0: virtio", "new tags: a",
    ]  # fmt: skip
