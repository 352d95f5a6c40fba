"""Guests on every kind of storage: made, run, grown, saved, restored elsewhere, destroyed, none of their bytes lost."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pvetools.guest.lxc import runtime
from pvetools.guest.qemu import hypervisor
from pvetools.storage import blockdev, volumes
from pvetools.system import paths
from pvetools.system.errors import Refused
from tests.real.storage_vm import writer
from tests.real.storage_vm.beds import BEDS, STORAGE, disk, sh
from tests.real.storage_vm.calls import call, refused
from tests.sandbox import daemons
from tests.sandbox.serial import Serial

ASSETS = Path("/srv/assets")
MIB = 1 << 20
SMALL = {"memory": 64, "kvm": 0, "scsihw": "virtio-scsi-pci", "boot": "order=scsi0", "serial0": "socket", "vga": "none"}
BACKENDS = [name for name in ("dir", "nfs4", "cifs", "btrfs", "lvm", "lvmchain", "lvmthin", "zfspool", "zfs", "rbd")
            if name in BEDS]  # fmt: skip
QCOW2 = ("dir", "nfs4", "cifs", "lvmchain")  # their VMs are tried with this format


@pytest.fixture(scope="module")
def guest_assets() -> Path:
    """What guests are made of is carried in for tests with this fixture."""
    if not ASSETS.is_dir():
        pytest.fail(f"{ASSETS} was not carried in")
    return ASSETS


@pytest.fixture(scope="module")
def node(guest_assets: Path) -> Iterator[Path]:
    """A PVETOOLS_ROOT with a storage `local`, and libvirt at work."""
    root = Path("/srv/guests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PVETOOLS_ROOT", str(root))
        paths.ensure_tree()
        root.chmod(0o755)  # unprivileged containers walk through it
        cache = paths.local_storage() / "template/cache"
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copy(template(), cache)
        for name in ("subuid", "subgid"):
            Path("/etc", name).write_text("root:100000:65536\n")
        daemons.configure()
        daemons.start()
        yield root
        daemons.stop()
    shutil.rmtree(root, ignore_errors=True)


def template() -> Path:
    return next(ASSETS.glob("busybox-*.tar.zst"))


@pytest.fixture(scope="module")
def image(node: Path) -> Path:
    """The disk of a VM that writes."""
    return writer.image(node / "writer.raw")


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, node: Path) -> Iterator[str]:
    """A storage of every kind; nothing is left on it. Gives the name of its bed."""
    with storages(request.param):
        yield request.param


@contextlib.contextmanager
def storages(*names: str) -> Iterator[None]:
    """The storage `store` of one kind, or storages of several kinds by the names of their beds."""
    with contextlib.ExitStack() as beds:
        sections = []
        for name in names:
            bed = beds.enter_context(BEDS[name]())
            ident = STORAGE if len(names) == 1 else name
            sections.append(bed.section.replace(f": {STORAGE}\n", f": {ident}\n", 1) + f"\tcontent {bed.content}\n")
        paths.storage_config().write_text("\n".join(sections))
        try:
            yield
            left = {name: volumes.list_volumes(STORAGE if len(names) == 1 else name) for name in names}
            assert not any(left.values()), left
        finally:
            for kind, vmid in (("qemu", 100), ("qemu", 102), ("lxc", 101), ("lxc", 103)):
                destroy(kind, vmid)
            paths.storage_config().unlink()


def destroy(kind: str, vmid: int) -> None:
    """Get rid of what a failed test has left."""
    if paths.guest_config(kind, vmid).exists():
        with contextlib.suppress(Exception):
            call("create", f"/{kind}/{vmid}/status/stop")
        with contextlib.suppress(Exception):
            call("delete", f"/{kind}/{vmid}")


def until(what: str, check: Callable[[], object], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:.0f} s"
        time.sleep(0.1)


def archive(vmid: int, **options: object) -> str:
    """Back up a guest to `local`; gives the archive."""
    before = {found.volid for found in volumes.list_volumes("local", ["backup"])}
    call("create", "/vzdump", vmid=vmid, storage="local", compress="zstd", **options)
    (made,) = {found.volid for found in volumes.list_volumes("local", ["backup"])} - before
    return made


def options_of(kind: str, vmid: int) -> dict[str, str]:
    return {key: str(value) for key, value in call("get", f"/{kind}/{vmid}/config").items()}


def volume_of(kind: str, vmid: int, key: str) -> str:
    return options_of(kind, vmid)[key].partition(",")[0]


# Containers.


def inside(vmid: int, command: str) -> str:
    """Run a shell command in a container."""
    return sh(f"lxc-attach -P {paths.lxc_dir()} -n {vmid} -- /bin/sh -c '{command}'")


def size_inside(vmid: int) -> int:
    """Bytes of a running container's root file system; to run a program in there takes seconds."""
    found = os.statvfs(f"/proc/{runtime.init_pid(vmid)}/root")
    whole = found.f_blocks * found.f_frsize
    return min(whole, volumes.info(volume_of("lxc", vmid, "rootfs")).size)  # who has a quota of btrfs sees all of it


