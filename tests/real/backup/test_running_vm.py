"""Backup of running virtual machines: real libvirt, real guests."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dissect.archive.vma import VMA

from tests.real.backup.jobs import archives, leftovers, newest, running, sha256
from tests.real.conftest import Booted
from tests.real.qemu.machine import create, status, wait_until
from tests.sandbox.root import Root

SLOW = ("--bwlimit", 12 * 1024)  # the 64 MiB of the test guest take five seconds


def disk(root: Root, vmid: int = 100, number: int = 0) -> Path:
    (found,) = (root / f"var/lib/vz/images/{vmid}").glob(f"vm-{vmid}-disk-{number}.*")
    return found


def content(archive: Path, size: int) -> bytes:
    """The first disk in an archive, read by an independent program."""
    with archive.open("rb") as file:
        (device,) = VMA(file).devices()
        return device.open().read(size)


@contextlib.contextmanager
def paused(vm: Booted) -> Iterator[None]:
    vm.root.cli("qm", "suspend", vm.vmid, ok=True)
    try:
        yield
    finally:
        vm.root.cli("qm", "resume", vm.vmid, "--skiplock", 1)


@pytest.fixture
def vm(booted_vm: Booted) -> Iterator[Booted]:
    """The shared guest; afterwards it runs, is unlocked, and its archives are gone."""
    yield booted_vm
    root = booted_vm.root
    assert leftovers(root) == []
    assert status(root) == "status: running"
    assert "lock:" not in root.config(100).read_text()
    assert booted_vm.port.run("echo alive > /data/alive && sync && cat /data/alive") == "alive"
    for path in (root / "var/lib/vz/dump").iterdir():
        path.unlink()


def test_a_snapshot_is_the_state_at_its_beginning_whatever_the_guest_writes_later(vm: Booted) -> None:
    vm.port.run("dd if=/dev/urandom of=/data/before bs=64k count=64 2>/dev/null; sync")
    with paused(vm):
        image = disk(vm.root)
        state = sha256(image)
        with running(vm.root, 100, "--mode", "snapshot", "--compress", 0, *SLOW) as job:
            job.wait_for("started backup task")
            vm.root.cli("qm", "resume", 100, "--skiplock", 1, ok=True)
            vm.port.run("dd if=/dev/urandom of=/data/before bs=64k count=64 2>/dev/null; sync")
            assert job.process.poll() is None, "the backup ended before the guest wrote"
            assert job.finish() == 0, job.said
    assert sha256(image) != state
    vm.root.cli("qmrestore", newest(vm.root, 100), 101, ok=True)
    assert sha256(disk(vm.root, 101)) == state
    independent = content(newest(vm.root, 100), image.stat().st_size)
    assert independent == disk(vm.root, 101).read_bytes()
    vm.root.cli("qm", "destroy", 101, ok=True)


def test_the_guest_agent_freezes_the_file_systems_at_the_beginning(vm: Booted) -> None:
    vm.port.run("i=0; until pidof qemu-ga || pidof loader || [ $i -gt 50 ]; do i=$((i+1)); usleep 100000; done")
    said = vm.root.cli("vzdump", 100, "--compress", "zstd", ok=True).stderr
    order = ["'fs-freeze' command", "starting backup via QMP", "'fs-thaw' command", "started backup task"]
    places = [said.find(text) for text in order]
    assert places == sorted(places), said
    assert -1 not in places, said
    vm.port.run("echo thawed > /data/thawed && sync", timeout=10)


def test_suspend_mode_lets_the_guest_go_on_as_soon_as_the_job_has_begun(vm: Booted) -> None:
    with running(vm.root, 100, "--mode", "suspend", *SLOW) as job:
        job.wait_for("INFO: resuming VM again after")
        assert vm.port.run("echo while the backup runs") == "while the backup runs"
        assert job.process.poll() is None
        assert job.finish() == 0
    assert "INFO: suspending guest" in job.said
    assert re.search(r"INFO: guest is online again after (<1|\d+) seconds", job.said)


def test_a_killed_backup_leaves_the_guest_running_and_the_next_one_cleans_up(vm: Booted) -> None:
    root = vm.root
    with running(root, 100, *SLOW) as job:
        job.wait_for("started backup task")
        job.process.send_signal(signal.SIGKILL)
        job.process.wait()
    assert vm.port.run("echo before > /data/kill && sync && echo written") == "written"
    assert any(name.endswith(".dat") for name in leftovers(root))
    refused = root.cli("vzdump", 100)
    assert refused.status == 255
    assert re.search(r"locked \(backup\) by the task 'UPID:.*'qm unlock 100'", refused.stderr)
    assert [name for name in leftovers(root) if not name.endswith(".json")] == []
    root.cli("qm", "unlock", 100, ok=True)
    root.cli("vzdump", 100, ok=True)
    with newest(root, 100).open("rb") as file:
        assert len(list(VMA(file).devices())) == 1


def test_an_interrupted_backup_ends_its_job_in_the_hypervisor(vm: Booted) -> None:
    with running(vm.root, 100, *SLOW) as job:
        job.wait_for("started backup task")
        job.process.send_signal(signal.SIGTERM)
        assert job.finish(20) == 255
    assert "interrupted by signal" in job.said
    assert archives(vm.root, 100) == []
    (name,) = vm.root.domains()
    assert "None" in subprocess.run(["virsh", "domjobinfo", name], capture_output=True, text=True, check=True).stdout


def test_old_blocks_are_saved_on_the_fleecing_storage(vm: Booted) -> None:
    root = vm.root
    (root / "fast").mkdir()
    root.cli("pvesm", "add", "dir", "fast", "--path", root / "fast", "--content", "images", ok=True)
    with running(root, 100, "--fleecing", "enabled=1,storage=fast", *SLOW) as job:
        job.wait_for("started backup task")
        assert [path.name for path in (root / "fast/images/100").iterdir()] == ["vm-100-fleece-0.qcow2"]
        assert job.finish() == 0
    assert list((root / "fast/images").rglob("*.qcow2")) == []
    root.cli("pvesm", "remove", "fast", ok=True)


# -- guests of their own -----------------------------------------------------------------------------------------------


def test_a_full_storage_ends_the_backup_and_not_the_guest(vm: Booted) -> None:
    """What the guest overwrites has to be kept there too: without room for that it stops, until the job has gone."""
    root, small = vm.root, vm.root / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5M", "tmpfs", small], check=True)
    try:
        root.cli("pvesm", "add", "dir", "small", "--path", small, "--content", "backup", ok=True)
        vm.port.run("dd if=/dev/urandom of=/data/old bs=64k count=112 2>/dev/null; sync")
        with running(root, 100, "--storage", "small", "--compress", "zstd", "--bwlimit", 256) as job:
            job.wait_for("started backup task")
            vm.port.run("dd if=/dev/zero of=/data/old bs=64k count=112 conv=notrunc,fsync 2>/dev/null", timeout=100)
            assert job.finish() != 0
        assert "Backup of VM 100 failed" in job.said
        assert "resuming it without the backup job" in job.said
        assert status(root) == "status: running"
        vm.port.run("rm /data/old; sync")
        root.cli("pvesm", "remove", "small", ok=True)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_stop_mode_archives_a_guest_that_was_shut_down_and_it_comes_back(root: Root, vm_image: Path) -> None:
    """And, with the same guest, one that powers off in the middle of its backup."""
    root.cli(
        "qm", "create", 100, "--memory", 256, "--kvm", 0, "--serial0", "socket", "--scsihw", "virtio-scsi-pci",
        "--scsi0", f"local:0,import-from={vm_image}", "--boot", "order=scsi0", "--start", 1, ok=True,
    )  # fmt: skip
    with root.serial(100) as port:
        port.wait_booted()
        port.wait_ready()
        port.run("echo kept > /data/note && sync")
    said = root.cli("vzdump", 100, "--mode", "stop", "--stopwait", 2, "--compress", 0, timeout=180, ok=True).stderr
    order = ["stopping virtual guest", "starting backup via QMP", "resuming VM again after", "is online again after"]
    assert [said.find(text) for text in order] == sorted(said.find(text) for text in order)
    assert status(root) == "status: running"
    image = content(newest(root, 100), vm_image.stat().st_size)
    assert _is_clean(image, root.path)
    with root.serial(100) as port:
        port.wait_ready()
        assert port.run("cat /data/note") == "kept"
        with running(root, 100, *SLOW) as job:
            job.wait_for("started backup task")
            port.send("poweroff -f\n")
            assert job.finish() == 255
    assert "ERROR: Backup of VM 100 failed - VM 100 stopped while it was backed up\n" in job.said
    assert leftovers(root) == []
    assert "lock:" not in root.config(100).read_text()
    assert len(archives(root, 100)) == 1


def _is_clean(image: bytes, folder: Path) -> bool:
    """Whether the data partition in an image was unmounted: it is marked clean and needs no recovery."""
    partition = folder / "partition"
    start = image.find(b"pvedata\0") - 0x478  # the label in the superblock, 1 KiB behind the start
    partition.write_bytes(image[start:])
    done = subprocess.run(["dumpe2fs", "-h", partition], capture_output=True, text=True, check=True)
    return "needs_recovery" not in done.stdout


def test_a_guest_that_does_not_shut_down_goes_on_running(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    root.cli("qm", "start", 100, ok=True)
    done = root.cli("vzdump", 100, "--mode", "stop", "--stopwait", 0)
    assert done.status == 255
    assert "got timeout" in done.stderr
    assert status(root) == "status: running"
    assert leftovers(root) == []
    assert archives(root, 100) == []
    root.cli("qm", "stop", 100, ok=True)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_several_disks_of_every_format_come_back(root: Root, form: str) -> None:
    create(root, 100, "--scsi0", f"local:1,format={form}", "--virtio1", f"local:1,format={form},backup=0",
           "--sata2", "local:1,format=qcow2", "--ide2", "none,media=cdrom")  # fmt: skip
    for number, name in enumerate(sorted((root / "var/lib/vz/images/100").iterdir())):
        pattern = str(number + 1)
        subprocess.run(
            ["qemu-io", "-f", name.suffix[1:], "-c", f"write -q -P {pattern} 10M 3M", "-c",
             f"write -q -P {pattern} {(1 << 30) - 65536} 64k", name], check=True,
        )  # fmt: skip
    root.cli("qm", "start", 100, ok=True)
    root.cli("vzdump", 100, "--compress", "lzo", ok=True)
    root.cli("qm", "stop", 100, ok=True)
    root.cli("qmrestore", newest(root, 100), 200, ok=True)
    old, new = (root.config(vmid).read_text() for vmid in (100, 200))
    assert "#virtio1" in new
    for key in ("scsi0", "sata2"):
        pair = [re.search(rf"^{key}: local:([^,]+)", text, re.MULTILINE)[1] for text in (old, new)]
        paths = [root / "var/lib/vz/images" / name for name in pair]
        assert paths[0].suffix == paths[1].suffix
        assert subprocess.run(["qemu-img", "compare", "-q", *paths], check=False).returncode == 0
        assert paths[1].stat().st_blocks * 512 < 8 << 20


def test_a_template_or_a_machine_in_use_is_not_overwritten(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    root.cli("vzdump", 100, ok=True)
    root.cli("qm", "start", 100, ok=True)
    before = root.config(100).read_text()
    refused = root.cli("qmrestore", newest(root, 100), 100, "--force", 1)
    assert refused.status != 0
    assert "VM is running" in refused.stderr
    assert root.config(100).read_text() == before
    root.cli("qm", "stop", 100, ok=True)
    root.cli("qmrestore", newest(root, 100), 100, "--force", 1, "--start", 1, ok=True)
    wait_until("the restored guest runs", lambda: status(root) == "status: running")
    root.cli("qm", "stop", 100, ok=True)


def test_a_full_storage_keeps_the_old_machine(root: Root) -> None:
    """And where both have no room, but one has, the old disks go first, as is told."""
    create(root, 100, "--scsi0", "local:0.05,format=raw")
    image = disk(root)
    image.write_bytes(b"x" * image.stat().st_size)
    root.cli("vzdump", 100, ok=True)
    small = root / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", small], check=True)
    root.cli("pvesm", "add", "dir", "small", "--path", small, "--content", "images,backup", ok=True)
    failed = root.cli("qmrestore", newest(root, 100), 200, "--storage", "small")
    assert failed.status != 0
    assert "No space left" in failed.stderr or "space" in failed.stderr
    assert not root.config(200).exists()
    assert [path for path in (small / "images").rglob("*") if path.is_file()] == []
    full = root.cli("vzdump", 100, "--storage", "small")
    assert full.status == 255
    assert re.search(r"failed - cannot write archive 'small:backup/.*': No space left on device", full.stderr)
    assert leftovers(root) == []
    assert [path.suffix for path in (small / "dump").iterdir()] in ([".log"], [])
    subprocess.run(["mount", "-o", "remount,size=70m", small], check=True)
    root.cli("qmrestore", newest(root, 100), 200, "--storage", "small", ok=True)
    again = root.cli("qmrestore", newest(root, 100), 200, "--storage", "small", "--force", 1, ok=True)
    assert "WARN: no room for the old and the new disks at the same time" in again.stderr
    (restored,) = (small / "images/200").iterdir()
    assert restored.read_bytes() == image.read_bytes()


def test_two_jobs_at_once_wait_for_each_other(root: Root) -> None:
    create(root, 100, "--scsi0", "local:1")
    start = time.monotonic()
    with running(root, 100, "--script", _pausing(root)) as one:
        one.wait_for("Starting Backup")
        with running(root, 100) as other:
            other.wait_for("INFO: trying to get global lock - waiting...")
            assert one.finish() == 0
            assert other.finish() == 0
    assert "INFO: got global lock" in other.said
    assert time.monotonic() - start >= 1
    assert len(archives(root, 100)) == 2


def _pausing(root: Root) -> Path:
    script = root / "hook"
    script.write_text('#!/bin/sh\ntest "$1" != backup-start || sleep 1\n')
    script.chmod(0o755)
    return script
