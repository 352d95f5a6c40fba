"""Backup and restore of containers: every attribute of the files, every mode, every way to place them again."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.config import guest as config
from pvetools.guest.lxc import hosting, idmap, mounts
from pvetools.guest.lxc.idmap import IdMap
from tests.real.backup.jobs import archives, leftovers, newest, running
from tests.real.qemu.machine import wait_until
from tests.sandbox.root import Root

CAPABILITY = bytes.fromhex("0100000200040000" + "00" * 12)  # cap_net_raw+ep


@contextlib.contextmanager
def tree(vmid: int, *, writable: bool = False) -> Iterator[tuple[Path, IdMap]]:
    """The files of a stopped container."""
    current = config.load("lxc", vmid)
    ids = idmap.of(current.current, current.lxc)
    with mounts.mounted(vmid, hosting.options(vmid, current.current), ids, writable=writable) as place:
        yield place, ids


def listing(vmid: int, *, without: tuple[str, ...]) -> dict[str, tuple[object, ...]]:
    """Everything that a file system knows about a container's files, owners as the container sees them."""
    found: dict[str, tuple[object, ...]] = {}
    with tree(vmid) as (place, ids):
        offset = ids.root[0]
        for path in sorted(place.rglob("*")):
            name = str(path.relative_to(place))
            if name.startswith(without) or name.endswith("lost+found"):
                continue
            info = path.lstat()
            extra: object = ""
            if stat.S_ISREG(info.st_mode):
                extra = (path.read_bytes(), info.st_nlink)
            elif stat.S_ISLNK(info.st_mode):
                extra = path.readlink()
            elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                extra = info.st_rdev
            attributes = {}
            if not stat.S_ISLNK(info.st_mode):
                attributes = {key: os.getxattr(path, key) for key in os.listxattr(path)}
                if "security.capability" in attributes:  # the kernel writes the root of the user namespace into it
                    attributes["security.capability"] = attributes["security.capability"][4:12]
            owner = (info.st_uid - offset, info.st_gid - offset)
            time = None if stat.S_ISLNK(info.st_mode) else info.st_mtime_ns
            found[name] = (stat.filemode(info.st_mode), owner, time, attributes, extra)
    return found


def fill(vmid: int) -> None:
    """Files with everything that an archive must keep."""
    with tree(vmid, writable=True) as (place, ids):
        uid, gid = ids.root
        data = place / "srv/data"
        data.mkdir(parents=True)
        (data / "plain").write_text("hello\n")
        os.link(data / "plain", data / "hard link")
        (data / "symbolic").symlink_to("../data/plain")
        (data / "umläut\n\\ and 'quotes'").write_bytes(os.urandom(5000))
        (data / "setuid").write_bytes(b"#!")
        os.mkfifo(data / "fifo")
        with (data / "sparse").open("wb") as file:
            file.truncate(8 << 20)
            file.seek(4 << 20)
            file.write(b"island")
        (data / ("deep/" * 30)).mkdir(parents=True)
        (data / ("deep/" * 30) / "end").write_text("x" * 300)
        for junk in ("tmp/junk", "var/tmp/junk", "var/run/x.pid"):
            (place / junk).parent.mkdir(parents=True, exist_ok=True)
            (place / junk).write_text("junk")
        for path in place.rglob("*"):
            if path.lstat().st_uid == 0:
                os.chown(path, uid, gid, follow_symlinks=False)
        for number, path in enumerate(sorted(data.rglob("*"))):
            os.chown(path, uid + number % 7 * 100, gid + number % 5 * 10, follow_symlinks=False)
        (data / "setuid").chmod(0o4755)
        os.setxattr(data / "plain", "user.colour", b"blue\0green")
        os.setxattr(data / "setuid", "security.capability", CAPABILITY)
        subprocess.run(["setfacl", "-m", f"u:{uid + 33}:rw-", data / "sparse"], check=True)
        subprocess.run(["setfacl", "-d", "-m", f"g:{gid + 44}:r-x", data], check=True)
        os.utime(data / "plain", ns=(10**18, 1234567890123456789))


JUNK = ("tmp/junk", "var/tmp/junk", "var/run/x.pid", "run/x.pid")


