"""The unit that starts and stops the guests with the host."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from pvetools.cli import pvenode
from pvetools.render.command import pick

UNIT = Path(__file__).parents[3] / "systemd/pvetools-guests.service"


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


@pytest.mark.parametrize(("key", "command"), [("ExecStart", "startall"), ("ExecStop", "stopall")])
def test_the_unit_calls_commands_that_exist(unit: configparser.ConfigParser, key: str, command: str) -> None:
    path, *words = unit["Service"][key].split()
    assert path == "/usr/local/sbin/pvenode"
    assert pick(pvenode.TOOL, words) == (command, [])


def test_a_start_that_fails_does_not_take_the_running_guests_along(unit: configparser.ConfigParser) -> None:
    assert (unit["Service"]["Type"], unit["Service"]["RemainAfterExit"]) == ("oneshot", "yes")
    assert (unit["Service"]["KillMode"], unit["Service"]["TimeoutSec"]) == ("process", "infinity")


def test_guests_are_stopped_before_what_they_need() -> None:
    after = " ".join(line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith("After="))
    assert {"libvirtd.service", "lxc.service", "network-online.target", "remote-fs.target"} <= set(after.split())


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/local/sbin/pvenode", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    assert UNIT.name not in done.stderr
