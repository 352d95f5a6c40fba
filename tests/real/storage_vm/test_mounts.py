"""Storages of file servers, with real servers: what is mounted, who may know the password, and servers that die."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import defining, definition, mounts, probe, secrets, servers, volumes
from pvetools.system import log, paths
from pvetools.system.errors import PveError, Refused
from tests.real.storage_vm.beds import EXPORT, SMB_PASSWORD, SMB_USER, answers, nfs_server, sh, smb_server, unmount_from
from tests.real.storage_vm.contract import holds, put

MIB = 1 << 20
FINITE = 90  # seconds: far less than the eternity that a hard mount waits, and enough for an emulated machine
NFS = {"server": "127.0.0.1", "export": EXPORT}
CIFS = {"server": "127.0.0.1", "share": "data", "username": SMB_USER, "password": SMB_PASSWORD}


@pytest.fixture(scope="module")
def exported(module_root: Path) -> Iterator[Path]:
    with nfs_server() as place:
        yield Path(place)


@pytest.fixture(scope="module")
def shared(module_root: Path) -> Iterator[Path]:
    with smb_server() as place:
        yield Path(place)


@pytest.fixture(autouse=True)
def clean(module_root: Path) -> Iterator[None]:
    """No storage, no secret and no mount before and after."""
    yield
    unmount_from("127.0.0.1:")
    unmount_from("//127.0.0.1/")
    sh(f"rm -rf {module_root}/etc/pve/priv {module_root}/mnt; rm -f {paths.storage_config()}")


def mounted(name: str) -> mounts.Mount:
    found = mounts.at(paths.mount_dir() / name)
    assert found, f"storage {name} is not mounted"
    return found


def nothing_is_left(name: str = "one") -> None:
    assert mounts.at(paths.mount_dir() / name) is None
    assert not (paths.mount_dir() / name).exists()
    assert not (paths.run_dir() / f"verify-{name}").exists()
    assert not paths.storage_config().exists() or name not in definition.load().ids()
    assert not [*paths.etc_pve().glob(f"priv/*/{name}.*")]
    assert not [found for found in mounts.every() if found.kind in ("nfs", "nfs4", "cifs")]


def options(found: mounts.Mount) -> set[str]:
    return set(found.options.split(","))


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    with log.sink(lines.append):
        yield lines


def state(name: str) -> volumes.Status:
    return volumes.status(name)[0]


def comes_back(name: str, within: float = 90) -> None:
    """A server that was cut off is asked again after a while: the longer it was away, the longer that takes."""
    deadline = time.monotonic() + within
    while not (found := state(name)).active:
        assert time.monotonic() < deadline, f"storage {name} is not active after {within:.0f} s: {found.reason}"


# NFS.


@pytest.mark.parametrize(("version", "kind"), [("3", "nfs"), ("4.1", "nfs4"), ("4.2", "nfs4")])
def test_an_export_is_mounted_in_the_wanted_version(exported: Path, version: str, kind: str) -> None:
    defining.add("one", "nfs", {**NFS, "options": f"vers={version},soft", "content": "iso,images"})
    found = mounted("one")
    assert (found.kind, found.source) == (kind, f"127.0.0.1:{EXPORT}")
    assert {f"vers={version}", "soft"} <= options(found)
    assert (exported / "template/iso").is_dir()
    assert state("one").active
    defining.remove("one")
    nothing_is_left()


def test_without_options_the_server_and_the_kernel_agree_and_the_mount_is_hard(exported: Path) -> None:
    defining.add("one", "nfs", NFS)
    assert {"hard", "vers=4.2"} <= options(mounted("one"))
    assert paths.storage_config().read_text() == (
        f"nfs: one\n\tpath {paths.mount_dir()}/one\n\tserver 127.0.0.1\n\texport {EXPORT}\n"
    )


def test_one_that_was_unmounted_is_mounted_when_it_is_used(exported: Path) -> None:
    defining.add("one", "nfs", NFS)
    volid = volumes.alloc("one", 100, MIB)
    sh(f"umount {paths.mount_dir()}/one")
    assert [found.volid for found in volumes.list_volumes("one")] == [volid]
    volumes.free(volid)


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_a_wrong_export_is_refused_and_leaves_nothing(exported: Path, version: str) -> None:
    with pytest.raises(PveError, match=r"storage 'one': can't mount '127\.0\.0\.1:/srv/other': ") as told:
        defining.add("one", "nfs", {**NFS, "export": "/srv/other", "options": f"vers={version}"})
    assert "\n" not in str(told.value)
    nothing_is_left()


def test_changed_options_count_at_once_unless_somebody_is_there(exported: Path) -> None:
    defining.add("one", "nfs", {**NFS, "options": "vers=4.1"})
    defining.update("one", {"options": "vers=3,soft"})
    assert {"vers=3", "soft"} <= options(mounted("one"))
    with (paths.mount_dir() / "one/held").open("w"), warnings() as lines:
        defining.update("one", {"options": "vers=4.2"})
    assert "vers=3" in options(mounted("one"))
    assert any("can't unmount" in line and "counts from the next time" in line for line in lines)
    with pytest.raises(PveError, match="can't mount"):
        defining.update("one", {"options": "vers=4.2,nonsense=1"})
    assert definition.get("one").options.options == "vers=4.2"
    assert not (paths.run_dir() / "verify-one").exists()
    assert state("one").active


def test_what_is_used_stays_mounted_when_the_storage_is_removed(exported: Path) -> None:
    defining.add("one", "nfs", NFS)
    with (paths.mount_dir() / "one/held").open("w"), warnings() as lines:
        defining.remove("one")
        assert mounted("one")
    assert [line for line in lines if "WARN: storage 'one': can't unmount" in line and "busy" in line]
    assert "one" not in definition.load().ids()


def test_many_that_activate_at_once_mount_once(exported: Path) -> None:
    defining.add("one", "nfs", NFS)
    sh(f"umount {paths.mount_dir()}/one")
    with multiprocessing.get_context("fork").Pool(8) as pool:
        assert pool.map(_activated, ["one"] * 8) == [True] * 8
    place = str(paths.mount_dir() / "one")
    assert [found.point for found in mounts.every()].count(place) == 1


def _activated(name: str) -> bool:
    return volumes.usable(name).definition.id == name


def test_another_mount_at_the_place_is_neither_used_nor_touched(exported: Path) -> None:
    place = paths.mount_dir() / "one"
    place.mkdir(parents=True)
    sh(f"mount -t tmpfs none {place}")
    try:
        with pytest.raises(PveError, match=rf"'{place}' is the mount of 'none' \(tmpfs\)"):
            defining.add("one", "nfs", NFS)
        assert mounted("one").kind == "tmpfs"
    finally:
        sh(f"umount {place}")


def test_a_stopped_server_is_told_at_once(exported: Path) -> None:
    defining.add("one", "nfs", {**NFS, "options": "soft,timeo=10,retrans=1"})
    sh("systemctl stop nfs-server")
    try:
        start = time.monotonic()
        assert "server '127.0.0.1' is not online" in state("one").reason
        with pytest.raises(PveError, match="is not online"):
            defining.add("two", "nfs", NFS)
        with pytest.raises(PveError, match="is not online"):
            volumes.alloc("one", 100, MIB)
        assert time.monotonic() - start < FINITE
    finally:
        for what in ("lease", "grace"):  # nobody has to wait for clients of before
            sh(f"echo 10 >/proc/fs/nfsd/nfsv4{what}time", check=False)
        sh(f"systemctl start nfs-server; exportfs -i -o rw,no_root_squash,no_subtree_check 127.0.0.1:{EXPORT}")
        answers(servers.nfs)
    comes_back("one")


# An NFS server that hangs: its packets are lost, as behind a pulled plug.


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing of NFS passes the loopback interface."""
    sh("tc qdisc add dev lo root handle 1: prio; tc qdisc add dev lo parent 1:3 handle 30: netem loss 100%")
    for way in ("dport", "sport"):
        sh(f"tc filter add dev lo parent 1: protocol ip u32 match ip {way} 2049 0xffff flowid 1:3")
    try:
        yield
    finally:
        sh("tc qdisc del dev lo root")


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_a_hanging_server_holds_nobody_up(
    exported: Path, cli: Callable[..., str], tmp_path: Path, version: str
) -> None:
    defining.add("one", "nfs", {**NFS, "options": f"vers={version}"})
    defining.add("good", "dir", {"path": f"{tmp_path}/good"})
    with silent():
        start = time.monotonic()
        rows = {line.split()[0]: line.split()[2] for line in cli("pvesm", "status").splitlines()[1:]}
        assert rows == {"good": "active", "local": "active", "one": "inactive"}
        with warnings() as lines:
            assert volumes.owned_by(100) == []
        assert any(
            "'one' is skipped: storage 'one': server '127.0.0.1' is not online (port 2049: no answer" in line
            for line in lines
        )
        assert time.monotonic() - start < FINITE
        with pytest.raises(PveError, match="no answer within 3 seconds"):
            defining.update("one", {"options": "vers=4.1"})
    comes_back("one")