FILL = (
    "dd if=/dev/urandom of=/root/data bs=64k count=40 2>/dev/null; ln -s data /root/link; chown 33:44 /root/data; sync"
)
LOOK = "cd /root; sha256sum data; readlink link; stat -c %u:%g:%a data; sha256sum /bin/busybox"


def make_container(storage: str) -> str:
    """Container 101, running, with something in it; gives what it holds."""
    call("create", "/lxc", vmid=101, ostemplate=f"local:vztmpl/{template().name}", rootfs=f"{storage}:1", memory=64,
         unprivileged=1, hostname="ct")  # fmt: skip
    call("create", "/lxc/101/status/start")
    return inside(101, f"{FILL}; {LOOK}")


def test_a_container_lives_on_every_storage(store: str) -> None:
    if "rootdir" not in volumes.get(STORAGE).content:
        pytest.skip("not for containers")
    holds = make_container(STORAGE)
    volid = volume_of("lxc", 101, "rootfs")
    assert volid.startswith(f"{STORAGE}:")
    assert call("get", "/lxc/101/status/current")["status"] == "running"
    with pytest.raises(Refused, match="in use"):
        volumes.free(volid)
    before = size_inside(101)
    if volumes.can(volid, "online_resize"):
        call("set", "/lxc/101/resize", disk="rootfs", size="+128M")
        assert size_inside(101) > before + 100 * MIB
    else:
        assert "is running" in refused("set", "/lxc/101/resize", disk="rootfs", size="+128M")
    call("create", "/lxc/101/status/stop")
    call("set", "/lxc/101/resize", disk="rootfs", size="+128M")
    call("create", "/lxc/101/status/start")
    assert size_inside(101) > before + 100 * MIB
    assert inside(101, LOOK) == holds
    call("create", "/lxc/101/status/stop")

    saved = archive(101, mode="stop")
    call("delete", "/lxc/101")
    assert not volumes.exists(volid)
    call("create", "/lxc", vmid=103, ostemplate=saved, restore=1, storage="local", start=1)
    assert inside(103, LOOK) == holds
    call("create", "/lxc/103/status/stop")
    call("delete", "/lxc/103")
    volumes.free(saved)


# Virtual machines.


def content(volid: str) -> bytes:
    """All bytes of a volume that nobody uses."""
    target = Path("/var/tmp/content.raw")
    found = volumes.source(volid)
    sh(f"qemu-img convert -f {found.format} -O raw '{found.image}' {target}", timeout=200)
    try:
        return target.read_bytes()
    finally:
        target.unlink()


def digest(volid: str) -> str:
    return hashlib.sha256(content(volid)).hexdigest()


def format_for(bed: str) -> str:
    return ",format=qcow2" if bed in QCOW2 else ""


def state(vmid: int = 100) -> str:
    return str(call("get", f"/qemu/{vmid}/status/current").get("qmpstatus"))


@contextlib.contextmanager
def console(vmid: int = 100) -> Iterator[Serial]:
    """The serial port of a VM that runs."""
    (place,) = paths.run_dir().rglob(f"{vmid}.serial0*")
    with Serial(place) as port:
        yield port


