"""Wrong input: a clear sentence, a status other than 0, nothing changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.real.qemu.machine import create, snapshot_of_files
from tests.sandbox.root import Root

NIC = "virtio,bridge=vmbr0"
# what is said, and words of the answer
CREATE = {
    "an unknown option": (["101", "--scsi99", "local:1"], ["scsi99"]),
    "several wrong options": (
        [
            "101",
            "--memory",
            "x",
            "--cores",
            "0",
            "--net0",
            "virtio,bridge=vmbr0,tag=5000",
            "--scsi0",
            "local:1,discard=x",
        ],
        ["memory", "cores", "net0.tag", "scsi0.discard"],
    ),
    "unknown and wrong options together": (["101", "--bogus", "1", "--cores", "0"], ["bogus", "cores"]),
    "a malformed property string": (["101", "--net0", "virtio,bridge"], ["net0"]),
    "a malformed size": (["101", "--scsi0", "local:abc"], ["scsi0", "abc"]),
    "a disk without size": (["101", "--scsi0", "local:0"], ["scsi0", "size"]),
    "a malformed MAC address": (["101", "--net0", "virtio=01:23,bridge=vmbr0"], ["net0.macaddr"]),
    "a multicast MAC address": (["101", "--net0", "virtio=01:00:5e:00:00:01,bridge=vmbr0"], ["net0.macaddr"]),
    "a malformed volume id": (["101", "--scsi0", "nonsense"], ["scsi0", "nonsense"]),
    "a volume name that leads out": (["101", "--scsi0", "local:../../etc/shadow"], ["scsi0", ".."]),
    "an id in use": (["100"], ["100", "already exists"]),
    "an id that is too small": (["99"], ["vmid"]),
    "an id that is no number": (["abc"], ["vmid"]),
    "an unknown storage": (["101", "--scsi0", "nowhere:1"], ["nowhere"]),
    "a storage without images": (["101", "--scsi0", "isos:1"], ["isos", "images"]),
    "a missing ISO image": (["101", "--ide2", "local:iso/gone.iso,media=cdrom"], ["gone.iso"]),
    "an ISO image as a disk": (["101", "--scsi0", "local:iso/small.iso"], ["iso", "media=cdrom"]),
    "a missing image to import": (["101", "--scsi0", "local:0,import-from=/no/such.qcow2"], ["/no/such.qcow2"]),
    "a damaged image to import": (["101", "--scsi0", "local:0,import-from=BROKEN"], ["qcow2"]),
    "an import without new volume": (["101", "--scsi0", "local:100/vm-100-disk-0.raw,import-from=/x"], ["import-from"]),
    "a missing file": (["101", "--scsi0", "/no/such/disk.raw"], ["/no/such/disk.raw"]),
    "a boot device that is not there": (["101", "--boot", "order=scsi5"], ["scsi5"]),
    "a balloon larger than the memory": (["101", "--memory", "512", "--balloon", "1024"], ["balloon"]),
    "more processors than there are": (["101", "--vcpus", "3"], ["vcpus"]),
    "cdrom beside ide2": (["101", "--cdrom", "none", "--ide2", "none"], ["cdrom", "ide2"]),
    "cloud-init": (["101", "--ide2", "local:cloudinit"], ["cloud-init"]),
    "a full storage": (["101", "--scsi0", "local:999999999"], ["scsi0", "local"]),
    "a start without effect": (["101", "--pool", "x"], ["pool"]),
    "force without archive": (["101", "--force", "1"], ["force", "archive"]),
}
OTHER = {
    "no such machine": (["start", "999"], ["999"]),
    "an unknown command": (["strat", "100"], ["strat"]),
    "an option of another command": (["start", "100", "--cores", "2"], ["cores"]),
    "a missing argument": (["start"], ["not enough arguments"]),
    "a deletion of an unknown option": (["set", "100", "--delete", "nonsense"], ["nonsense"]),
    "a deletion of what is set": (["set", "100", "--cores", "2", "--delete", "cores"], ["cores"]),
    "a digest of other content": (["set", "100", "--cores", "2", "--digest", "0" * 40], ["modified"]),
    "a digest of something else": (["set", "100", "--cores", "2", "--digest", "xyz"], ["modified configuration"]),
    "a digest that is none": (["set", "100", "--cores", "2", "--digest", "x" * 65], ["digest"]),
    "a disk that shrinks": (["disk", "resize", "100", "scsi0", "1M"], ["shrink"]),
    "a resize of nothing": (["disk", "resize", "100", "scsi9", "+1G"], ["scsi9"]),
    "a malformed new size": (["disk", "resize", "100", "scsi0", "1X"], ["size"]),
    "a resize of a CD-ROM": (["disk", "resize", "100", "ide2", "+1G"], ["ide2"]),
    "an unlink of something else": (["disk", "unlink", "100", "--idlist", "net0"], ["net0"]),
    "an import to nowhere": (["disk", "import", "100", "/etc/hostname", "nowhere"], ["nowhere"]),
    "an import of nothing": (["disk", "import", "100", "/no/such", "local"], ["/no/such"]),
    "a snapshot that is not there": (["config", "100", "--snapshot", "snap"], ["snap"]),
    "a terminal without serial port": (["terminal", "100"], ["serial"]),
    "a start option without effect": (["start", "100", "--stateuri", "tcp:x"], ["stateuri"]),
    "a suspend to disk": (["suspend", "100", "--todisk", "1"], ["todisk"]),
}
START = {
    "a missing bridge": ("net0: virtio=BC:24:11:00:00:01,bridge=nobridge", ["net0", "nobridge", "vmbr0"]),
    "a link that is no bridge": ("net0: virtio=BC:24:11:00:00:01,bridge=lo", ["net0", "lo"]),
    "a missing disk": ("scsi0: local:100/vm-100-disk-7.raw", ["scsi0", "vm-100-disk-7.raw"]),
    "a storage without images": ("scsi0: isos:100/vm-100-disk-0.raw", ["scsi0", "isos", "images"]),
    "an unknown storage": ("scsi0: nowhere:100/vm-100-disk-0.raw", ["scsi0", "nowhere"]),
    "a value that nobody understands": ("cores: many", ["cores"]),
    "an option without support": ("usb0: host=1-2\nhostpci0: 01:00.0", ["usb0", "hostpci0"]),
    "a NIC option without support": ("net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,rate=5", ["net0.rate"]),
    "a machine of a newer QEMU": ("machine: pc-i440fx-99.9", ["pc-i440fx-99.9", "newer"]),
    "an unknown processor": ("cpu: Pentium9", ["Pentium9"]),
    "a template": ("template: 1", ["template"]),
    "a lock": ("lock: backup", ["locked (backup)", "qm unlock 100"]),
    "a hook script that is not there": ("hookscript: local:snippets/gone", ["local:snippets/gone"]),
}


@pytest.fixture
def prepared(root: Root) -> Root:
    """Machine 100 with a disk, a storage for ISO images only, a damaged image."""
    create(root, 100, "--scsi0", "local:0.002", "--ide2", "none,media=cdrom")
    (root / "etc/pve/storage.cfg").write_text(
        f"dir: local\n\tpath {root / 'var/lib/vz'}\n\tcontent images,iso,snippets\n\n"
        f"dir: isos\n\tpath {root / 'var/lib/vz'}\n\tcontent iso\n"
    )
    (root / "var/lib/vz/template/iso/small.iso").write_bytes(bytes(4096))
    (root / "broken.qcow2").write_bytes(b"QFI\xfb" + bytes(30))
    return root


def refused(root: Root, words: list[str], expected: list[str]) -> None:
    before = snapshot_of_files(root)
    said = root.cli("qm", *words)
    assert said.status not in (0, 1), str(said)
    assert said.stdout == ""
    assert "Traceback" not in said.stderr
    assert "internal error" not in said.stderr
    assert all(word in said.stderr for word in expected), str(said)
    assert snapshot_of_files(root) == before


def test_create(prepared: Root) -> None:
    for words, expected in CREATE.values():
        refused(prepared, ["create", *(w.replace("BROKEN", str(prepared / "broken.qcow2")) for w in words)], expected)


def test_other_commands(prepared: Root) -> None:
    for words, expected in OTHER.values():
        refused(prepared, words, expected)


@pytest.mark.parametrize("case", START)
def test_start(prepared: Root, case: str) -> None:
    lines, expected = START[case]
    prepared.config(100).write_text(f"kvm: 0\nmemory: 64\n{lines}\n")
    refused(prepared, ["start", "100"], expected)
    assert prepared.running() == {}


def test_a_firewall_that_is_in_force_keeps_a_machine_from_starting(prepared: Root) -> None:
    prepared.cli("qm", "set", 100, "--net0", f"{NIC},firewall=1", ok=True)
    (prepared / "etc/pve/firewall/cluster.fw").write_text("[OPTIONS]\nenable: 1\n")
    (prepared / "etc/pve/firewall/100.fw").write_text("[OPTIONS]\nenable: 1\n")
    refused(prepared, ["start", "100"], ["net0", "firewall"])
    (prepared / "etc/pve/firewall/100.fw").write_text("[OPTIONS]\nenable: 0\n")
    prepared.cli("qm", "start", 100, ok=True)


def test_without_libvirt_the_answer_says_how_to_start_it(prepared: Root, no_libvirt: None) -> None:
    for command in ("start", "showcmd"):
        refused(prepared, [command, "100"], ["libvirt", "systemctl start"])
    assert prepared.cli("qm", "list", ok=True).stdout
    assert prepared.cli("qm", "status", 100, ok=True).stdout == "status: stopped\n"
    prepared.cli("qm", "set", 100, "--cores", 2, ok=True)


def test_without_kvm_a_machine_says_how_to_run_it_slowly(prepared: Root, tmp_path: Path) -> None:
    prepared.cli("qm", "set", 100, "--delete", "kvm", ok=True)
    device = Path("/dev/kvm")
    if not device.exists():
        refused(prepared, ["start", "100"], ["kvm", "/dev/kvm", "--kvm 0"])
        return
    argv = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs none /dev && exec "$@"',
        "sh",
        *prepared.argv("qm", "start", 100),
    ]
    said = subprocess.run(argv, env=prepared.environment(), capture_output=True, text=True, check=False)
    assert said.returncode != 0
    assert "--kvm 0" in said.stderr


def test_two_commands_at_once_on_one_machine_are_serialised(prepared: Root) -> None:
    running = [prepared.spawn("qm", "set", "100", "--description", f"number {n}") for n in range(4)]
    assert [process.wait(30) for process in running] == [0, 0, 0, 0]
    assert "number" in prepared.config(100).read_text()