@pytest.fixture
def ct(root: Root, local_template: str) -> Root:
    """Container 100, unprivileged, stopped, with files of every kind and two mount points."""
    _create(root, local_template, 100, unprivileged=1)
    fill(100)
    return root


def _create(root: Root, template: str, vmid: int, *words: object, unprivileged: int) -> None:
    root.cli(
        "pct", "create", vmid, template, "--hostname", f"ct{vmid}", "--memory", 64, "--unprivileged", unprivileged,
        "--rootfs", "local:0.0625", "--mp0", "local:0.03125,mp=/srv/more,backup=1", "--mp1",
        "local:0.03125,mp=/scratch", "--net0", "name=eth0,bridge=vmbr0,ip=10.99.0.77/24", *words, ok=True,
    )  # fmt: skip


def conf(vmid: int) -> dict[str, str]:
    return dict(config.load("lxc", vmid).current)


@pytest.mark.parametrize("unprivileged", [1, 0])
@pytest.mark.parametrize("compress", ["zstd", "0"])
def test_a_restored_container_has_the_same_files_and_options(
    root: Root, local_template: str, unprivileged: int, compress: str
) -> None:
    _create(root, local_template, 100, unprivileged=unprivileged)
    fill(100)
    with tree(100, writable=True) as (place, ids):
        (place / "srv/more/inside").write_text("in the volume")
        (place / "scratch/not").write_text("left out")
        (place / "srv/more").chmod(0o2750)
        for name in ("inside", ""):
            os.chown(place / "srv/more" / name, ids.uid(33), ids.gid(44))
    root.cli("vzdump", 100, "--compress", compress, ok=True)
    root.cli("pct", "restore", 101, newest(root, 100), ok=True)
    assert listing(101, without=(*JUNK, "scratch")) == listing(100, without=(*JUNK, "scratch"))
    with tree(101) as (place, _):
        assert (place / "srv/data/sparse").stat().st_blocks * 512 < 1 << 20
        assert not (place / "etc/vzdump").exists()
        assert (place / "srv/more/inside").stat().st_dev != place.stat().st_dev
    old, new = conf(100), conf(101)
    for key in ("rootfs", "mp0", "mp1"):
        assert new.pop(key) == re.sub(r"local:100/vm-100-disk-\d", new_volume(101, key), old.pop(key))
    assert new == {"swap": "512", **old}
    assert leftovers(root) == []
    assert root.running() == {}


def new_volume(vmid: int, key: str) -> str:
    return conf(vmid)[key].partition(".raw")[0]