def written(port: Serial, more: int, timeout: float = 200) -> int:
    """Wait until the VM has written some more sectors; gives how many it has reported in all."""
    goal = port.log.count(".") + more
    deadline = time.monotonic() + timeout
    while port.log.count(".") < goal:
        assert time.monotonic() < deadline, f"{port.log.count('.')} sectors, {port.log[-200:]!r}"
        port._read(1)
    return port.log.count(".")


def test_a_virtual_machine_lives_on_every_storage(store: str, image: Path) -> None:
    form = format_for(store)
    disks = {"scsi0": f"{STORAGE}:0,import-from={image}{form}", "scsi1": f"{STORAGE}:1,backup=0{form}"}
    call("create", "/qemu", vmid=100, **SMALL, **disks)
    volid, empty = volume_of("qemu", 100, "scsi0"), volume_of("qemu", 100, "scsi1")
    assert digest(volid) == hashlib.sha256(image.read_bytes()).hexdigest()
    call("create", "/qemu/100/status/start")
    with console() as port:
        written(port, 20)
        with pytest.raises(Refused, match="in use"):
            volumes.free(volid)
        call("set", "/qemu/100/resize", disk="scsi1", size="+256M")
        assert largest_disk() == 1280 * MIB
        place = volumes.source(empty).path
        assert not blockdev.is_device(place) or blockdev.size(place) >= 1280 * MIB
        saved = archive(100, mode="snapshot")
        count = written(port, 20)
    call("create", "/qemu/100/status/stop")
    data = content(volid)
    assert writer.numbers(data) >= count - 1
    assert data[writer.DATA :] == image.read_bytes()[writer.DATA :]
    assert volumes.info(empty).size == 1280 * MIB

    call("create", "/qemu", vmid=102, archive=saved, storage="local")
    restored = content(volume_of("qemu", 102, "scsi0"))
    assert 20 <= writer.numbers(restored) <= writer.numbers(data)
    assert restored[writer.DATA :] == data[writer.DATA :]
    volumes.free(saved)
    for vmid in (102, 100):
        call("delete", f"/qemu/{vmid}")
    assert not volumes.exists(volid)


def largest_disk() -> int:
    """Size of the largest disk as QEMU has it."""
    disks = [row["inserted"] for row in hypervisor.qmp(100, "query-block") if row.get("inserted")]
    return max(int(found["image"]["virtual-size"]) for found in disks)


# Across storages.


# qcow2 on dir -> lvmthin -> zfspool -> rbd, where it is there -> dir; each step for itself, the chain takes too long
MOVES = [*pairwise([*(name for name in ("dir", "lvmthin", "zfspool", "rbd") if name in BEDS), "dir"])]


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_a_virtual_machine_moves_to_another_storage_by_a_backup(
    node: Path, image: Path, before: str, after: str
) -> None:
    with storages(before, after):
        call("create", "/qemu", vmid=100, **SMALL, scsi0=f"{before}:0,import-from={image}{format_for(before)}")
        holds = digest(volume_of("qemu", 100, "scsi0"))
        assert holds == hashlib.sha256(image.read_bytes()).hexdigest()
        saved = archive(100, mode="stop")
        call("delete", "/qemu/100")
        call("create", "/qemu", vmid=100, archive=saved, storage=after)
        volid = volume_of("qemu", 100, "scsi0")
        assert volid.startswith(f"{after}:")
        assert digest(volid) == holds
        volumes.free(saved)
        call("delete", "/qemu/100")


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_a_container_moves_to_another_storage_by_a_backup(node: Path, before: str, after: str) -> None:
    with storages(before, after):
        tree = make_container(before)
        call("create", "/lxc/101/status/stop")
        saved = archive(101, mode="stop")
        call("delete", "/lxc/101")
        call("create", "/lxc", vmid=101, ostemplate=saved, restore=1, storage=after, start=1)
        assert volume_of("lxc", 101, "rootfs").startswith(f"{after}:")
        assert inside(101, LOOK) == tree
        call("create", "/lxc/101/status/stop")
        volumes.free(saved)
        call("delete", "/lxc/101")


