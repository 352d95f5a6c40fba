"""A container's configuration file and what LXC gets from it: NAME.conf and NAME.HOST.lxc, on two kinds of hosts.

After a wanted change: PVETOOLS_REGENERATE=1 python -m pytest tests/golden/lxc, and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pvetools.config import guest
from pvetools.guest.lxc import config, idmap
from pvetools.guest.lxc.config import Container
from pvetools.guest.lxc.host import Host
from pvetools.options.lxc import LxcOptions

HERE = Path(__file__).parent
CASES = sorted(path.stem for path in HERE.glob("*.conf"))
CPUS = (0, 1, 2, 3)
ARCHS = ("amd64", "i386")
FOLDERS = (Path("/var/lib/lxc"), Path("/run/pvetools/lxc"))
HOSTS = {
    # a legacy hierarchy for each controller, no AppArmor, another root than /
    "v1": Host(1, frozenset({"memory", "cpu", "cpuset"}), True, False, CPUS, ARCHS, *FOLDERS, "0123abcd-"),
    # a systemd host: one hierarchy, AppArmor
    "v2": Host(2, frozenset({"memory", "cpu", "cpuset", "io", "pids"}), True, True, CPUS, ARCHS, *FOLDERS, ""),
}


def rendered(name: str, host: Host) -> str:
    parsed = guest.parse("lxc", 101, (HERE / f"{name}.conf").read_text(), strict=True)
    options = LxcOptions.read(parsed.current)
    container = Container(
        101,
        options,
        parsed.lxc,
        idmap.of(parsed.current, parsed.lxc),
        cpus=(0, 2) if options.cores else (),
        links={index: f"veth101i{index}" for index in options.net},
        cut=frozenset(index for index, nic in options.net.items() if nic.link_down),
        busybox=name == "terminals",
        devices={index: ("c", 188, index) for index in options.dev},
    )
    return config.text(container, host)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", CASES)
def test_lxc_gets_the_recorded_configuration(name: str, host: str) -> None:
    recorded = HERE / f"{name}.{host}.lxc"
    text = rendered(name, HOSTS[host])
    if os.environ.get("PVETOOLS_REGENERATE"):
        assert not os.environ.get("CI"), "golden files are not made in CI"
        recorded.write_text(text)
    assert text == recorded.read_text()


def test_every_recorded_file_has_its_case() -> None:
    assert {path.name.split(".")[0] for path in HERE.glob("*.lxc")} == set(CASES)


def test_a_host_without_swap_accounting_gets_no_swap_limit() -> None:
    for host in HOSTS.values():
        text = rendered("limits", host._replace(swap_limit=False))
        assert "memsw" not in text and "memory.swap" not in text


def test_a_controller_that_the_host_lacks_is_not_asked_for() -> None:
    text = rendered("limits", HOSTS["v2"]._replace(controllers=frozenset({"memory"})))
    assert "memory.max" in text and "cpu." not in text and "cpuset" not in text
