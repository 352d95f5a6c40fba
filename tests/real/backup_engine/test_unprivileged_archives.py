"""Archives of unprivileged containers: owners are stored as the container sees them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from pvetools.guest.lxc import tar
from pvetools.guest.lxc.idmap import DEFAULT
from pvetools.system.errors import PveError
from tests.unit.backup.samples import Feed, Sink

IDS = DEFAULT


def quiet(line: str) -> None:
    pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A container's root folder that its own root user can reach."""
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path != Path("/") and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    made = tmp_path / "root"
    made.mkdir()
    os.chown(made, 100000, 100000)
    return made


def packed(root: Path, base: Path) -> bytes:
    inner = base / "config/etc/vzdump"
    inner.mkdir(parents=True)
    for name in ("pct.conf", "pct.fw"):
        (inner / name).write_text("")
        os.chown(inner / name, 100000, 100000)
    with Sink() as sink:
        tar.create(sink.fd, tar.create_command(base / "config", root, ids=IDS), log=quiet)
    return sink.data


def test_owners_are_those_inside_and_come_back_as_those_outside(root: Path, tmp_path: Path) -> None:
    (root / "etc").mkdir()
    (root / "lost+found").mkdir(mode=0o700)
    for name, owner in (("etc", 100000), ("etc/a", 100000), ("etc/b", 101000), ("lost+found", 100000)):
        if "/" in name:
            (root / name).write_text(name)
        os.chown(root / name, owner, owner)
    data = packed(root, tmp_path)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        owners = {member.name: (member.uid, member.gid) for member in file}
    assert owners["./etc/a"] == (0, 0)
    assert owners["./etc/b"] == (1000, 1000)
    assert "./lost+found" not in owners
    back = tmp_path / "back"
    back.mkdir()
    os.chown(back, 100000, 100000)
    with Feed(data) as fd:
        tar.extract(fd, tar.extract_command(back, IDS), devices=False, log=quiet)
    assert (back / "etc/a").stat().st_uid == 100000
    assert (back / "etc/b").stat().st_uid == 101000
    again = tmp_path / "privileged"
    again.mkdir()
    with Feed(data) as fd:
        tar.extract(fd, tar.extract_command(again), devices=True, log=quiet)
    assert (again / "etc/b").stat().st_uid == 1000


def test_a_failing_unpack_leaves_no_tar_running(root: Path, tmp_path: Path) -> None:
    """The archive goes wrong while tar, two processes away, waits for more."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for number in range(20):
            info = tarfile.TarInfo(f"./file{number}")
            info.size = 200_000
            file.addfile(info, io.BytesIO(os.urandom(info.size)))
        file.addfile(tarfile.TarInfo("../evil"))
    with Feed(out.getvalue()) as fd, pytest.raises(PveError, match=r"'\.\./evil' points outside"):
        tar.extract(fd, tar.extract_command(root, ids=IDS), devices=False, log=quiet)
    running = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    words = [_cmdline(entry) for entry in running]
    assert not [line for line in words if f"--directory={root}".encode() in line]
    assert not (tmp_path / "evil").exists()


def _cmdline(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_tar_that_is_killed_in_its_namespace_is_no_success(root: Path, tmp_path: Path) -> None:
    """Lxc-usernsexec ends with 0 then."""
    argv = [*IDS.command(), "sh", "-c", "head -c 512 >/dev/null; kill -9 $$"]
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        file.addfile(tarfile.TarInfo("./x"))
    for ignore in (False, True):
        with Feed(data.getvalue()) as fd, pytest.raises(PveError, match="tar ended before the end of the archive"):
            tar.extract(fd, argv, devices=False, ignore_errors=ignore, log=quiet)


def test_device_nodes_are_left_out_where_errors_are_ignored(root: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        node = tarfile.TarInfo("./null")
        node.type, node.devmajor, node.devminor = tarfile.CHRTYPE, 1, 3
        file.addfile(node)
        file.addfile(tarfile.TarInfo("./x"))
    said: list[str] = []
    argv = tar.extract_command(root, IDS)
    with Feed(data.getvalue()) as fd, pytest.raises(PveError, match=r"'\./null' is a character device"):
        tar.extract(fd, argv, devices=False, log=said.append)
    with Feed(data.getvalue()) as fd:
        tar.extract(fd, argv, devices=False, ignore_errors=True, log=said.append)
    assert [path.name for path in root.iterdir()] == ["x"]
    assert any("null: Cannot mknod: Operation not permitted" in line for line in said)