# When the storage is gone.


@pytest.fixture
def flaky(node: Path) -> Iterator[Callable[[str], None]]:
    """A volume group on a disk that can be made to fail: `flaky("error")`, `flaky("linear")`."""
    device = os.path.realpath(disk(5))
    hidden = 2048  # sectors: LVM would find the group on the disk itself as well
    sectors = int(sh(f"blockdev --getsz {device}")) - hidden
    tables = {"linear": f"0 {sectors} linear {device} {hidden}", "error": f"0 {sectors} error"}

    def turn(kind: str) -> None:
        sh("dmsetup suspend --noflush --nolockfs flaky")
        sh(f"dmsetup load flaky --table '{tables[kind]}'; dmsetup resume flaky")

    sh(f"dmsetup create flaky --table '{tables['linear']}'; udevadm settle; vgcreate -q vgflaky /dev/mapper/flaky")
    paths.storage_config().write_text(f"lvm: {STORAGE}\n\tvgname vgflaky\n\tcontent images\n")
    try:
        yield turn
    finally:
        turn("linear")
        destroy("qemu", 100)
        sh("vgremove -qfy vgflaky; dmsetup remove --retry flaky")
        paths.storage_config().unlink()


def test_a_guest_waits_for_a_storage_that_is_gone(flaky: Callable[[str], None], image: Path) -> None:
    call("create", "/qemu", vmid=100, **SMALL, scsi0=f"{STORAGE}:0,import-from={image}")
    volid = volume_of("qemu", 100, "scsi0")
    call("create", "/qemu/100/status/start")
    with console() as port:
        written(port, 20)
        flaky("error")
        until("the guest is paused", lambda: state() == "io-error", 60)
        assert call("get", "/qemu/100/status/current")["status"] == "running"
        port._read(0.5)
        there = port.log.count(".")
        call("create", "/qemu/100/status/resume")  # the storage is still gone
        until("the guest is paused again", lambda: state() == "io-error", 60)
        port._read(0.5)
        assert port.log.count(".") == there
        assert "is paused" in refused("create", "/qemu/100/status/shutdown", timeout=1)

        flaky("linear")
        call("create", "/qemu/100/status/resume")
        count = written(port, 20)
        assert state() == "running"
        assert "E" not in port.log[port.log.index(".") :], "the guest was told of an error"
    call("create", "/qemu/100/status/stop")
    data = content(volid)
    assert writer.numbers(data) >= count - 1
    assert data[writer.DATA :] == image.read_bytes()[writer.DATA :]
    call("delete", "/qemu/100")


def test_a_guest_that_waits_for_its_storage_can_be_stopped(flaky: Callable[[str], None], image: Path) -> None:
    call("create", "/qemu", vmid=100, **SMALL, scsi0=f"{STORAGE}:0,import-from={image}")
    call("create", "/qemu/100/status/start")
    with console() as port:
        written(port, 5)
    flaky("error")
    until("the guest is paused", lambda: state() == "io-error", 60)
    call("create", "/qemu/100/status/stop")
    assert call("get", "/qemu/100/status/current")["status"] == "stopped"


# A real system.


@pytest.mark.timeout(410)  # emulation in emulation
def test_linux_boots_from_a_thin_volume_and_keeps_its_data(node: Path) -> None:
    source = next(ASSETS.glob("vm-*.raw"))
    with storages("lvmthin"):
        call("create", "/qemu", vmid=100, **{**SMALL, "memory": 160}, scsi0=f"{STORAGE}:0,import-from={source}")
        call("create", "/qemu/100/status/start")
        with console() as port:
            port.wait_booted(330)
            port.wait_ready(60)
            port.run("echo kept > /data/file; sync", 60)
        call("create", "/qemu/100/status/stop")
        device = volumes.source(volume_of("qemu", 100, "scsi0")).path
        sh(f"mkdir -p /mnt/look; mount -o ro,offset={32 << 20} {device} /mnt/look")
        try:
            assert Path("/mnt/look/file").read_text() == "kept\n"
        finally:
            sh("umount /mnt/look")
        call("delete", "/qemu/100")
