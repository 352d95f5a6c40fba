"""The test bed itself: what it offers works, and it leaves nothing on the host."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox import cgroups, daemons, enter
from tests.sandbox.root import Root
from tests.sandbox.serial import Serial

DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>bed</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='unsafe'/><source file='{disk}'/>
      <target dev='vda' bus='virtio'/></disk>
    <interface type='bridge'><source bridge='vmbr0'/><model type='virtio'/></interface>
    <serial type='unix'><source mode='bind' path='{socket}'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
</domain>
"""
CONTAINER = """
lxc.rootfs.path = dir:{home}/101/rootfs
lxc.uts.name = ct
lxc.include = /usr/share/lxc/config/common.conf
lxc.include = /usr/share/lxc/config/userns.conf
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.apparmor.profile = unconfined
lxc.net.0.type = veth
lxc.net.0.link = vmbr0
lxc.net.0.name = eth0
lxc.net.0.flags = up
{limit}
"""
INTERFACES = "auto lo eth0\niface lo inet loopback\niface eth0 inet static\n address 10.99.0.101/24\n"


def out(*words: object, timeout: float = 60) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def reachable(address: str, timeout: float = 10) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        probe = subprocess.run(["busybox", "ping", "-c1", "-W1", address], capture_output=True, check=False)
        if probe.returncode == 0:
            return True
        time.sleep(0.05)
    return False


def sandbox(*command: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.sandbox.enter", "--no-libvirt", "--", *command]
    return subprocess.Popen(words, cwd=enter.REPOSITORY, stdout=subprocess.PIPE)


def gone(check: Callable[[], object], timeout: float = 10) -> bool:
    """Wait until `check` gives nothing any more."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not check():
            return True
        time.sleep(0.02)
    return False


def test_the_guest_image_boots_speaks_is_reachable_and_obeys_the_power_button(root: Root, vm_image: Path):
    disk = root / "disk.raw"
    shutil.copy(vm_image, disk)
    (root / "bed.xml").write_text(DOMAIN.format(disk=disk, socket=root / "serial"))
    out("virsh", "-c", daemons.URI, "create", root / "bed.xml")
    with Serial(root / "serial") as port:
        port.wait_booted(60)
        port.wait_ready(10)
        assert port.run("grep -c ' /data ext4 ' /proc/mounts") == "1"
        port.run("ip address add 10.99.0.100/24 dev eth0")
        assert reachable("10.99.0.100")
        assert port.run("false", check=False) == ""
        assert gone(
            lambda: (
                "return"
                not in subprocess.run(
                    ["virsh", "-c", daemons.URI, "qemu-agent-command", "bed", '{"execute":"guest-ping"}'],
                    capture_output=True,
                    text=True,
                    check=False,
                ).stdout
            )
        )
        out("virsh", "-c", daemons.URI, "shutdown", "bed", "--mode", "acpi")
        assert gone(root.domains)


def test_an_unprivileged_container_starts_with_a_memory_limit_and_an_address(root: Root, ct_template: Path):
    home = root / "var/lib/lxc"
    rootfs = home / "101/rootfs"
    rootfs.mkdir(parents=True)
    shutil.chown(rootfs, 100000, 100000)
    ids = ["lxc-usernsexec", "-m", "u:0:100000:65536", "-m", "g:0:100000:65536", "--"]
    out(*ids, "tar", "-C", rootfs, "-xpf", ct_template)
    (rootfs / "etc/network/interfaces").write_text(INTERFACES)
    v1 = Path("/sys/fs/cgroup/memory").is_dir()
    key = "lxc.cgroup.memory.limit_in_bytes" if v1 else "lxc.cgroup2.memory.max"
    limited = v1 or "memory" in Path("/sys/fs/cgroup/cgroup.subtree_control").read_text()
    limit = f"{key} = 268435456" if limited else ""
    (home / "101/config").write_text(CONTAINER.format(home=home, limit=limit))
    out("lxc-start", "-P", home, "-n", "101", "-l", "INFO", "-o", home / "log")
    assert reachable("10.99.0.101", 60)
    assert "VERSION_ID" in out("lxc-attach", "-P", home, "-n", "101", "--", "cat", "/etc/os-release")
    if limited:
        assert out("lxc-cgroup", "-P", home, "-n", "101", key.split(".", 2)[2]).strip() == "268435456"
    out("lxc-stop", "-P", home, "-n", "101", "-t", "20")
    assert root.containers() == []


def test_two_sandboxes_do_not_see_each_other_and_end_with_the_status_of_their_command():
    with sandbox(
        "sh", "-c", "ip link add only0 type dummy || ip link add only0 type bridge; ls /sys/class/net; exit 7"
    ) as done:
        names = done.communicate(timeout=60)[0].decode().split()
    assert {"lo", "vmbr0", "only0"} <= set(names)
    assert done.returncode == 7
    assert not Path("/sys/class/net/only0").exists()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_supervisor_takes_everything_with_it(sig: signal.Signals):
    with sandbox("sh", "-c", "mkdir /sys/fs/cgroup/*/inner; echo $TMPDIR; touch $TMPDIR/file; exec sleep 4711") as run:
        scratch = Path(run.stdout.readline().decode().strip())
        assert gone(lambda: not (scratch / "file").exists())
        run.send_signal(sig)
        run.wait(20)
    assert gone(lambda: subprocess.run(["pgrep", "-f", "sleep 471[1]"], capture_output=True, check=False).stdout)
    enter.sweep()  # what the next sandbox does; after TERM there is nothing to do
    assert not scratch.exists()
    left = [path for place in cgroups.hierarchies() for path in place.mountpoint.rglob(f"pvs-*-{run.pid}")]
    assert left == []


def test_libvirt_can_be_taken_away_and_comes_back(root: Root):
    with daemons.stopped():
        assert subprocess.run(["virsh", "-c", daemons.URI, "list"], capture_output=True, check=False).returncode != 0
    assert "Id" in out("virsh", "-c", daemons.URI, "list")


def test_a_root_is_emptied_when_it_is_closed():
    root = Root()
    tmpfs, image = root / "mnt", root / "file.img"
    tmpfs.mkdir()
    out("mount", "-t", "tmpfs", "none", tmpfs)
    image.write_bytes(bytes(1 << 20))
    out("losetup", "-f", image)
    out("ip", "link", "add", "vethX", "type", "veth", "peer", "name", "vethY")
    with subprocess.Popen(["sh", "-c", f"sleep 100; : {root.path}"]):
        assert set(root.running()) == {"mounts", "loops", "links", "processes"}
        root.close()
    assert root.running() == {}
    assert not root.path.exists()
