"""Fixtures of the tests that drive real libvirt, QEMU and LXC."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sandbox import cache, daemons, image, template
from tests.sandbox.root import Result, Root, fresh
from tests.sandbox.serial import Serial

HERE = Path(__file__).parent
MISSED = ["TimedOut", "TimeoutExpired", r"(within|after) \d+ s\b"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Guests under emulation miss a deadline on a busy machine now and then: these get a second try, shown as R.

    Nothing else is tried again: a failure that comes and goes is a fault to be found.
    """
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=MISSED))


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Root]:
    """A fresh PVETOOLS_ROOT; afterwards every guest, process, mount and link of it is gone."""
    with fresh() as made:
        monkeypatch.setenv("PVETOOLS_ROOT", str(made.path))
        yield made


@pytest.fixture
def cli(root: Root) -> Callable[..., Result]:
    """Run a tool on `root` as a process: `cli("qm", "list")`; `ok=True` asserts status 0."""
    return root.cli


@pytest.fixture
def serial(root: Root) -> Iterator[Callable[..., Serial]]:
    """Connect to a VM's serial port: `serial(100)`; closed at the end of the test."""
    opened: list[Serial] = []

    def connect(vmid: int, index: int = 0, timeout: float = 60.0) -> Serial:
        port = root.serial(vmid, index, timeout)
        opened.append(port)
        return port

    yield connect
    for port in opened:
        port.close()


@pytest.fixture
def no_libvirt() -> Iterator[None]:
    """libvirt's daemon is down during the test."""
    with daemons.stopped():
        yield


def _asset(make: Callable[[], Path]) -> Path:
    try:
        return make()
    except (cache.NotAvailable, RuntimeError) as error:
        pytest.skip(f"asset not there: {error}; run python -m tests.sandbox.assets")


@pytest.fixture(scope="session")
def vm_image() -> Path:
    """A bootable raw image (virtio and IDE drivers), shared: copy or import it, never write to it."""
    return _asset(image.newest)


@pytest.fixture(scope="session")
def vm_image_generic() -> Path:
    """Like `vm_image`, with drivers for LSI, SATA, e1000 and others; boots in twice the time."""
    return _asset(lambda: image.newest("generic"))


@pytest.fixture(scope="session")
def ct_template() -> Path:
    """A template of this release's minimal root with sysvinit, `debian-12-minbase_..._amd64.tar.zst`."""
    return _asset(template.debian)


@pytest.fixture(scope="session")
def ct_template_small() -> Path:
    """A 1 MB busybox template for tests that make many containers."""
    return _asset(template.small)


@pytest.fixture(scope="session")
def ct_template_packed() -> Callable[[str], Path]:
    """The template in another compression: `ct_template_packed("xz")` ("gz", "bz2", "lzo", "")."""
    return lambda suffix: _asset(lambda: template.debian(suffix))


@dataclass(frozen=True)
class Booted:
    """A running VM that several tests share: look at it and write to /data, but leave it running as it is."""

    root: Root
    vmid: int
    port: Serial


@pytest.fixture(scope="session")
def booted_vm(vm_image: Path) -> Iterator[Booted]:
    """VM 100 "shared" on a root of its own: one virtio-scsi disk, a NIC on vmbr0, guest agent; user land is up."""
    with fresh() as made:
        made.cli(
            "qm", "create", 100, "--name", "shared", "--memory", 256, "--scsihw", "virtio-scsi-pci",
            "--boot", "order=scsi0", "--scsi0", f"local:0,import-from={vm_image}",
            "--net0", "virtio,bridge=vmbr0", "--serial0", "socket", "--agent", 1, "--kvm", 0, ok=True,
        )  # fmt: skip
        made.cli("qm", "start", 100, ok=True)
        with made.serial(100) as port:
            port.wait_booted()
            port.wait_ready()
            yield Booted(made, 100, port)


@pytest.fixture
def local_template(root: Root, ct_template_small: Path) -> str:
    """The small template on storage `local` of `root`; returns its volume id."""
    target = root / "var/lib/vz/template/cache" / ct_template_small.name
    shutil.copy(ct_template_small, target)
    return f"local:vztmpl/{target.name}"
