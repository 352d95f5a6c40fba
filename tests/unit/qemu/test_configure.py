"""What is filled in before options are stored, and rules that options must keep together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pvetools.guest.qemu import boot, configure, domain
from pvetools.guest.qemu.kind import QEMU
from pvetools.options.qemu import QemuOptions
from pvetools.system.errors import ParamErrors, Refused
from tests.unit.qemu.places import define, place


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))


def test_cards_without_address_get_one_each_and_the_others_keep_theirs() -> None:
    options = QemuOptions.check(
        {"net0": "virtio,bridge=vmbr0", "net1": "e1000=BC:24:11:00:00:01", "net2": "virtio,bridge=vmbr0"}
    )
    cards = configure.completed(options).net
    assert re.fullmatch("BC:24:11(:[0-9A-F]{2}){3}", cards[0].macaddr or "")
    assert cards[1].macaddr == "BC:24:11:00:00:01"
    assert cards[0].macaddr != cards[2].macaddr


def test_cdrom_becomes_ide2_with_its_medium() -> None:
    options = configure.completed(QemuOptions.check({"cdrom": "local:iso/a.iso"}))
    assert options.texts() == {"ide2": "local:iso/a.iso,media=cdrom"}
    with pytest.raises(ParamErrors, match="cdrom"):
        configure.completed(QemuOptions.check({"cdrom": "none", "ide2": "none"}))


def test_generation_id_1_asks_for_a_new_one() -> None:
    made = configure.completed(QemuOptions.check({"vmgenid": "1"})).vmgenid
    assert made is not None
    assert re.fullmatch("[0-9a-f-]{36}", made)
    assert configure.completed(QemuOptions.check({"vmgenid": "0"})).vmgenid == "0"


@pytest.mark.parametrize(
    ("given", "order"),
    [
        (
            {"scsi1": "local:1", "scsi0": "local:1", "ide2": "none,media=cdrom", "net1": "virtio"},
            "order=scsi0;ide2;net1",
        ),
        ({"virtio10": "local:1", "virtio9": "local:1"}, "order=virtio9"),
        ({"sata0": "local:1", "ide0": "local:1"}, "order=ide0"),
        ({"memory": "64"}, ""),
    ],
)
def test_a_new_machine_boots_from_its_first_disk_then_disc_then_card(given: dict[str, str], order: str) -> None:
    assert boot.default_order(QemuOptions.check(given).given) == order


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ({"memory": "512", "balloon": "512"}, set()),
        ({"memory": "512", "balloon": "513"}, {"balloon"}),
        ({"memory": "current=512", "balloon": "513"}, {"balloon"}),
        ({"balloon": "513"}, {"balloon"}),
        ({"cores": "2", "sockets": "2", "vcpus": "4"}, set()),
        ({"cores": "2", "sockets": "2", "vcpus": "5"}, {"vcpus"}),
        ({"smp": "3", "vcpus": "3"}, set()),
        ({"cores": "x", "vcpus": "3"}, {"vcpus"}),
    ],
)
def test_options_that_do_not_fit_together(section: dict[str, str], wrong: set[str]) -> None:
    assert set(QEMU.rules(section)) == wrong


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("net0: virtio,bridge=vmbr0", ["net0", "macaddr"]),
        ("net0: e1000=BC:24:11:00:00:01,bridge=vmbr0,mtu=1400", ["net0", "mtu"]),
        ("net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,mtu=9000", ["net0", "9000", "1500"]),
        ("net0: ne2k_isa=BC:24:11:00:00:01,bridge=vmbr0", ["ne2k_isa"]),
        ("scsihw: lsi53c810", ["lsi53c810", "virtio-scsi-pci"]),
        ("scsi0: local:100/a.raw,aio=native,cache=writeback", ["scsi0", "aio=native", "writeback"]),
        ("scsi0: local:100/a.raw,scsiblock=1", ["scsi0", "scsiblock"]),
        ("scsi0: local:0,import-from=/x", ["scsi0", "import-from"]),
        ("vga: qxl", ["qxl"]),
        ("vga: serial1\nserial0: socket", ["serial1"]),
        ("cpu: custom-mine", ["custom-mine"]),
        ("cpu: host\nkvm: 0", ["host", "kvm"]),
        ("cpu: kvm64,flags=+hv-evmcs", ["hv-evmcs", "ostype"]),
        ("agent: 1,type=isa", ["isa"]),
        ("watchdog: i6300esb,action=debug", ["debug"]),
        ("args: -name 'x", ["args"]),
        ("machine: virt", ["virt"]),
        ("arch: aarch64", ["aarch64"]),
        ("boot: order=usb0", ["usb0"]),
        ("numa: 1\nnuma0: cpus=0,memory=256", ["256", "512"]),
        ("numa: 1\nnuma1: cpus=0,memory=512", ["numa0"]),
        ("numa: 1\nnuma0: cpus=0-1,memory=512", ["2", "1"]),
        ("cores: 2\nvcpus: 3", ["vcpus"]),
        ("balloon: 1024", ["balloon"]),
    ],
)
def test_a_value_that_cannot_be_served_is_named_with_the_reason(lines: str, words: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        define(f"memory: 512\n{lines}\n")
    assert all(word in str(refused.value) for word in words)


def test_without_the_device_of_kvm_the_way_out_is_told() -> None:
    with pytest.raises(Refused, match=r"qm set 100 --kvm 0"):
        domain.define(QemuOptions.read({}), place(kvm=False))
    assert '<domain type="qemu"' in domain.define(QemuOptions.read({"kvm": "0"}), place(kvm=False)).xml


def test_texts_are_escaped_in_the_definition() -> None:
    xml = define('memory: 512\nargs: -device "a&b<c>" -x "q\'\\"z"\n').xml
    assert 'value="a&amp;b&lt;c&gt;"' in xml
    assert 'value="q\'&quot;z"' in xml


def test_a_thread_that_a_disk_cannot_have_is_a_warning() -> None:
    made = define("memory: 512\nscsi0: local:100/a.raw,iothread=1\n")
    assert len(made.warnings) == 1
    assert "scsi0" in made.warnings[0]
    assert "virtio-scsi-single" in made.warnings[0]