def test_the_archive_is_a_tar_that_others_read_with_the_configuration_first(ct: Root) -> None:
    ct.cli("vzdump", 100, "--compress", "gzip", ok=True)
    names = subprocess.run(
        ["tar", "-tzf", newest(ct, 100), "--quoting-style=literal"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert names[:3] == ["./etc/vzdump/pct.conf", "./etc/vzdump/pct.fw", "./"]
    assert "./srv/data/plain" in names
    assert not {"./tmp/junk", "./var/tmp/junk"} & set(names)
    assert "./tmp/" in names
    text = ct.cli("pvesm", "extractconfig", f"local:backup/{newest(ct, 100).name}", ok=True).stdout
    assert "hostname: ct100\n" in text
    assert not re.search(r"^lock:", text, re.MULTILINE)


def test_excluded_paths_are_left_out(ct: Root) -> None:
    ct.cli("vzdump", 100, "--exclude-path", "/srv/data/deep", "--exclude-path", "plain", "--stdexcludes", 0,
           "--exclude-path", "/srv/", ok=True)  # fmt: skip
    names = subprocess.run(["tar", "-tf", newest(ct, 100)], capture_output=True, text=True, check=True).stdout
    assert "./tmp/junk\n" in names
    assert "./srv/data/sparse\n" in names
    assert "deep" not in names
    assert "/plain\n" not in names


# -- running containers ------------------------------------------------------------------------------------------------


@pytest.fixture
def up(ct: Root) -> Root:
    """The container, running."""
    ct.cli("pct", "start", 100, ok=True)
    return ct


def inside(root: Root, command: str) -> str:
    return root.cli("pct", "exec", 100, "--", "sh", "-c", command, ok=True).stdout.strip()


def state(root: Root, vmid: int = 100) -> str:
    return root.cli("pct", "status", vmid, ok=True).stdout.strip()


@pytest.mark.parametrize("mode", ["snapshot", "suspend"])
def test_a_running_container_is_copied_while_it_runs(up: Root, mode: str) -> None:
    inside(up, "echo fresh > /srv/data/fresh; echo volume > /srv/more/x; echo no > /scratch/x")
    said = up.cli("vzdump", 100, "--mode", mode, "--compress", "zstd", ok=True).stderr
    lines = [line for line in said.splitlines() if re.search("mode|sync|guest|trying", line)]
    assert [re.sub(r"(finished|after) .*|sync /.*", r"\1", line).strip() for line in lines] == [
        *(["INFO: starting new backup job: vzdump 100 --compress zstd --mode snapshot",
           "INFO: mode failure - some volumes do not support snapshots", "INFO: trying 'suspend' mode instead"]
          if mode == "snapshot" else ["INFO: starting new backup job: vzdump 100 --compress zstd --mode suspend"]),
        "INFO: backup mode: suspend", "INFO: starting first", "INFO: first sync finished", "INFO: suspending guest",
        "INFO: starting final", "INFO: final sync finished", "INFO: resuming guest",
        "INFO: guest is online again after",
    ]  # fmt: skip
    assert state(up) == "status: running"
    assert inside(up, "echo works") == "works"
    assert leftovers(up) == []
    up.cli("pct", "restore", 101, newest(up, 100), ok=True)
    up.cli("pct", "shutdown", 100, "--forceStop", 1, "--timeout", 10, ok=True)
    changing = (*JUNK, "scratch", "dev", "proc", "sys", "etc/resolv.conf", "run", "var/run", "var/lock")
    assert listing(101, without=changing) == listing(100, without=changing)


def test_stop_mode_archives_a_stopped_container_and_starts_it_again(up: Root) -> None:
    inside(up, "echo fresh > /srv/data/fresh")
    before = inside(up, "cat /proc/1/stat | cut -d ' ' -f 22")
    said = up.cli("vzdump", 100, "--mode", "stop", ok=True).stderr
    assert [line for line in said.splitlines() if re.search("stopping|restarting|online", line)][:2] == [
        "INFO: stopping virtual guest", "INFO: restarting vm",
    ]  # fmt: skip
    assert state(up) == "status: running"
    assert inside(up, "cat /proc/1/stat | cut -d ' ' -f 22") != before
    up.cli("pct", "restore", 101, newest(up, 100), ok=True)
    with tree(101) as (place, _):
        assert (place / "srv/data/fresh").read_text() == "fresh\n"


def test_a_killed_backup_thaws_the_container_the_next_time(up: Root, tmp_path: Path) -> None:
    script = tmp_path / "hook"
    script.write_text('#!/bin/sh\ntest "$1" != pre-restart || exec sleep 60\n')
    script.chmod(0o755)
    with running(up, 100, "--script", script) as job:
        job.wait_for("INFO: resuming guest")  # the hook before the thaw holds it
        job.process.send_signal(signal.SIGKILL)
        job.process.wait()
    home = ["lxc-info", "-P", str(up / "var/lib/lxc"), "-n", "100", "-s", "-H"]
    frozen = subprocess.run(home, capture_output=True, text=True, check=True).stdout
    assert frozen.strip() == "FROZEN"
    assert "pct unlock 100" in up.cli("vzdump", 100).stderr
    assert inside(up, "echo thawed") == "thawed"
    assert [name for name in leftovers(up) if not name.endswith(".json")] == []
    up.cli("pct", "unlock", 100, ok=True)
    up.cli("vzdump", 100, ok=True)
    assert leftovers(up) == []


def test_an_interrupted_backup_leaves_the_container_running(up: Root) -> None:
    with running(up, 100, "--bwlimit", 100) as job:
        job.wait_for("INFO: starting first sync")
        job.process.send_signal(signal.SIGTERM)
        assert job.finish(20) == 255
    assert inside(up, "echo works") == "works"
    assert archives(up, 100) == []
    assert leftovers(up) == []


# -- restoring elsewhere and otherwise ---------------------------------------------------------------------------------


@pytest.fixture
def archive(ct: Root) -> Path:
    ct.cli("vzdump", 100, "--compress", "zstd", ok=True)
    return newest(ct, 100)


def test_force_replaces_a_container_and_an_id_in_use_is_kept_otherwise(ct: Root, archive: Path) -> None:
    refused = ct.cli("pct", "restore", 100, archive)
    assert refused.status != 0
    assert "already exists; replace it with --force" in refused.stderr
    with tree(100, writable=True) as (place, _):
        shutil.rmtree(place / "srv/data")
    old = set((ct / "var/lib/vz/images/100").iterdir())
    ct.cli("pct", "restore", 100, archive, "--force", 1, "--unique", 1, "--start", 1, ok=True)
    assert not old & set((ct / "var/lib/vz/images/100").iterdir())
    assert state(ct) == "status: running"
    assert inside(ct, "cat /srv/data/plain") == "hello"
    running_one = ct.cli("pct", "restore", 100, archive, "--force", 1)
    assert "CT is running" in running_one.stderr


def test_a_lost_volume_is_there_again_after_a_restore(ct: Root, archive: Path) -> None:
    """The new one has the name of the old one, which was gone."""
    lost = ct.path / "var/lib/vz/images/100" / conf(100)["rootfs"].partition(",")[0].rpartition("/")[2]
    lost.rename(ct.path / "lost")
    ct.cli("pct", "restore", 100, archive, "--force", 1, ok=True)
    assert lost.exists()
    assert lost.name in (ct / "etc/pve/lxc/100.conf").read_text()
    with tree(100) as (place, _):
        assert (place / "srv/data/plain").exists()


def test_given_volumes_replace_those_of_the_archive(ct: Root, archive: Path) -> None:
    ct.cli("pct", "restore", 101, archive, "--rootfs", "0.1", "--unprivileged", 0, "--memory", 96, "--hostname", "new",
           ok=True)  # fmt: skip
    found = conf(101)
    assert {"mp0", "mp1"}.isdisjoint(found)
    assert found["unprivileged"] == "0"
    assert (found["memory"], found["hostname"]) == ("96", "new")
    with tree(101) as (place, _):
        info = (place / "srv/data/plain").stat()
        assert info.st_uid < 65536
        assert (place / "srv/more").is_dir()
    missing = ct.cli("pct", "restore", 102, archive, "--mp0", "local:0.1,mp=/x")
    assert missing.status != 0
    assert "rootfs" in missing.stderr


def test_a_plain_directory_can_hold_a_container(ct: Root, archive: Path) -> None:
    ct.cli("pct", "restore", 101, archive, "--rootfs", "local:0", ok=True)
    assert conf(101)["rootfs"].startswith("local:101/subvol-101-disk-0.subvol")
    ct.cli("vzdump", 101, ok=True)
    ct.cli("pct", "restore", 102, newest(ct, 101), ok=True)
    assert conf(102)["rootfs"].startswith("local:102/subvol-102-disk-0.subvol")
    assert listing(102, without=JUNK) == listing(101, without=JUNK)


def test_an_archive_comes_from_standard_input(ct: Root) -> None:
    ct.cli("vzdump", 100, ok=True)
    data = newest(ct, 100).read_bytes()
    refused = ct.cli("pct", "restore", 101, "-", stdin=data)
    assert "rootfs" in refused.stderr
    ct.cli("pct", "restore", 101, "-", "--rootfs", "local:0.1", stdin=data, ok=True)
    assert conf(101)["hostname"] == "ct100"
    assert listing(101, without=(*JUNK, "scratch", "srv/more")) == listing(100, without=(*JUNK, "scratch", "srv/more"))


def test_directories_of_the_host_stay_out_of_the_archive_and_come_back_as_mounts(ct: Root, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "secret").write_text("of the host")
    shared.chmod(0o711)
    ct.cli("pct", "set", 100, "--mp5", f"{shared},mp=/shared", ok=True)
    said = ct.cli("vzdump", 100, ok=True).stderr
    assert "INFO: excluding bind mount point mp5 ('/shared') from backup (not a volume)" in said
    names = subprocess.run(["tar", "-tf", newest(ct, 100)], capture_output=True, text=True, check=True).stdout
    assert "secret" not in names
    ct.cli("pct", "restore", 101, newest(ct, 100), ok=True)
    assert conf(101)["mp5"] == f"{shared},mp=/shared"
    assert (shared.stat().st_mode & 0o777, (shared / "secret").read_text()) == (0o711, "of the host")


def test_firewall_rules_travel_with_the_container(ct: Root) -> None:
    (ct / "etc/pve/firewall/100.fw").write_text("[OPTIONS]\n")
    ct.cli("vzdump", 100, ok=True)
    ct.cli("pct", "restore", 101, newest(ct, 100), ok=True)
    assert (ct / "etc/pve/firewall/101.fw").read_text() == "[OPTIONS]\n"


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("what", ["truncated", "flipped", "foreign", "not a container", "evil"])
def test_a_bad_archive_is_told_in_one_sentence_and_nothing_changes(
    ct: Root, archive: Path, tmp_path: Path, what: str, replace: bool
) -> None:
    bad = _bad(archive, tmp_path, what)
    before = {path: path.stat().st_mtime_ns for path in (ct / "var/lib/vz/images").rglob("*")}
    text = ct.config(100).read_text()
    done = ct.cli("pct", "restore", 100 if replace else 101, bad, *(["--force", 1] if replace else []))
    assert done.status not in (0, 1), str(done)
    assert "Traceback" not in done.stderr
    after = {path: path.stat().st_mtime_ns for path in (ct / "var/lib/vz/images").rglob("*")}
    assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}, str(done)
    assert ct.config(100).read_text() == text
    assert not (ct / "etc/pve/local/lxc/101.conf").exists()
    assert root_is_quiet(ct)


def root_is_quiet(root: Root) -> bool:
    wait_until("nothing runs or is mounted", lambda: root.running() == {}, 5)
    return True


def _bad(archive: Path, folder: Path, what: str) -> Path:
    path = folder / "vzdump-lxc-100-bad.tar.zst"
    data = bytearray(archive.read_bytes())
    if what == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif what == "flipped":
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    elif what == "foreign":
        path.write_bytes(b"not compressed at all" * 100)
    elif what == "not a container":
        subprocess.run(["tar", "--zstd", "-cf", path, "-C", "/etc", "passwd"], check=True)
    else:
        _evil(archive, path)
    return path


def _evil(archive: Path, path: Path) -> None:
    """The good archive with a member that points out of the container."""
    plain = path.with_suffix("")
    subprocess.run(["zstd", "-q", "-d", archive, "-o", plain], check=True)
    outside = path.parent / "inner/outside"
    outside.parent.mkdir()
    outside.write_text("x")
    subprocess.run(["tar", "-rPf", plain, "../outside"], cwd=outside.parent / "..", check=False)
    (outside.parent.parent / "outside").write_text("x")
    subprocess.run(["tar", "-rPf", plain, "../outside"], cwd=outside.parent, check=True)
    subprocess.run(["zstd", "-q", plain, "-o", path], check=True)


def test_a_copy_of_a_running_container_has_only_the_chosen_mount_points(root: Root, local_template: str) -> None:
    """Folders lie on one file system, which says nothing about whose they are."""
    host = root / "host [1]"
    host.mkdir()
    (host / "secret").touch()
    host.chmod(0o755)
    points = ["--mp0", f"{host},mp=/b*d", "--mp1", "local:0,mp=/left", "--mp2", "local:0,mp=/in,backup=1"]
    root.cli("pct", "create", 100, local_template, "--rootfs", "local:0", *points, "--start", 1, ok=True)
    root.cli("pct", "exec", 100, "--", "sh", "-c", "touch /left/no /in/yes /bad", ok=True)
    root.cli("vzdump", 100, "--mode", "suspend", "--compress", "0", ok=True)
    listed = subprocess.run(["tar", "-tf", newest(root, 100)], capture_output=True, text=True, check=True)
    names = listed.stdout.splitlines()
    assert {"./in/yes", "./bad", "./left/"} <= {*names}
    assert not [name for name in names if name.endswith(("/no", "/secret"))]
    root.cli("pct", "stop", 100, ok=True)
