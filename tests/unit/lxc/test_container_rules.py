"""What a container's options may be, and which of them keep it from starting."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from pvetools.guest.common.kind import Making
from pvetools.guest.lxc import kind, support
from pvetools.guest.lxc.host import Host
from pvetools.options.lxc import LxcNic, LxcOptions, MountPoint, Rootfs
from pvetools.system.errors import ParamErrors, Refused

ROOT = {"rootfs": "local:101/vm-101-disk-0.raw,size=4G", "ostype": "debian"}
HOST = Host(2, frozenset({"cpuset"}), True, False, (0, 1), ("amd64", "i386"), Path("/l"), Path("/l"), "")


def check(**options: str) -> None:
    support.check(101, LxcOptions.read(ROOT | options), HOST)


def test_a_usual_container_starts() -> None:
    check(net0="name=eth0,bridge=vmbr0,ip=dhcp,firewall=1", features="nesting=1,fuse=1", mp0="/srv,mp=/srv,backup=1")


@pytest.mark.parametrize(
    ("key", "text", "named"),
    [
        ("hookscript", "local:snippets/x.pl", "option 'hookscript' is not supported yet"),
        ("features", "mknod=1", "'features.mknod' is not supported yet"),
        ("features", "keyctl=1", "'features.keyctl' is for unprivileged"),
        ("net3", "name=eth3,tag=5", "option 'tag' of 'net3'"),
        ("net3", "name=eth3,trunks=5;6", "option 'trunks' of 'net3'"),
        ("net3", "name=eth3,rate=5", "option 'rate' of 'net3'"),
        ("net3", "name=eth3,host-managed=1,ip=dhcp", "option 'host-managed' of 'net3' works with static"),
        ("rootfs", "local:101/vm-101-disk-0.raw,quota=1", "option 'quota' of 'rootfs'"),
        ("mp2", "/srv,mp=/srv,idmap=passthrough", "option 'idmap' of 'mp2'"),
        ("arch", "arm64", "option 'arch' is 'arm64'"),
    ],
)
def test_an_option_without_effect_is_refused_by_name(key: str, text: str, named: str) -> None:
    with pytest.raises(Refused, match=named):
        check(**{key: text})


def test_mounting_file_systems_inside_needs_privileges() -> None:
    check(features="mount=nfs")
    with pytest.raises(Refused, match=r"features\.mount"):
        check(features="mount=nfs", unprivileged="1")


def test_cores_need_a_controller_of_the_host() -> None:
    check(cores="1")
    with pytest.raises(Refused, match="'cores' needs the cpuset controller"):
        support.check(101, LxcOptions.read(ROOT | {"cores": "1"}), HOST._replace(controllers=frozenset()))


def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(Refused, match=r"hookscript.*'rate' of 'net0'"):
        check(hookscript="local:snippets/x", net0="name=e,rate=1")


@pytest.mark.parametrize("ostype", ["centos", "opensuse", "gentoo", "nixos"])
def test_addresses_that_nobody_would_write_are_refused(ostype: str) -> None:
    with pytest.raises(Refused, match=f"'net0' cannot be written into containers of ostype '{ostype}'"):
        check(ostype=ostype, net0="name=eth0,ip=10.0.0.1/24")
    check(ostype=ostype, net0="name=eth0,ip=10.0.0.1/24,host-managed=1")
    check(ostype=ostype, net0="name=eth0,bridge=vmbr0")


def test_a_container_without_root_does_not_start() -> None:
    with pytest.raises(Refused, match="'rootfs' is missing"):
        support.check(101, LxcOptions.read({"ostype": "debian"}), HOST)


# -- cross-field rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "errors"),
    [
        ({"net0": "name=eth0", "net1": "name=eth0"}, {"net1": "name 'eth0' is already that of net0"}),
        ({"net0": "name=a,hwaddr=BC:24:11:00:00:01", "net2": "name=b,hwaddr=bc:24:11:00:00:01"},
         {"net2": "hwaddr 'bc:24:11:00:00:01' is already that of net0"}),
        ({"net0": "name=lo"}, {"net0": "name 'lo' is that of the loopback interface"}),
        ({"net0": "name=sixteencharacter"}, {"net0": "name 'sixteencharacter' is longer than 15 bytes"}),
        ({"net0": "name=eth0,gw=10.0.0.1"}, {"net0": "'gw' needs a static address"}),
        ({"net0": "name=eth0,ip=dhcp,ip6=auto,gw6=fd00::1"}, {"net0": "'gw6' needs a static address"}),
        ({"mp0": "/a,mp=/x", "mp1": "/b,mp=/x/"}, {"mp1": "mount path '/x' is already that of mp0"}),
        ({"mp0": "/a,mp=x"}, {"mp0": "mount path 'x' is not absolute"}),
        ({"mp0": "/a,mp=/"}, {"mp0": "nothing can be mounted on '/'"}),
        ({"mp0": "/a,mp=/proc/"}, {"mp0": "nothing can be mounted on '/proc'"}),
        ({"net0": "name=eth0,ip=10.0.0.2/24,gw=10.0.0.1", "mp0": "/a,mp=/x", "mp1": "/b,mp=/x/y"}, {}),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_together(section: dict[str, str], errors: dict[str, str]) -> None:
    assert kind.rules(section) == errors


def test_volumes_are_told_from_paths_of_the_host() -> None:
    section = {
        "rootfs": "local:101/vm-101-disk-0.raw,size=4G", "mp0": "/srv,mp=/srv", "mp1": "volume=a:b,mp=/x",
        "mp2": "mp=/y,a:c", "unused7": "local:101/old.raw", "net0": "name=local:x", "rootfsx": "a:b",
    }  # fmt: skip
    assert kind.volumes_of(section) == {
        "rootfs": "local:101/vm-101-disk-0.raw", "mp1": "a:b", "mp2": "a:c", "unused7": "local:101/old.raw",
    }  # fmt: skip


def test_a_size_is_changed_without_touching_the_rest() -> None:
    assert kind.with_size("local:x,size=1G,ro=1", 2 << 30) == "local:x,ro=1,size=2G"
    assert kind.with_size("local:x,mp=/a,size=1G,backup=1", 2 << 30) == "local:x,backup=1,mp=/a,size=2G"


def test_the_root_cannot_be_a_folder_of_the_host() -> None:
    with ExitStack() as undo, pytest.raises(ParamErrors, match="the root must be a volume"):
        kind.make_volume(Making(101, "rootfs", Rootfs.parse("/srv/root"), {}, undo))


def test_a_folder_of_the_host_can_be_a_mount_point() -> None:
    value = MountPoint.parse("/srv/x,mp=/x")
    with ExitStack() as undo:
        assert kind.make_volume(Making(101, "mp0", value, {}, undo)) == "/srv/x,mp=/x"


def test_an_interface_keeps_its_address_when_it_is_changed() -> None:
    texts = ("name=eth0", "name=eth1", "name=x,hwaddr=02:00:00:00:00:01")
    nics = dict(enumerate(map(LxcNic.parse, texts)))
    found = kind.with_addresses(nics, {"net0": "name=old,hwaddr=BC:24:11:00:00:09", "net2": "name=x"})
    assert found[0].hwaddr == "BC:24:11:00:00:09"
    assert (found[1].hwaddr or "").startswith("BC:24:11:")
    assert found[2].hwaddr == "02:00:00:00:00:01"
