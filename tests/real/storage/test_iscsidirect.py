"""LUNs that QEMU reaches itself: the contract of foreign storages, CHAP, and servers that are not as they should be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvetools.storage import volumes
from pvetools.system import paths
from pvetools.system.errors import PveError
from tests.real.storage_vm.beds import STORAGE
from tests.real.storage_vm.conftest import cli, module_root  # noqa: F401 - fixtures
from tests.real.storage_vm.contract import holds, put, qemu_io
from tests.real.storage_vm.foreign import *  # noqa: F403 - the tests are the point
from tests.real.storage_vm.foreign import Server
from tests.sandbox.root import Result, Root

pytestmark = pytest.mark.skipif(not shutil.which("tgtd"), reason="'tgtd' is not installed")
MIB = 1 << 20
TARGET, GUARDED = "iqn.2024-01.org.example:open", "iqn.2024-01.org.example:guarded"
USER, PASSWORD = "backup%user", "s3cret pass,word"
PORT = 3260


class Tgt:
    """tgtd with two targets: one for everybody, one that wants a password."""

    def __init__(self, folder: Path) -> None:
        self.backing = {}
        for name, size in (("one", 40 * MIB), ("two", 24 * MIB + 512), ("three", 16 * MIB)):
            path = folder / name
            with path.open("wb") as file:
                file.truncate(size)
            self.backing[name] = path
        self.process = subprocess.Popen(["tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{PORT},portal=[::1]:{PORT}"])
        self._wait()
        self.target(1, TARGET, "one", "two")
        self.target(2, GUARDED, "three")
        self.admin("new", "account", user=USER, password=PASSWORD)
        self.admin("bind", "account", tid=2, user=USER)

    def target(self, number: int, name: str, *images: str) -> None:
        self.admin("new", "target", tid=number, targetname=name)
        for lun, image in enumerate(images, 1):
            self.admin("new", "logicalunit", tid=number, lun=lun, backing_store=self.backing[image])
        self.admin("bind", "target", tid=number, initiator_address="ALL")

    def admin(self, operation: str, mode: str, **words: object) -> None:
        options = [text for key, value in words.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        subprocess.run(
            ["tgtadm", "--lld", "iscsi", "--op", operation, "--mode", mode, *options], check=True, timeout=20
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while subprocess.run(["tgtadm", "--op", "show", "--mode", "sys"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "tgtd does not answer within 20 s"
            time.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(20)


@pytest.fixture(scope="module")
def tgt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tgt]:
    made = Tgt(tmp_path_factory.mktemp("luns"))
    yield made
    made.close()


def section(target: str = TARGET, portal: str = "127.0.0.1", *more: str, name: str = STORAGE) -> str:
    lines = (f"portal {portal}", f"target {target}", *more)
    return f"iscsidirect: {name}\n" + "".join(f"\t{line}\n" for line in lines) + "\n"


@pytest.fixture(scope="module")
def server(tgt: Tgt, module_root: Path) -> Iterator[Server]:  # noqa: F811
    """The open target."""
    sizes = {path.stat().st_size: path for name, path in tgt.backing.items() if name != "three"}
    made = Server(section(), sizes, "lun99", "network")
    made.define()
    yield made


def test_luns_are_named_by_number_and_reached_by_qemu_itself(server: Server) -> None:
    assert [row.volid for row in volumes.list_volumes(STORAGE)] == ["store:lun1", "store:lun2"]
    found = volumes.source("store:lun1")
    assert found.network
    assert found.network[:3] == ("iscsi", f"{TARGET}/1", (("127.0.0.1", PORT),))
    assert not found.network.user
    assert not found.options
    opened = json.loads(found.url.removeprefix("json:"))["file"]
    assert (opened["portal"], opened["target"], opened["lun"]) == (f"127.0.0.1:{PORT}", TARGET, 1)


@pytest.mark.parametrize("portal", ["[::1]", f"[::1]:{PORT}", "::1", "localhost", f"localhost:{PORT}"])
def test_portals_have_names_and_addresses_of_both_families(server: Server, portal: str) -> None:
    paths.storage_config().write_text(section(TARGET, portal))
    assert holds("store:lun1", 0, 8 * MIB)
    assert len(volumes.list_volumes(STORAGE)) == 2
    server.define()


# With a password.


@pytest.fixture
def guarded(tgt: Tgt, root: Root, cli: Callable[..., Result]) -> None:  # noqa: F811
    """The guarded target, defined by pvesm."""
    root.cli(
        "pvesm", "add", "iscsidirect", "safe", "--portal", "127.0.0.1", "--target", GUARDED, "--username", USER,
        "--password", PASSWORD, ok=True,
    )  # fmt: skip


def test_a_password_lies_in_a_file_of_its_own_and_goes_with_the_storage(guarded: None, root: Root) -> None:
    file = root / "etc/pve/priv/storage/safe.pw"
    assert file.read_text() == PASSWORD
    assert file.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in (root / "etc/pve/storage.cfg").read_text()
    assert PASSWORD not in root.cli("pvesh", "get", "/storage/safe", "--output-format", "json", ok=True).stdout
    root.cli("pvesm", "remove", "safe", ok=True)
    assert not file.exists()


def test_luns_behind_a_password_are_read_and_written(guarded: None) -> None:
    assert [(row.volid, row.size) for row in volumes.list_volumes("safe")] == [("safe:lun1", 16 * MIB)]
    put("safe:lun1", 0x51)
    assert holds("safe:lun1", 0x51)


def test_no_process_is_told_the_password(guarded: None, tmp_path: Path) -> None:
    found = volumes.source("safe:lun1")
    assert PASSWORD not in repr(found)
    address = tmp_path / "nbd"
    words = ["qemu-nbd", *found.options, "-f", "raw", "-r", "-k", str(address), found.image]
    process = subprocess.Popen(words)
    try:
        deadline = time.monotonic() + 20
        while not address.exists():
            assert process.poll() is None, "qemu-nbd ended"
            assert time.monotonic() < deadline, "qemu-nbd does not listen within 20 s"
            time.sleep(0.02)
        for file in ("cmdline", "environ"):
            assert PASSWORD.encode() not in Path(f"/proc/{process.pid}/{file}").read_bytes()
        volumes.list_volumes("safe")
        assert PASSWORD not in os.environ.values()
    finally:
        process.kill()
        process.wait(20)


def test_a_wrong_password_is_refused_and_nothing_is_defined(tgt: Tgt, root: Root) -> None:
    wrong = root.cli(
        "pvesm", "add", "iscsidirect", "safe", "--portal", "127.0.0.1", "--target", GUARDED, "--username", USER,
        "--password", "another one", timeout=60,
    )  # fmt: skip
    assert wrong.status == 255
    assert wrong.stderr.strip() == (
        f"storage 'safe': can't log in to target '{GUARDED}' at portal '127.0.0.1:{PORT}': user name or password are "
        "wrong, or it wants some and the storage has none"
    )
    assert not (root / "etc/pve/storage.cfg").exists()
    assert not (root / "etc/pve/priv/storage/safe.pw").exists()


def test_without_a_password_the_guarded_target_lets_nobody_in(tgt: Tgt, root: Root) -> None:
    paths.storage_config().write_text(
        section(GUARDED, name="none") + section(GUARDED, "127.0.0.1", f"username {USER}", name="user")
    )
    with pytest.raises(PveError, match="user name or password are wrong, or it wants some and the storage has none"):
        volumes.usable("none")
    with pytest.raises(
        PveError, match="there is no password for user 'backup%user', set it with: pvesm set user --password"
    ):
        volumes.usable("user")


def test_a_machine_runs_from_a_lun_behind_a_password(
    guarded: None, tgt: Tgt, root: Root, vm_image: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(vm_image.stat().st_size)
    tgt.backing["disk"] = disk
    tgt.admin("new", "logicalunit", tid=2, lun=7, backing_store=disk)
    found = volumes.source("safe:lun7")
    words = ["qemu-img", "convert", "-n", *found.options, "-f", "raw", "-O", "raw", str(vm_image), found.image]
    subprocess.run(words, check=True, timeout=120)
    root.cli(
        "qm", "create", 100, "--memory", 256, "--scsihw", "virtio-scsi-pci", "--boot", "order=scsi0", "--scsi0",
        "safe:lun7", "--serial0", "socket", "--kvm", 0, ok=True,
    )  # fmt: skip
    root.cli("qm", "start", 100, ok=True)
    with root.serial(100) as port:
        port.wait_booted()
    machines = [folder for folder in Path("/proc").glob("[1-9]*") if b"\0guest=" in (folder / "cmdline").read_bytes()]
    assert machines
    assert not any(PASSWORD.encode() in (folder / "cmdline").read_bytes() for folder in machines)
    root.cli("qm", "stop", 100, ok=True)
    root.cli("qm", "destroy", 100, ok=True)
    assert volumes.exists("safe:lun7")
    tgt.admin("delete", "logicalunit", tid=2, lun=7)


# Servers that are not as they should be.


@pytest.mark.parametrize(
    ("portal", "target", "reason"),
    [
        ("127.0.0.1", "iqn.2024-01.org.example:none", "there is no such target"),
        ("127.0.0.1:3", TARGET, "portal '127.0.0.1:3' does not answer: Connection refused"),
        ("no.such.host.invalid", TARGET, "has no address: the name 'no.such.host.invalid' is not known"),
        ("127.0.0.1", "-x", "does not look like the name of an iSCSI target"),
        ("127.0.0.1", "iqn.2024-01.org.example:a b", "does not look like the name of an iSCSI target"),
    ],
)
def test_what_is_not_there_cannot_be_added(tgt: Tgt, root: Root, portal: str, target: str, reason: str) -> None:
    ran = root.cli("pvesm", "add", "iscsidirect", "bad", "--portal", portal, "--target", target, timeout=60)
    assert ran.status == 255
    assert reason in ran.stderr
    assert not (root / "etc/pve/storage.cfg").exists()


def test_a_server_that_hangs_is_inactive_soon_and_others_are_not(tgt: Tgt, root: Root) -> None:
    paths.storage_config().write_text(section())
    tgt.process.send_signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        rows = {row.definition.id: row for row in volumes.status()}
        assert time.monotonic() - start < 10
        assert not rows[STORAGE].active
        assert rows["local"].active
        assert re.search(r"portal '127\.0\.0\.1:3260' does not answer any more: timed out", rows[STORAGE].reason)
    finally:
        tgt.process.send_signal(signal.SIGCONT)
    assert volumes.status(STORAGE)[0].active


@contextlib.contextmanager
def talker(answer: bytes) -> Iterator[int]:
    """Somebody who listens, but says something else; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    made, _ = listening.accept()
                    with made:
                        made.recv(4096)
                        made.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 100, bytes(48)])
def test_a_server_of_something_else_is_no_target(root: Root, answer: bytes) -> None:
    with talker(answer) as port:
        paths.storage_config().write_text(section(TARGET, f"127.0.0.1:{port}"))
        with pytest.raises(PveError, match=r"has closed the connection|does not talk iSCSI|timed out"):
            volumes.usable(STORAGE)


def test_many_luns_are_listed_from_the_first_to_the_last(tgt: Tgt, root: Root) -> None:
    """Numbers from 256 are told in another form."""
    name = "iqn.2024-01.org.example:many"
    tgt.target(3, name)
    numbers = [1, 2, 9, 10, 255, 256, 300, 4000]
    for number in numbers:
        tgt.admin("new", "logicalunit", tid=3, lun=number, backing_store=tgt.backing["three"])
    paths.storage_config().write_text(section(name))
    assert {row.volid for row in volumes.list_volumes(STORAGE)} == {f"{STORAGE}:lun{number}" for number in numbers}
    assert volumes.info(f"{STORAGE}:lun300").size == 16 * MIB
    assert "failed" not in qemu_io(volumes.source(f"{STORAGE}:lun255"), "read 0 4096")
