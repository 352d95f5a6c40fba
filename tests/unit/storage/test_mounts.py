"""What is mounted where: the kernel's table, and which mount is the wanted one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.storage import mounts
from pvetools.storage.mounts import Mount, Wanted

TABLE = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
25 22 0:5 / /proc rw,nosuid - proc proc rw
90 22 0:44 / /mnt/pve/one rw,relatime shared:60 master:2 - nfs4 10.0.0.1:/srv/a\040b rw,vers=4.2,addr=10.0.0.1
91 22 0:45 / /mnt/pve/tab\011and\134 rw - cifs //srv/share/sub rw,vers=3.1.1
92 22 0:46 / /mnt/pve/six rw - nfs [fd00::1]:/ rw
93 90 0:47 / /mnt/pve/one rw - tmpfs none rw
"""


def escaped(text: str) -> str:
    """As the kernel writes it."""
    return "".join(f"\\{ord(sign):03o}" if sign in " \t\n\\#" else sign for sign in text)


def test_the_kernels_table_is_read() -> None:
    assert mounts.parse(TABLE) == [
        Mount("/", "/dev/vda", "ext4", "rw", "254:0", "/"),
        Mount("/proc", "proc", "proc", "rw", "0:5", "/"),
        Mount("/mnt/pve/one", "10.0.0.1:/srv/a b", "nfs4", "rw,vers=4.2,addr=10.0.0.1", "0:44", "/"),
        Mount("/mnt/pve/tab\tand\\", "//srv/share/sub", "cifs", "rw,vers=3.1.1", "0:45", "/"),
        Mount("/mnt/pve/six", "[fd00::1]:/", "nfs", "rw", "0:46", "/"),
        Mount("/mnt/pve/one", "none", "tmpfs", "rw", "0:47", "/"),
    ]


words = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=1)
plain = st.text("abcdefghijklmnopqrstuvwxyz0123456789._=,", min_size=1)
places = words.map(lambda word: f"/{word}")
numbers = st.builds(lambda major, minor: f"{major}:{minor}", st.integers(0, 4095), st.integers(0, 1 << 20))
mount = st.builds(Mount, places, words, plain, plain, numbers, places)


@given(st.lists(st.tuples(mount, st.lists(plain))))
def test_whatever_is_mounted_comes_back_as_it_is(rows: list[tuple[Mount, list[str]]]) -> None:
    text = "".join(
        f"1 2 {found.device} {escaped(found.root)} {escaped(found.point)} rw "
        f"{''.join(f'{tag} ' for tag in tags)}- {found.kind} {escaped(found.source)} {found.options}\n"
        for found, tags in rows
    )
    assert mounts.parse(text) == [found for found, _ in rows]


@given(st.text())
def test_damaged_lines_are_no_error(text: str) -> None:
    assert all(isinstance(found, Mount) for found in mounts.parse(text))


def test_the_table_of_this_process_has_its_root() -> None:
    assert "/" in {found.point for found in mounts.every()}
    assert mounts.at(Path("/proc"))


def test_what_lies_behind_a_link_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    found = mounts.at(tmp_path / "link")
    assert found
    assert found.kind == "proc"
    assert mounts.at(tmp_path) is None
    assert mounts.at(tmp_path / "missing/too") is None


@pytest.mark.parametrize(
    ("kind", "source", "fits"),
    [
        ("nfs4", "10.0.0.1:/srv", True),
        ("nfs", "10.0.0.1:/srv/", True),
        ("nfs4", "10.0.0.1:/srv2", False),
        ("nfs4", "10.0.0.2:/srv", False),
        ("ext4", "10.0.0.1:/srv", False),
    ],
)
def test_a_mount_is_ours_by_type_and_source(kind: str, source: str, fits: bool) -> None:
    wanted = Wanted(Path("/mnt/pve/x"), "10.0.0.1:/srv", "nfs")
    assert wanted.fits(Mount("/mnt/pve/x", source, kind)) is fits


def test_the_command_names_type_source_place_and_options() -> None:
    wanted = Wanted(Path("/mnt/x"), "//srv/share", "cifs", ("soft", "credentials=/etc/pve/priv/storage/x.pw"))
    assert wanted.words() == [
        "mount", "-t", "cifs", "//srv/share", "/mnt/x", "-o", "soft,credentials=/etc/pve/priv/storage/x.pw",
    ]  # fmt: skip
    assert Wanted(Path("/mnt/x"), "a:/b", "nfs").words() == ["mount", "-t", "nfs", "a:/b", "/mnt/x"]
