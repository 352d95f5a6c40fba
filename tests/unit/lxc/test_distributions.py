"""Which distribution a tree holds, and which tools set its addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvetools.guest.lxc.idmap import IdMap
from pvetools.guest.lxc.setup import family
from pvetools.guest.lxc.setup.names import Dns
from pvetools.guest.lxc.tree import GuestTree
from pvetools.options.lxc import LxcOptions

BASE = {"net0": "name=eth0,ip=10.0.0.7/24", "hostname": "web"}


def fill(root: Path, *files: str, **contents: str) -> Path:
    for name in files:
        name, _, text = name.partition("=")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def adapt(root: Path, **options: str) -> None:
    with GuestTree(root, IdMap()) as tree:
        family.before_start(family.subject(tree, LxcOptions.read({**BASE, **options}), Dns()))


@pytest.mark.parametrize(
    ("files", "ostype"),
    [
        (["etc/os-release=ID=debian\n"], "debian"),
        (["usr/lib/os-release=ID=debian\n"], "debian"),
        (["etc/os-release=ID=debian\n", "etc/devuan_version=5"], "devuan"),
        (['etc/os-release=ID=linuxmint\nID_LIKE="ubuntu debian"\n'], "ubuntu"),
        (["etc/os-release=ID=rocky\n"], "centos"),
        (["etc/os-release=ID=arch\n"], "archlinux"),
        (["etc/debian_version=7.0"], "debian"),
        (["etc/alpine-release=3.8"], "alpine"),
        (["etc/os-release=ID=haiku\n"], "unmanaged"),
        ([], "unmanaged"),
    ],
)
def test_detection(tmp_path: Path, files: list[str], ostype: str) -> None:
    with GuestTree(fill(tmp_path, *files), IdMap()) as tree:
        assert family.detect(tree) == ostype


@pytest.mark.parametrize(
    ("head", "arch"),
    [(b"\x02\x01" + bytes(10) + b"\x02\0\x3e\0", "amd64"), (b"\x01\x01" + bytes(10) + b"\x02\0\x03\0", "i386"),
     (b"\x02\x01" + bytes(10) + b"\x02\0\xb7\0", "arm64"), (b"\x02\x02" + bytes(10) + b"\0\x02\0\x15", None)],
)  # fmt: skip
def test_architecture_is_that_of_the_shell(tmp_path: Path, head: bytes, arch: str | None) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"\x7fELF" + head)
    (tmp_path / "bin/sh").symlink_to("/bin/busybox")
    with GuestTree(tmp_path, IdMap()) as tree:
        assert family.architecture(tree) == arch


def test_a_script_as_shell_says_nothing(tmp_path: Path) -> None:
    with GuestTree(fill(tmp_path, "bin/sh=#!/bin/false"), IdMap()) as tree:
        assert family.architecture(tree) is None


def test_debian_without_ifupdown_uses_networkd(tmp_path: Path) -> None:
    fill(tmp_path, "etc/os-release=ID=debian\nVERSION_ID=13\n", "usr/lib/systemd/systemd-networkd",
         "usr/lib/systemd/system/systemd-networkd.service")  # fmt: skip
    adapt(tmp_path)
    assert "Address = 10.0.0.7/24" in (tmp_path / "etc/systemd/network/eth0.network").read_text()
    link = tmp_path / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
    assert str(link.readlink()) == "/usr/lib/systemd/system/systemd-networkd.service"
    assert not (tmp_path / "etc/network").exists()


def test_debian_with_ifupdown_uses_it(tmp_path: Path) -> None:
    fill(tmp_path, "etc/os-release=ID=debian\nVERSION_ID=13\n", "usr/lib/systemd/systemd-networkd", "usr/sbin/ifup")
    adapt(tmp_path)
    assert "address 10.0.0.7/24" in (tmp_path / "etc/network/interfaces").read_text()


def test_ubuntu_uses_netplan(tmp_path: Path) -> None:
    fill(tmp_path, "etc/os-release=ID=ubuntu\nVERSION_ID=24.04\n", "usr/sbin/netplan", "usr/sbin/ifup")
    adapt(tmp_path)
    written = tmp_path / "etc/netplan/60-pve.yaml"
    assert "10.0.0.7/24" in written.read_text()
    assert written.stat().st_mode & 0o777 == 0o600  # netplan warns of anything wider


def test_an_interface_that_the_host_manages_is_not_written(tmp_path: Path) -> None:
    fill(tmp_path, "etc/os-release=ID=debian\nVERSION_ID=12\n", "usr/sbin/ifup")
    adapt(tmp_path, net0="name=eth0,ip=10.0.0.7/24,host-managed=1")
    assert not (tmp_path / "etc/network/interfaces").exists()


def test_unmanaged_trees_are_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, "etc/os-release=ID=debian\n")
    adapt(tmp_path, ostype="unmanaged", nameserver="9.9.9.9", timezone="UTC")
    assert [path.name for path in (tmp_path / "etc").iterdir()] == ["os-release"]


def test_a_file_that_the_container_protects_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, "etc/os-release=ID=debian\n", "etc/.pve-ignore.hostname", "etc/hostname=mine\n")
    adapt(tmp_path)
    assert (tmp_path / "etc/hostname").read_text() == "mine\n"
    assert "web" in (tmp_path / "etc/hosts").read_text()


def test_systemd_gets_a_login_on_each_terminal(tmp_path: Path) -> None:
    fill(tmp_path, "etc/os-release=ID=debian\n", "usr/lib/systemd/system/container-getty@.service")
    wants = tmp_path / "etc/systemd/system/getty.target.wants"
    adapt(tmp_path, tty="3")
    assert sorted(path.name for path in wants.iterdir()) == [f"container-getty@{n}.service" for n in (1, 2, 3)]
    adapt(tmp_path, tty="1")
    assert [path.name for path in wants.iterdir()] == ["container-getty@1.service"]


def test_the_time_zone_is_a_link_and_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, "etc/os-release=ID=debian\n", "usr/share/zoneinfo/Europe/Vienna", "etc/timezone=Etc/UTC\n")
    adapt(tmp_path, timezone="Europe/Vienna")
    assert str((tmp_path / "etc/localtime").readlink()) == "/usr/share/zoneinfo/Europe/Vienna"
    assert (tmp_path / "etc/timezone").read_text() == "Europe/Vienna\n"
    adapt(tmp_path, timezone="Europe/Nowhere")
    assert "no data of time zone 'Europe/Nowhere'" in capsys.readouterr().err


def test_a_new_container_gets_an_identity_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, "etc/os-release=ID=debian\n", "etc/machine-id=0123\n", "etc/passwd=root:x:0:0::/home/root:/bin/sh\n",
         "etc/shadow=root:*:1:0:99999:7:::\n")  # fmt: skip
    with GuestTree(tmp_path, IdMap()) as tree:
        subject = family.subject(tree, LxcOptions.read(BASE), Dns())
        family.after_create(subject, "$6$x", ["ssh-ed25519 AAAA me"])
    assert (tmp_path / "etc/machine-id").read_text() == ""
    assert (tmp_path / "etc/shadow").read_text().startswith("root:$6$x:")
    keys = tmp_path / "home/root/.ssh/authorized_keys"
    assert "ssh-ed25519 AAAA me\n" in keys.read_text()
    assert (keys.stat().st_mode & 0o777, keys.parent.stat().st_mode & 0o777) == (0o600, 0o700)
