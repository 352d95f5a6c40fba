"""What can be found on servers and on this host: pvesm scan against the real ones."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.system import paths
from tests.real.storage_vm import beds, san_beds
from tests.real.storage_vm.beds import SMB_PASSWORD, SMB_USER, sh

Cli = Callable[..., str]


@pytest.fixture(autouse=True)
def root(module_root: Path) -> Path:
    return module_root


def data(cli: Cli, *words: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(cli("pvesm", "scan", *words, "--output-format", "json"))
    return found


def test_exports_of_an_nfs_server(cli: Cli) -> None:
    with beds.nfs_server() as place:
        sh("mkdir -p /srv/other; exportfs -i -o ro '*:/srv/other' 10.1.0.0/16:/srv/other")
        try:
            rows = {row["path"]: row["options"] for row in data(cli, "nfs", "127.0.0.1")}
            assert rows[place] == "127.0.0.1"
            assert "10.1.0.0/16" in rows["/srv/other"].split(",")
            assert cli("pvesm", "scan", "nfs", "127.0.0.1") == cli("pvesm", "nfsscan", "127.0.0.1")
            assert cli("pvesm", "scan", "nfs", "127.0.0.1").splitlines()[0] == f"{place:10} 127.0.0.1"
        finally:
            sh("exportfs -u '*:/srv/other'; exportfs -u 10.1.0.0/16:/srv/other", check=False)


def test_shares_of_an_smb_server(cli: Cli) -> None:
    with beds.smb_server():
        as_guest = data(cli, "cifs", "127.0.0.1")
        assert {"share": "data", "description": ""} in as_guest
        assert {row["share"] for row in as_guest} == {"data", "open"}
        with watched("smbclient") as seen:
            as_user = data(cli, "cifs", "127.0.0.1", "--username", SMB_USER, "--password", SMB_PASSWORD)
        assert {row["share"] for row in as_user} == {"data", "open"}
        assert seen, "smbclient was not seen at work"
        assert not any(SMB_PASSWORD.encode() in text for text in seen)
        assert cli("pvesm", "cifsscan", "127.0.0.1").splitlines()[0].split() == [as_guest[0]["share"]]
        said = cli("pvesm", "scan", "cifs", "127.0.0.1", "--username", SMB_USER, "--password", "wrong", status=255)
        assert said.strip() == "server '127.0.0.1' does not tell its shares: user name or password are wrong"
    said = cli("pvesm", "scan", "cifs", "127.0.0.1", status=255)
    assert said.strip() == "server '127.0.0.1' is not online (port 445: Connection refused)"


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
    with bed():
        expected = ",".join(f"{host}:{port}" for host in san_beds.HOSTS)
        (row,) = data(cli, kind, "127.0.0.1")
        assert {**row, "portal": ",".join(sorted(row["portal"].split(",")))} == {"target": name, "portal": expected}
        assert cli("pvesm", "scan", kind, f"127.0.0.2:{port}").split() == [name, row["portal"]]
    said = cli("pvesm", "scan", kind, "127.0.0.1", status=255)
    assert said.strip() == f"portal '127.0.0.1:{port}' does not answer: Connection refused"


def test_volume_groups_and_thin_pools(cli: Cli) -> None:
    with beds.lvmthin():
        sh("lvcreate -qy -L 8M -n plain vgthin")
        assert data(cli, "lvm") == [{"vg": "vgthin"}]
        assert cli("pvesm", "lvmscan") == "vgthin\n"
        assert data(cli, "lvmthin", "vgthin") == [{"lv": "pool"}]
        assert cli("pvesm", "lvmthinscan", "vgthin") == "pool\n"
    assert data(cli, "lvm") == []
    assert cli("pvesm", "scan", "lvm").strip() == ""
    assert "vgthin" in cli("pvesm", "scan", "lvmthin", "vgthin", status=2)


def test_pools_of_zfs(cli: Cli) -> None:
    with beds.zfspool():
        sh(
            "zfs create tank/vms/subvol-100-disk-0; zfs create tank/vms/basevol-101-disk-0\n"
            "zfs create -V 8M tank/vms/vm-100-disk-0"
        )
        assert data(cli, "zfs") == [{"pool": "tank"}, {"pool": "tank/vms"}]
        assert cli("pvesm", "zfsscan") == "tank\ntank/vms\n"
    assert data(cli, "zfs") == []


def test_the_tree_has_an_index_and_names_what_is_not_served(cli: Cli) -> None:
    found = json.loads(cli("pvesh", "get", f"/nodes/{paths.node()}/scan", "--output-format", "json"))
    assert {row["method"] for row in found} == {"cifs", "iscsi", "lvm", "lvmthin", "nfs", "nvme", "pbs", "zfs"}
    said = cli("pvesm", "scan", "pbs", "127.0.0.1", "root@pam", "--password", "x", status=255)
    assert said.strip() == "storage type 'pbs' is not served by this version, so its servers can't be scanned"


@pytest.mark.parametrize(
    "words",
    [("nfs", "-x"), ("cifs", "a b"), ("iscsi", "127.0.0.1:0"), ("nvme", "[x]:1"), ("lvmthin", "-vg"), ("nfs", "x;y")],
)
def test_names_that_are_none_reach_no_tool(cli: Cli, words: tuple[str, ...]) -> None:
    cli("pvesm", "scan", *words, status=255)
