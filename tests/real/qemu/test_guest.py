"""A machine whose system is up: serial console, orderly shutdown, reboot, what the guest sees."""

from __future__ import annotations

import os
import pty
import select
import time
from collections.abc import Callable
from pathlib import Path

from tests.real.conftest import Booted
from tests.real.qemu.machine import config, status, wait_until
from tests.sandbox.root import Root
from tests.sandbox.serial import Serial


def test_the_guest_sees_the_machine_that_was_described(booted_vm: Booted) -> None:
    run = booted_vm.port.run
    described = config(booted_vm.root)
    uuid = str(described["smbios1"]).removeprefix("uuid=")
    assert run("cat /sys/class/dmi/id/product_uuid").lower() == uuid
    slot = run("readlink /sys/class/net/eth0/device")
    assert "0000:00:12.0" in run("readlink -f /sys/class/net/eth0/device"), slot
    assert run("cat /sys/class/net/eth0/address").upper() in str(described["net0"])
    assert "0000:00:05.0" in run("readlink -f /sys/block/sda")
    assert int(run("cat /sys/block/sda/size")) * 512 == 64 << 20
    assert int(run("grep -c ^processor /proc/cpuinfo")) == 1


def test_the_agent_answers_through_the_hypervisor(booted_vm: Booted) -> None:
    (name,) = booted_vm.root.domains()
    wait_until("the agent answers", lambda: "return" in _agent(name), 30)


def _agent(name: str) -> str:
    from subprocess import run

    done = run(
        ["virsh", "qemu-agent-command", name, '{"execute":"guest-ping"}', "--timeout", "3"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout


def test_a_shut_down_guest_starts_anew_with_its_pending_changes(
    root: Root, vm_image: Path, serial: Callable[..., Serial]
) -> None:
    root.cli(
        "qm", "create", 100, "--memory", 256, "--kvm", 0, "--serial0", "socket", "--scsihw", "virtio-scsi-pci",
        "--scsi0", f"local:0,import-from={vm_image}", "--boot", "order=scsi0", "--start", ok=True,
    )  # fmt: skip
    with root.serial(100) as port:
        port.wait_booted()
        port.wait_ready()
        port.run("echo kept > /data/note && sync")
    root.cli("qm", "set", 100, "--memory", 320, ok=True)
    root.cli("qm", "reboot", 100, "--timeout", 60, ok=True)
    assert config(root, 100, "--current")["memory"] == "320"
    port = serial(100)
    port.wait_ready()
    assert port.run("cat /data/note") == "kept"
    assert int(port.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) > 270_000
    _leave_by_itself(root, port)


def _leave_by_itself(root: Root, port: Serial) -> None:
    """A guest that ends itself leaves nothing behind."""
    port.send("poweroff -f\n")
    root.cli("qm", "wait", 100, "--timeout", 60, ok=True)
    assert status(root) == "status: stopped"
    wait_until("libvirt has forgotten the domain", lambda: root.domains() == [])
    assert root.running() == {}


def test_the_terminal_talks_to_the_serial_port(booted_vm: Booted) -> None:
    """In a terminal of its own, left by the escape key; the port is free for others afterwards."""
    booted_vm.port.close()
    child, terminal = pty.fork()
    if not child:
        argv = booted_vm.root.argv("qm", "terminal", 100)
        os.execvpe(argv[0], argv, booted_vm.root.environment())
    try:
        said = _read_until(terminal, b"press Ctrl+O to exit")
        os.write(terminal, b'\necho "from the "terminal\n')
        said = _read_until(terminal, b"from the terminal")
        os.write(terminal, b"\x0f")
        wait_until("the terminal has ended", lambda: os.waitpid(child, os.WNOHANG)[0] == child)
        assert b"from the terminal" in said
    finally:
        os.close(terminal)
        booted_vm.port.__init__(booted_vm.port.path)  # type: ignore[misc]
    booted_vm.port.wait_ready()


def _read_until(fd: int, word: bytes, timeout: float = 60.0) -> bytes:
    said, deadline = b"", time.monotonic() + timeout
    while word not in said:
        assert time.monotonic() < deadline, f"{word!r} did not come: {said!r}"
        if select.select([fd], [], [], 0.5)[0]:
            said += os.read(fd, 4096)
    return said
