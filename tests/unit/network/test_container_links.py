"""Names of links and MAC addresses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.network import mac, veth
from pvetools.system import paths


def test_names_are_those_of_proxmox_below_the_usual_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVETOOLS_ROOT", "/")
    assert veth.name(101, 0) == "veth101i0"


@given(st.integers(100, 999_999_999), st.integers(0, 31), st.integers(0, 31))
def test_names_fit_the_kernel_and_differ(vmid: int, first: int, second: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        names = {}
        for root in ("/", "/tmp/one", "/tmp/two"):
            patch.setenv("PVETOOLS_ROOT", root)
            names[root] = [veth.name(vmid, index) for index in (first, second)]
            assert all(len(name) <= 15 for name in names[root])
            assert (names[root][0] == names[root][1]) == (first == second)
        assert len({pair[0] for pair in names.values()}) == 3


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    paths.etc_pve().mkdir(parents=True)
    return tmp_path


def test_addresses_are_random_behind_the_usual_prefix(root: Path) -> None:
    found = {mac.generate() for _ in range(100)}
    assert len(found) > 90
    assert all(re.fullmatch("BC:24:11(:[0-9A-F]{2}){3}", address) for address in found)


@pytest.mark.parametrize(
    ("option", "prefix"), [("aa:bb:cc", "AA:BB:CC:"), ("02", "02:"), ("36:44:55:66:", "36:44:55:66:")]
)
def test_a_prefix_of_the_datacenter_counts(root: Path, option: str, prefix: str) -> None:
    (paths.etc_pve() / "datacenter.cfg").write_text(f"keyboard: de\nmac_prefix: {option}\n")
    assert mac.generate().startswith(prefix)
    assert mac.generate().count(":") == 5
