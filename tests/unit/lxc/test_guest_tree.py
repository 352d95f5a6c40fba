"""A container's tree, touched from the host: links of the container never lead out of it."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from pvetools.guest.lxc.idmap import Entry, IdMap
from pvetools.guest.lxc.tree import GuestTree
from pvetools.system.errors import NotFound, PveError

IDS = IdMap((Entry("u", 0, 300000, 1000), Entry("g", 0, 400000, 1000))) if os.geteuid() == 0 else IdMap()
OWNER = IDS.root if IDS.entries else (os.geteuid(), os.getegid())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("of the host")
    (tmp_path / "outside").mkdir()
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    return root


@pytest.fixture
def tree(root: Path):
    with GuestTree(root, IDS) as tree:
        yield tree


def test_a_new_file_belongs_to_the_containers_root(tree: GuestTree, root: Path) -> None:
    tree.write("/etc/hostname", "web\n")
    found = (root / "etc/hostname").stat()
    assert (root / "etc/hostname").read_text() == "web\n"
    assert (found.st_uid, found.st_gid) == OWNER
    assert stat.S_IMODE(found.st_mode) == 0o644


def test_owner_and_mode_of_a_replaced_file_are_kept(tree: GuestTree, root: Path) -> None:
    (root / "etc/shadow").write_text("old")
    (root / "etc/shadow").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(root / "etc/shadow", 300000, 400042)
    before = (root / "etc/shadow").stat()
    tree.write("/etc/shadow", "new")
    after = (root / "etc/shadow").stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_bytes_that_are_not_text_survive(tree: GuestTree, root: Path) -> None:
    (root / "etc/motd").write_bytes(b"gr\xfc\xdfe\n")
    tree.write("/etc/motd", tree.read("/etc/motd") or "")
    assert (root / "etc/motd").read_bytes() == b"gr\xfc\xdfe\n"


@pytest.mark.parametrize("target", ["/secret", "../../secret", "../../../../../../secret"])
def test_a_link_that_points_out_is_resolved_inside(tree: GuestTree, root: Path, target: str) -> None:
    (root / "etc/hosts").symlink_to(target)
    assert tree.read("/etc/hosts") is None
    (root / "secret").write_text("of the container")
    assert tree.read("/etc/hosts") == "of the container"


def test_writing_replaces_a_link_instead_of_following_it(tree: GuestTree, root: Path, tmp_path: Path) -> None:
    (root / "etc/hosts").symlink_to(tmp_path / "secret")
    tree.write("/etc/hosts", "mine")
    assert (tmp_path / "secret").read_text() == "of the host"
    assert not (root / "etc/hosts").is_symlink() and (root / "etc/hosts").read_text() == "mine"


def test_a_folder_that_is_a_link_leads_to_a_folder_of_the_container(
    tree: GuestTree, root: Path, tmp_path: Path
) -> None:
    (root / "root").symlink_to(tmp_path / "outside")
    with pytest.raises(NotFound):
        tree.write("/root/file", "x")
    inside = root / str(tmp_path).lstrip("/") / "outside"
    inside.mkdir(parents=True)
    tree.write("/root/file", "x")
    assert (inside / "file").read_text() == "x"
    assert list((tmp_path / "outside").iterdir()) == []


def test_links_in_a_circle_are_an_error(tree: GuestTree, root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(PveError, match="too many symbolic links"):
        tree.read("/a")


def test_only_regular_files_are_read(tree: GuestTree, root: Path) -> None:
    os.mkfifo(root / "etc/pipe")  # opening it must not wait for a writer
    for path in ("/etc/pipe", "/etc"):
        with pytest.raises(PveError, match="not a regular file"):
            tree.read(path)
    assert tree.read("/etc/nothing") is None


def test_a_directory_is_not_replaced_by_a_file(tree: GuestTree, root: Path) -> None:
    with pytest.raises(PveError, match="Is a directory"):
        tree.write("/etc", "x")
    assert (root / "etc").is_dir()


def test_folders_are_made_with_owner_and_mode(tree: GuestTree, root: Path) -> None:
    tree.mkdir("/root/.ssh", 0o700)
    found = (root / "root/.ssh").stat()
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert (found.st_uid, found.st_gid) == OWNER


def test_a_file_that_fails_half_way_leaves_the_old_one(tree: GuestTree, root: Path) -> None:
    (root / "etc/hosts").write_text("old")
    with pytest.raises(RuntimeError), tree.replacing("/etc/hosts") as fd:
        os.write(fd, b"half")
        raise RuntimeError
    assert (root / "etc/hosts").read_text() == "old"
    assert [path.name for path in (root / "etc").iterdir()] == ["hosts"]


def test_a_folder_swapped_for_a_link_meanwhile_never_leads_out(tree: GuestTree, root: Path, tmp_path: Path) -> None:
    """A running container may rename as fast as it likes."""
    (root / "real").mkdir()
    (root / "link").symlink_to("/../../../../../" + str(tmp_path / "outside"))
    (root / "spot").mkdir()
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (root / "spot").rename(root / "aside")
            (root / "link").rename(root / "spot")
            (root / "spot").rename(root / "link")
            (root / "aside").rename(root / "spot")

    thread = threading.Thread(target=swap)
    thread.start()
    end, tries = time.monotonic() + 0.5, 0
    try:
        while time.monotonic() < end:
            tries += 1
            with contextlib.suppress(PveError):
                tree.write("/spot/file", "x")
    finally:
        stop.set()
        thread.join()
    assert tries > 10
    assert list((tmp_path / "outside").iterdir()) == []
