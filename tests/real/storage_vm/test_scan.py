"""What can be found on servers and on this host: pvesm scan against the real ones."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import scan
from pvetools.system.errors import NotFound, PveError
from tests.real.storage_vm import beds, san_beds
from tests.real.storage_vm.beds import SMB_PASSWORD, SMB_USER, sh

Cli = Callable[..., str]


@pytest.fixture(autouse=True)
def root(module_root: Path) -> Path:
    return module_root


@pytest.mark.core
def test_exports_of_an_nfs_server(cli: Cli) -> None:
    with beds.nfs_server() as place:
        sh("mkdir -p /srv/other; exportfs -i -o ro 10.1.0.0/16:/srv/other 10.2.0.0/16:/srv/other")
        try:
            rows = {row["path"]: row["options"] for row in scan.nfs("127.0.0.1")}
            assert rows[place] == "127.0.0.1"
            assert sorted(rows["/srv/other"].split(",")) == ["10.1.0.0/16", "10.2.0.0/16"]
            assert cli("pvesm", "scan", "nfs", "127.0.0.1").splitlines()[0] == f"{place:10} 127.0.0.1"
        finally:
            sh("exportfs -u 10.1.0.0/16:/srv/other; exportfs -u 10.2.0.0/16:/srv/other", check=False)


def test_shares_of_an_smb_server(cli: Cli) -> None:
    with beds.smb_server():
        assert scan.cifs("127.0.0.1") == [{"share": "data", "description": ""}, {"share": "open", "description": ""}]
        with watched("smbclient") as seen:
            as_user = scan.cifs("127.0.0.1", SMB_USER, SMB_PASSWORD)
        assert {row["share"] for row in as_user} == {"data", "open"}
        assert seen, "smbclient was not seen at work"
        assert not any(SMB_PASSWORD.encode() in text for text in seen)
        assert cli("pvesm", "cifsscan", "127.0.0.1") == "data\nopen\n"
        said = cli("pvesm", "scan", "cifs", "127.0.0.1", "--username", SMB_USER, "--password", "wrong", status=255)
        assert said.strip() == "server '127.0.0.1' does not tell its shares: user name or password are wrong"
    with pytest.raises(PveError, match=r"^server '127\.0\.0\.1' is not online \(port 445: Connection refused\)$"):
        scan.cifs("127.0.0.1")


@contextlib.contextmanager
def watched(program: str) -> Iterator[list[bytes]]:
    """Command lines and environments of all processes of a program, looked at again and again."""
    seen: list[bytes] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for folder in Path("/proc").glob("[1-9]*"):
                with contextlib.suppress(OSError):
                    if (folder / "comm").read_text().strip() == program:
                        seen.extend((folder / file).read_bytes() for file in ("cmdline", "environ"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join(20)


@pytest.mark.parametrize(
    ("kind", "bed", "name", "port"),
    [("iscsi", san_beds.lio, san_beds.TARGET, 3260), ("nvme", san_beds.nvmet, san_beds.NQN, 4420)],
)
def test_targets_of_a_san(
    cli: Cli, kind: str, bed: Callable[[], contextlib.AbstractContextManager[object]], name: str, port: int
) -> None:
    ask = {"iscsi": scan.iscsi_targets, "nvme": scan.nvme_subsystems}[kind]
    with bed():
        (row,) = ask("127.0.0.1")
        assert row["target"] == name
        assert sorted(row["portal"].split(",")) == [f"{host}:{port}" for host in san_beds.HOSTS]
        found, portals = cli("pvesm", "scan", kind, f"127.0.0.2:{port}").split()
        assert (found, sorted(portals.split(","))) == (name, sorted(row["portal"].split(",")))
    with pytest.raises(PveError, match=rf"^portal '127\.0\.0\.1:{port}' does not answer: Connection refused$"):
        ask("127.0.0.1")


def test_volume_groups_and_thin_pools(cli: Cli) -> None:
    with beds.lvmthin():
        sh("lvcreate -qy -L 8M -n plain vgthin")
        assert scan.volume_groups() == [{"vg": "vgthin"}]
        assert scan.thin_pools("vgthin") == [{"lv": "pool"}]
        assert cli("pvesm", "lvmthinscan", "vgthin") == "pool\n"
    assert scan.volume_groups() == []
    with pytest.raises(NotFound, match="vgthin"):
        scan.thin_pools("vgthin")


def test_pools_of_zfs(cli: Cli) -> None:
    with beds.zfspool():
        for name in ("subvol-100-disk-0", "basevol-101-disk-0"):
            sh(f"zfs create tank/vms/{name}")
        sh("zfs create -V 8M tank/vms/vm-100-disk-0")
        assert scan.zfs_pools() == [{"pool": "tank"}, {"pool": "tank/vms"}]
        assert cli("pvesm", "zfsscan") == "tank\ntank/vms\n"
    assert scan.zfs_pools() == []