def test_a_mount_that_hangs_behind_a_directory_storage_holds_nobody_up(
    exported: Path, cli: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can know beforehand that this directory lies on a server: the question itself hangs in the kernel."""
    defining.add("one", "nfs", {**NFS, "options": "vers=4.2,actimeo=0"})
    trap = {"path": f"{paths.mount_dir()}/one", "mkdir": "0", "content": "images"}
    defining.add("trap", "dir", trap)
    with silent():
        start = time.monotonic()
        said = cli("pvesm", "status")
        took = time.monotonic() - start
        assert {line.split()[0]: line.split()[2] for line in said.splitlines()[1:]} == {
            "local": "active", "one": "inactive", "trap": "inactive",
        }  # fmt: skip
        assert took < FINITE
        with monkeypatch.context() as patch:
            patch.setattr(probe, "STATUS_TIMEOUT", 2.0)
            patch.setattr(probe, "PROOF_TIMEOUT", 2.0)
            assert "no answer within 2 seconds" in state("trap").reason
            with pytest.raises(PveError, match="no answer within 2 seconds"):
                defining.add("more", "dir", trap)
        start = time.monotonic()
        defining.remove("one")  # unmounting may hang as well
        assert time.monotonic() - start < FINITE
        assert "one" not in definition.load().ids()
    defining.remove("trap")


# CIFS.


def test_a_share_is_mounted_with_user_and_password(shared: Path) -> None:
    defining.add("one", "cifs", {**CIFS, "content": "iso,images"})
    found = mounted("one")
    assert (found.kind, found.source) == ("cifs", "//127.0.0.1/data")
    assert {f"username={SMB_USER}", "soft", "vers=3.1.1"} <= options(found)
    assert (shared / "template/iso").is_dir()
    file = paths.etc_pve() / "priv/storage/one.pw"
    assert (file.read_text(), file.stat().st_mode & 0o777) == (f"password={SMB_PASSWORD}\n", 0o600)
    assert state("one").active
    defining.remove("one")
    nothing_is_left()


@pytest.mark.parametrize(
    ("asked", "kernel"), [("2.1", "vers=2.1"), ("3.0", "vers=3.0"), ("3", "vers=3.1.1"), ("3.11", "vers=3.1.1")]
)
def test_versions_of_the_protocol(shared: Path, asked: str, kernel: str) -> None:
    defining.add("one", "cifs", {**CIFS, "smbversion": asked, "domain": "WORKGROUP"})
    assert {kernel, "domain=WORKGROUP"} <= options(mounted("one"))


def test_a_folder_of_a_share_can_be_the_storage(shared: Path) -> None:
    (shared / "inner/deep").mkdir(parents=True, exist_ok=True)
    sh(f"chown -R {SMB_USER} {shared}/inner")
    defining.add("one", "cifs", {**CIFS, "subdir": "/inner/deep", "content": "iso"})
    assert mounted("one").source == "//127.0.0.1/data/inner/deep"
    assert (shared / "inner/deep/template/iso").is_dir()
    defining.update("one", {"subdir": "/inner"})
    assert mounted("one").source == "//127.0.0.1/data/inner"
    assert (shared / "inner/template/iso").is_dir()


def test_guests_need_no_password(shared: Path) -> None:
    defining.add("one", "cifs", {"server": "127.0.0.1", "share": "open", "content": "images"})
    assert mounted("one").source == "//127.0.0.1/open"
    volumes.free(volumes.alloc("one", 100, MIB))
    with pytest.raises(PveError, match="can't mount"):
        defining.add("two", "cifs", {"server": "127.0.0.1", "share": "data"})
    assert mounts.at(paths.mount_dir() / "two") is None


@pytest.mark.parametrize(
    "wrong", [{"password": "wr0ng, really"}, {"username": "nobody7"}, {"share": "missing"}, {"subdir": "/missing"}]
)
def test_what_the_server_refuses_is_not_defined(shared: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(PveError, match=r"storage 'one': can't mount '//127\.0\.0\.1/") as told:
        defining.add("one", "cifs", {**CIFS, **wrong})
    assert SMB_PASSWORD not in str(told.value)
    assert "wr0ng" not in str(told.value)
    nothing_is_left()


def test_a_new_password_has_to_be_right(shared: Path) -> None:
    defining.add("one", "cifs", CIFS)
    with pytest.raises(PveError, match="can't mount"):
        defining.update("one", {"password": "wr0ng"})
    assert secrets.read("one", "cifs", "password") == SMB_PASSWORD
    assert state("one").active
    try:
        sh(f"printf '%s\\n%s\\n' changed changed | smbpasswd -s {SMB_USER}")
        defining.update("one", {"password": "changed"})
        assert secrets.read("one", "cifs", "password") == "changed"
        volumes.free(volumes.alloc("one", 100, MIB))
    finally:
        sh(f"printf '%s\\n%s\\n' '{SMB_PASSWORD}' '{SMB_PASSWORD}' | smbpasswd -s {SMB_USER}")


@pytest.mark.core
def test_nobody_sees_the_password(shared: Path, cli: Callable[..., str]) -> None:
    """Neither on a command line nor in an environment while it mounts, nor in tables, logs and messages afterwards."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for entry in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        seen.add((entry / name).read_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with warnings() as lines:
            defining.add("one", "cifs", CIFS)
            defining.update("one", {"password": SMB_PASSWORD, "options": "noserverino"})
    finally:
        over.set()
        watcher.join()
    assert any(b"mount.cifs" in words or b"\0cifs\0" in words for words in seen), "the mount was not seen at all"
    secret = SMB_PASSWORD.encode()
    assert not [words for words in seen if secret in words]
    told = [paths.storage_config().read_text(), Path("/proc/self/mountinfo").read_text(), sh("dmesg"), *lines]
    told += [cli("pvesh", "get", "/storage/one"), sh("journalctl -b --no-pager || true")]
    assert not [text for text in told if SMB_PASSWORD in text]


def test_a_frozen_samba_holds_nobody_up(shared: Path, cli: Callable[..., str]) -> None:
    defining.add("one", "cifs", CIFS)
    sh("pkill -STOP smbd")
    try:
        start = time.monotonic()
        rows = {line.split()[0]: line.split()[2] for line in cli("pvesm", "status").splitlines()[1:]}
        assert rows == {"local": "active", "one": "inactive"}
        assert time.monotonic() - start < FINITE
        assert "port 445: no answer within 3 seconds" in state("one").reason
    finally:
        sh("pkill -CONT smbd")
    comes_back("one")


# Snapshots as files of their own, on both.


def _chains(type_: str, raw: dict[str, str]) -> None:
    defining.add("one", type_, {**raw, "snapshot-as-volume-chain": "1"})
    volid = volumes.alloc("one", 100, 8 * MIB, format="qcow2")
    try:
        for number, name in enumerate(("first", "second"), 1):
            put(volid, number)
            volumes.snapshot(volid, name)
        put(volid, 3)
        folder = volumes.path(volid).parent
        assert sorted(path.name for path in folder.iterdir()) == [
            "snap-first-vm-100-disk-0.qcow2", "snap-second-vm-100-disk-0.qcow2", "vm-100-disk-0.qcow2",
        ]  # fmt: skip
        with pytest.raises(Refused, match="remove the newer ones first: second"):
            volumes.rollback(volid, "first")
        volumes.rollback(volid, "second")
        assert holds(volid, 2)
        volumes.delete_snapshot(volid, "second")
        assert holds(volid, 2)
        volumes.rollback(volid, "first")
        assert holds(volid, 1)
        assert [found.volid for found in volumes.list_volumes("one")] == [volid]
    finally:
        volumes.free(volid)
    assert not folder.exists()


def test_chains_of_snapshots_on_nfs(exported: Path) -> None:
    _chains("nfs", NFS)


def test_chains_of_snapshots_on_cifs(shared: Path) -> None:
    _chains("cifs", CIFS)
