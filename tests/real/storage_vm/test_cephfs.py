"""A file system of a real Ceph cluster as a storage: mounted by the kernel and by FUSE, its key seen by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import defining, mounts, secrets, volumes
from pvetools.system import paths
from pvetools.system.errors import PveError
from tests.real.ceph import MONITOR, Cluster
from tests.real.storage_vm import cephs
from tests.real.storage_vm.beds import sh

MIB = 1 << 20
WAYS = {"kernel": ("ceph", {}), "fuse": ("fuse.ceph-fuse", {"fuse": "1"})}


@pytest.fixture(scope="module")
def cluster(module_root: Path) -> Cluster:
    return cephs.with_files()


@pytest.fixture(autouse=True)
def clean(module_root: Path) -> Iterator[None]:
    yield
    for mount in reversed(mounts.every()):
        if mount.kind in ("ceph", "fuse.ceph-fuse"):
            sh(f"umount -fl '{mount.point}'", check=False)
    paths.storage_config().unlink(missing_ok=True)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    return WAYS[request.param]


@pytest.fixture
def key(cluster: Cluster) -> str:
    words = cluster.keyring("files").read_text().split()
    return words[words.index("key") + 2]


@pytest.fixture
def given(key: str) -> dict[str, str]:
    return {"monhost": MONITOR, "username": "files", "keyring": key, "content": "backup,iso,vztmpl,snippets"}


def place() -> Path:
    return paths.mount_dir() / "files"


def test_it_is_mounted_used_and_unmounted(
    given: dict[str, str], key: str, way: tuple[str, dict[str, str]], cli: Callable[..., str]
) -> None:
    kind, options = way
    defining.add("files", "cephfs", {**given, **options})
    found = mounts.at(place())
    assert found
    assert found.kind == kind
    secret = secrets.path("files", "cephfs", "keyring")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert key not in paths.storage_config().read_text()
    assert key not in sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", check=False)
    row = volumes.status("files")[0]
    assert row.active, row.reason
    assert row.space
    assert row.space.total > 100 * MIB
    iso = place() / "template/iso/tiny.iso"
    iso.write_bytes(b"iso" * 1000)
    assert [found.volid for found in volumes.list_volumes("files")] == ["files:iso/tiny.iso"]
    assert volumes.info("files:iso/tiny.iso").size == 3000
    assert "files:iso/tiny.iso" in cli("pvesm", "list", "files")
    with pytest.raises(PveError, match="does not support content type 'images'"):
        volumes.alloc("files", 100, MIB)
    volumes.free("files:iso/tiny.iso")
    assert not iso.exists()
    cli("pvesm", "remove", "files")
    assert mounts.at(place()) is None
    assert not secret.exists()


def test_a_folder_and_a_named_file_system_can_be_mounted(
    given: dict[str, str], way: tuple[str, dict[str, str]]
) -> None:
    defining.add("files", "cephfs", {**given, "fs-name": "files"})
    (place() / "below").mkdir(exist_ok=True)
    (place() / "below/mark").write_text("here")
    defining.remove("files")
    defining.add("files", "cephfs", {**given, **way[1], "subdir": "/below", "fs-name": "files", "options": "noatime"})
    assert (place() / "mark").read_text() == "here"
    assert "noatime" in sh(f"findmnt -no OPTIONS {place()}")
    defining.remove("files")


def test_a_wrong_key_or_folder_leaves_nothing(given: dict[str, str], way: tuple[str, dict[str, str]]) -> None:
    wrong = {"keyring": "AQAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAA=="}
    for change in (wrong, {"subdir": "/nowhere"}, {"monhost": "127.0.0.1:1"}, {"fs-name": "other"}):
        with pytest.raises(PveError, match="storage 'files': ") as caught:
            defining.add("files", "cephfs", {**given, **way[1], **change})
        assert wrong["keyring"] not in str(caught.value)
        assert mounts.at(place()) is None
        assert not secrets.path("files", "cephfs", "keyring").exists()
        assert "files" not in volumes.storages()


def test_the_cluster_of_this_host_needs_no_monitors(
    cluster: Cluster, way: tuple[str, dict[str, str]], module_root: Path
) -> None:
    config = paths.etc_pve() / "ceph.conf"
    config.write_text(cluster.config.read_text())
    try:
        defining.add("files", "cephfs", {**way[1], "content": "iso"})
        assert (place() / "template/iso").is_dir()
        defining.remove("files")
    finally:
        config.unlink()
