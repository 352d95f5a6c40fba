"""Virtual machines whose disks lie in a Ceph cluster: QEMU reaches them itself, and nobody sees the key."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.guest.qemu import buses
from pvetools.storage import volumes
from pvetools.system.errors import Refused
from tests.real.backup.jobs import leftovers, newest
from tests.real.ceph import MONITOR, Cluster
from tests.real.qemu.machine import SMALL, config, status, virsh, wait_until
from tests.real.storage_vm.cephs import USER
from tests.sandbox.root import Root

MIB = 1 << 20
HALTED = (*SMALL, "--freeze", 1)  # it runs, but its processors stand still: QEMU's part is all that matters


@pytest.fixture
def stored(root: Root, cluster: Cluster) -> Iterator[Root]:
    """A root with the storage `ceph`, empty before and after."""
    root.cli(
        "pvesm", "add", "rbd", "ceph", "--monhost", MONITOR, "--pool", "vms", "--username", USER,
        "--keyring", cluster.keyring(USER), ok=True,
    )  # fmt: skip
    assert images(cluster) == []
    yield root
    for vmid in (100, 101, 102):
        root.cli("qm", "stop", vmid)
        root.cli("qm", "destroy", vmid)
    assert images(cluster) == []


def images(cluster: Cluster) -> list[str]:
    """Those of guests; other tests keep a foreign one in the pool."""
    return [name for name in cluster.run("rbd", "ls", "vms").split() if name != "backup"]


def key(cluster: Cluster) -> str:
    words = cluster.keyring(USER).read_text().split()
    return words[words.index("key") + 2]


def secrets() -> list[str]:
    """What libvirt knows of keys."""
    return [line for line in virsh("secret-list").splitlines()[2:] if line.strip()]


def url(cluster: Cluster, image: str) -> str:
    return f"rbd:vms/{image}:conf={cluster.config}"


def sha256(image: str, folder: Path) -> str:
    """Checksum of what a disk holds, wherever it lies."""
    copy = folder / "copy.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, copy], check=True, timeout=120)
    with copy.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    copy.unlink()
    return found


def test_a_machine_lives_on_the_cluster_and_moves_by_backups_without_losing_a_byte(
    stored: Root, cluster: Cluster, vm_image: Path, tmp_path: Path
) -> None:
    stored.cli(
        "qm", "create", 100, "--memory", 256, "--kvm", 0, "--serial0", "socket", "--scsihw", "virtio-scsi-single",
        "--scsi0", f"ceph:0,import-from={vm_image},discard=on,iothread=1", "--boot", "order=scsi0", ok=True,
    )  # fmt: skip
    assert sha256(url(cluster, "vm-100-disk-0"), tmp_path) == sha256(str(vm_image), tmp_path)
    stored.cli("qm", "start", 100, ok=True)
    with stored.serial(100) as port:
        port.wait_booted()
        port.wait_ready()
        port.run("echo kept > /data/note && sync")
    with pytest.raises(Refused, match=r"is in use by a client at 127\.0\.0\.1"):
        volumes.free("ceph:vm-100-disk-0")
    stored.cli("vzdump", 100, "--mode", "snapshot", "--compress", "zstd", ok=True)
    while_it_ran = newest(stored, 100)
    assert status(stored) == "status: running"
    stored.cli("qm", "stop", 100, ok=True)
    state = sha256(url(cluster, "vm-100-disk-0"), tmp_path)
    stored.cli("vzdump", 100, "--compress", "zstd", ok=True)
    archive = newest(stored, 100)
    assert archive != while_it_ran
    stored.cli("qmrestore", archive, 101, "--storage", "local", ok=True)
    local = stored / "var/lib/vz/images/101/vm-101-disk-0.raw"
    assert sha256(str(local), tmp_path) == state
    stored.cli("vzdump", 101, "--compress", "zstd", ok=True)
    stored.cli("qmrestore", newest(stored, 101), 102, "--storage", "ceph", ok=True)
    assert sha256(url(cluster, "vm-102-disk-0"), tmp_path) == state
    stored.cli("qmrestore", while_it_ran, 101, "--storage", "ceph", "--force", ok=True)
    assert str(config(stored, 101)["scsi0"]).startswith("ceph:vm-101-disk-0,")
    stored.cli("qm", "set", 101, "--name", "copy", ok=True)
    stored.cli("qm", "start", 101, ok=True)
    with stored.serial(101) as port:
        port.wait_booted()
        port.wait_ready()
        assert port.run("cat /data/note") == "kept"
    assert leftovers(stored) == []


def test_a_running_machine_is_saved_goes_on_and_is_restored_anywhere(
    stored: Root, cluster: Cluster, vm_image: Path, tmp_path: Path
) -> None:
    disk = f"ceph:0,import-from={vm_image},discard=on,iothread=1"
    stored.cli("qm", "create", 100, *HALTED, "--scsihw", "virtio-scsi-single", "--scsi0", disk, ok=True)
    state = sha256(str(vm_image), tmp_path)
    assert sha256(url(cluster, "vm-100-disk-0"), tmp_path) == state
    stored.cli("qm", "start", 100, ok=True)
    stored.cli("vzdump", 100, "--mode", "snapshot", "--compress", "zstd", ok=True)
    assert status(stored) == "status: running"
    stored.cli("qmrestore", newest(stored, 100), 101, "--storage", "local", ok=True)
    assert sha256(str(stored / "var/lib/vz/images/101/vm-101-disk-0.raw"), tmp_path) == state
    stored.cli("vzdump", 101, "--compress", "zstd", ok=True)
    stored.cli("qmrestore", newest(stored, 101), 102, "--storage", "ceph", ok=True)
    assert sha256(url(cluster, "vm-102-disk-0"), tmp_path) == state
    with pytest.raises(Refused, match=r"is in use by a client at 127\.0\.0\.1"):
        volumes.free("ceph:vm-100-disk-0")
    assert leftovers(stored) == []


def test_the_key_is_seen_by_nobody(stored: Root, cluster: Cluster) -> None:
    stored.cli("qm", "create", 100, *HALTED, "--scsi0", "ceph:1", "--virtio1", "ceph:1", ok=True)
    told = stored.cli("qm", "showcmd", 100, ok=True).stdout
    assert '"driver":"rbd","pool":"vms","image":"vm-100-disk-0"' in told
    assert '"key-secret"' in told
    stored.cli("qm", "start", 100, ok=True)
    (name,) = stored.domains()
    everything = [told, virsh("dumpxml", name, "--security-info"), stored.config(100).read_text()]
    everything += [stored.cli("pvesh", "get", "/storage/ceph", ok=True).stdout, _commands()]
    assert not [text for text in everything if key(cluster) in text]
    found = subprocess.run(
        ["grep", "-rlF", key(cluster), *_folders(stored)], capture_output=True, text=True, check=False
    ).stdout.split()
    assert found == [str(stored / "etc/pve/priv/ceph/ceph.keyring")]
    assert (stored / "etc/pve/priv/ceph/ceph.keyring").stat().st_mode & 0o777 == 0o600
    assert secrets() == []


def _commands() -> str:
    """The command lines of all processes."""
    return "".join(
        path.read_bytes().replace(b"\0", b" ").decode(errors="replace") + "\n"
        for path in Path("/proc").glob("[1-9]*/cmdline")
        if path.exists()
    )


def _folders(root: Root) -> list[str]:
    wanted = [
        str(root.path),
        "/etc/libvirt",
        "/run/libvirt",
        "/var/lib/libvirt",
        "/var/log/libvirt",
        "/var/cache/libvirt",
    ]
    return [folder for folder in wanted if Path(folder).is_dir()]


def test_a_wrong_key_stops_the_start_and_leaves_nothing(stored: Root) -> None:
    stored.cli("qm", "create", 100, *HALTED, "--scsi0", "ceph:1", ok=True)
    keyring = stored / "etc/pve/priv/ceph/ceph.keyring"
    right = keyring.read_text()
    keyring.write_text(f"[client.{USER}]\nkey = AQAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAA==\n")
    said = stored.cli("qm", "start", 100)
    keyring.write_text(right)
    assert said.status != 0
    assert "AQAAAAAAAA" not in said.stderr + said.stdout
    assert stored.domains() == []
    assert secrets() == []


def test_disks_grow_while_their_machine_runs(stored: Root, cluster: Cluster) -> None:
    stored.cli("qm", "create", 100, *HALTED, "--scsi0", "ceph:1", ok=True)
    stored.cli("qm", "start", 100, ok=True)
    stored.cli("qm", "disk", "resize", 100, "scsi0", "+64M", ok=True)
    assert "size=1088M" in str(config(stored)["scsi0"])
    assert f'"size":{1088 * MIB}' in cluster.run("rbd", "info", "vms/vm-100-disk-0", "--format", "json")
    (name,) = stored.domains()
    disk = buses.target("scsi0")
    wait_until("QEMU knows the new size", lambda: str(1088 * MIB) in virsh("domblkinfo", name, disk), 30)


def test_a_cluster_that_is_not_there_is_told_in_time(root: Root) -> None:
    said = root.cli("pvesm", "add", "rbd", "gone", "--monhost", "127.0.0.1:1", "--pool", "vms", timeout=60)
    assert said.status != 0
    assert "storage 'gone'" in said.stderr
    assert not (root / "etc/pve/storage.cfg").exists() or "gone" not in (root / "etc/pve/storage.cfg").read_text()


def test_an_interrupted_import_leaves_no_image(stored: Root, cluster: Cluster, tmp_path: Path) -> None:
    """What was written to it may still be in use at the cluster when its maker is gone; here it is not."""
    big = tmp_path / "big.raw"
    with big.open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(MIB))
    stored.cli("qm", "create", 100, *SMALL, ok=True)
    with stored.spawn(
        "qm", "disk", "import", 100, big, "ceph", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as job:
        assert job.stdout
        for line in job.stdout:
            if re.search(rb"\([1-9][\d.]*%\)", line):
                break
        job.send_signal(signal.SIGTERM)
        said, _ = job.communicate(timeout=60)
    assert b"interrupted by signal" in said
    assert images(cluster) == []
    stored.cli("qm", "disk", "import", 100, big, "ceph", ok=True)
    assert sha256(url(cluster, "vm-100-disk-0"), tmp_path) == sha256(str(big), tmp_path)
