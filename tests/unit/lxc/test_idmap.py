"""Id maps: which ids of the host a container gets, and whether root may hand them out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.guest.lxc import idmap
from pvetools.guest.lxc.idmap import DEFAULT, Entry, IdMap
from pvetools.system.errors import PveError

MIXED = IdMap((Entry("u", 0, 100000, 1005), Entry("u", 1005, 1005, 1), Entry("g", 0, 200000, 10)))


def test_privileged_containers_have_the_hosts_ids() -> None:
    assert IdMap().root == (0, 0)
    assert IdMap().uid(1000) == 1000
    assert IdMap().command() == []


def test_the_usual_map_begins_at_100000() -> None:
    assert idmap.of({"unprivileged": "1"}, []) == DEFAULT
    assert DEFAULT.root == (100000, 100000)
    assert DEFAULT.command() == [
        "lxc-usernsexec", "-m", "u:0:100000:65536", "-m", "g:0:100000:65536", "--",
        "setpriv", "--pdeathsig", "KILL", "--",
    ]  # fmt: skip


def test_raw_lines_replace_the_usual_map_and_b_stands_for_both() -> None:
    found = idmap.of({"unprivileged": "1"}, [("lxc.idmap", "b 0 300000 10"), ("lxc.mount.auto", "sys")])
    assert found.root == (300000, 300000)


def test_ids_go_to_the_entry_that_covers_them() -> None:
    assert (MIXED.uid(1004), MIXED.uid(1005), MIXED.gid(9)) == (101004, 1005, 200009)


@pytest.mark.parametrize("ident", [1006, 1 << 31])
def test_ids_that_are_not_mapped_are_named(ident: int) -> None:
    with pytest.raises(PveError, match=f"uid {ident} is not mapped"):
        MIXED.uid(ident)


@pytest.mark.parametrize("text", ["", "u 0 1", "x 0 1 2", "u 0 1 0", "u 0 -1 5", "u 0 1 2 3", "u 0 4294967295 2"])
def test_malformed_lines_are_named(text: str) -> None:
    with pytest.raises(PveError, match="invalid map entry"):
        idmap.parse(text)


def test_a_container_id_is_mapped_once_only() -> None:
    with pytest.raises(PveError, match=r"container gid 5 is also mapped by entry 'g 0 1000 10'"):
        idmap.check([Entry("g", 0, 1000, 10), Entry("g", 5, 5000, 1), Entry("u", 5, 5000, 1)])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20)), max_size=4))
def test_a_map_is_refused_exactly_when_an_id_stands_for_two(parts: list[tuple[int, int, int]]) -> None:
    entries = [Entry("u", *part) for part in parts]
    sides = ([entry.inside + n for entry in entries for n in range(entry.length)],
             [entry.outside + n for entry in entries for n in range(entry.length)])  # fmt: skip
    if all(len(side) == len(set(side)) for side in sides):
        idmap.check(entries)
    else:
        with pytest.raises(PveError):
            idmap.check(entries)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("someone:100000:65536\nroot:100000:40000\nroot:140000:40000\nrubbish\n")
    return {"u": tmp_path / "subuid", "g": tmp_path / "subgid"}


def test_adjoining_ranges_of_root_cover_a_map(places: dict[str, Path]) -> None:
    idmap.check_host(DEFAULT, places)


def test_the_line_that_is_missing_is_told(places: dict[str, Path]) -> None:
    places["g"].write_text("root:100000:1000\n")
    with pytest.raises(PveError, match=r"subgid does not let root use the gids .* add the line: root:100000:65536"):
        idmap.check_host(DEFAULT, places)
    places["u"].unlink()
    with pytest.raises(PveError, match=r"subuid does not let root use the uids"):
        idmap.check_host(DEFAULT, places)
