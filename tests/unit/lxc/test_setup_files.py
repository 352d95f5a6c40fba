"""The texts that are written into containers."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pvetools.guest.lxc.setup import interfaces, names, networkd, sections
from pvetools.guest.lxc.setup.names import Dns
from pvetools.options.lxc import LxcNic
from pvetools.system.errors import PveError


def nics(*texts: str) -> dict[int, LxcNic]:
    return dict(enumerate(map(LxcNic.parse, texts)))


# -- the marked part ---------------------------------------------------------------------------------------------------

plain_lines = st.text(st.characters(codec="ascii", exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e"), max_size=20).filter(
    lambda line: line.strip() not in (sections.BEGIN, sections.END)
)


@given(st.lists(plain_lines, max_size=4), st.lists(plain_lines, min_size=1, max_size=3))
def test_what_belongs_to_others_is_never_touched(others: list[str], ours: list[str]) -> None:
    text, body = "".join(line + "\n" for line in others), "".join(line + "\n" for line in ours)
    once = sections.updated(text, body, "append")
    assert sections.outside(once) == text
    assert sections.updated(once, body, "append") == once
    assert sections.updated(once, "", "append") == text


def test_a_file_without_end_of_line_gets_one() -> None:
    assert sections.updated("mine", "ours\n", "append") == f"mine\n{sections.BEGIN}\nours\n{sections.END}\n"


def test_a_file_without_marks_can_be_replaced_as_a_whole() -> None:
    assert sections.updated("mine\n", "ours\n", "replace") == sections.wrapped("ours\n")


# -- interfaces --------------------------------------------------------------------------------------------------------


def test_an_interface_without_addresses_is_brought_up() -> None:
    assert "iface eth0 inet manual\n" in interfaces.updated("", nics("name=eth0,bridge=vmbr0"), cidr=True)


def test_both_families_stand_under_one_interface() -> None:
    text = interfaces.updated("", nics("name=eth0,ip=dhcp,ip6=auto"), cidr=True)
    assert text.count("auto eth0\n") == 1
    assert "iface eth0 inet dhcp\n" in text and "iface eth0 inet6 auto\n" in text


def test_other_interfaces_and_comments_stay() -> None:
    before = "auto lo\niface lo inet loopback\n\n# mine\nauto wg0\niface wg0 inet static\n\taddress 10.1.1.1/24\n"
    text = interfaces.updated(before, nics("name=eth0,ip=10.0.0.1/24"), cidr=True)
    assert text.startswith(before)


def test_own_lines_of_an_interface_stay_when_its_address_changes() -> None:
    before = "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet static\n\taddress 10.0.0.1/24\n"
    before += "\tup echo hi\n"
    text = interfaces.updated(before, nics("name=eth0,ip=10.0.0.2/24,gw=10.0.0.254"), cidr=True)
    assert "10.0.0.1" not in text
    assert "\taddress 10.0.0.2/24\n\tgateway 10.0.0.254\n\tup echo hi\n" in text


@pytest.mark.parametrize("texts", [
    ("name=eth0,ip=10.0.0.1/24,gw=10.0.0.254",), ("name=eth0,ip=10.0.0.1/32,gw=11.0.0.1", "name=b,ip6=fd00::1/64"),
    ("name=eth0,ip=dhcp,ip6=dhcp", "name=eth1"), (),
])  # fmt: skip
@pytest.mark.parametrize("cidr", [True, False])
def test_writing_twice_changes_nothing(texts: tuple[str, ...], cidr: bool) -> None:
    once = interfaces.updated("# theirs\n", nics(*texts), cidr=cidr)
    assert interfaces.updated(once, nics(*texts), cidr=cidr) == once


# -- systemd-networkd and netplan --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nic", "lines"),
    [
        ("name=eth0", ["DHCP = no", "IPv6AcceptRA = false"]),
        ("name=eth0,ip=dhcp", ["DHCP = ipv4", "IPv6AcceptRA = false"]),
        ("name=eth0,ip6=dhcp", ["DHCP = ipv6", "IPv6AcceptRA = true"]),
        ("name=eth0,ip=dhcp,ip6=dhcp", ["DHCP = yes"]),
        ("name=eth0,ip=10.0.0.1/24,gw=10.0.0.2", ["Address = 10.0.0.1/24", "Gateway = 10.0.0.2"]),
        ("name=eth0,ip=10.0.0.1/32,gw=11.0.0.2", ["[Route]", "Gateway = 11.0.0.2", "GatewayOnLink = true"]),
        ("name=eth0,ip6=fd00::1/64,gw6=fe80::1", ["Address = fd00::1/64", "Gateway = fe80::1"]),
    ],
)
def test_networkd_units(nic: str, lines: list[str]) -> None:
    unit = networkd.unit(LxcNic.parse(nic)).splitlines()
    assert unit[:2] == ["[Match]", "Name = eth0"]
    assert [line for line in lines if line not in unit] == []


def test_netplan_is_yaml_that_says_everything() -> None:
    given = nics("name=eth0,ip=10.0.0.1/32,gw=11.0.0.2,ip6=fd00::1/64,gw6=fd00::2", "name=eth1,ip=dhcp")
    assert yaml.safe_load(networkd.netplan(given))["network"]["ethernets"] == {
        "eth0": {
            "dhcp4": False, "dhcp6": False, "accept-ra": False, "addresses": ["10.0.0.1/32", "fd00::1/64"],
            "routes": [{"to": "0.0.0.0/0", "via": "11.0.0.2", "on-link": True}, {"to": "::/0", "via": "fd00::2"}],
        },
        "eth1": {"dhcp4": True, "dhcp6": False, "accept-ra": False},
    }  # fmt: skip


# -- small files -------------------------------------------------------------------------------------------------------


def test_hosts_names_the_first_static_address() -> None:
    dns = Dns(("example.org",))
    assert names.hosts("", "web", nics("name=a,ip=dhcp", "name=b,ip=10.0.0.7/24"), dns).endswith(
        "10.0.0.7 web.example.org web\n"
    )
    assert names.hosts("", "web.own.net", nics("name=a,ip6=fd00::7/64"), dns).endswith("fd00::7 web.own.net web\n")
    assert names.hosts("", "web", {}, Dns()).endswith("127.0.1.1 web\n")


def test_resolv_conf_is_read_as_it_is_written() -> None:
    dns = Dns(("a.org", "b.org"), ("9.9.9.9", "fe80::1%eth0"))
    assert names.parse_resolv("# mine\noptions x\n" + names.resolv(dns)) == dns


def test_inittab_has_as_many_gettys_as_terminals() -> None:
    before = "id:2:initdefault:\n1:2345:respawn:/sbin/getty 38400 tty1\n7:2:respawn:/sbin/getty 38400 tty7\n"
    text = names.inittab(before, 3)
    assert [line[:2] for line in text.splitlines() if "getty" in line] == ["1:", "2:", "3:"]
    assert names.inittab(text, 3) == text
    assert "getty" not in names.inittab(text, 0)


def test_a_password_goes_to_root_only() -> None:
    before = "daemon:*:1:0:99999:7:::\nroot:!:1:0:99999:7:::\nrooty:*:1::::::\n"
    assert names.shadow(before, "HASH", 20000) == before.replace("root:!:1:", "root:HASH:20000:")
    with pytest.raises(PveError, match="no entry for root"):
        names.shadow("daemon:*:1:0:99999:7:::\n", "HASH", 1)


@pytest.mark.parametrize(
    ("text", "found"), [("12.5\n", (12, 5)), ("trixie/sid", ()), ("7", (7,)), ("", ()), ("22.04.1 LTS", (22, 4, 1))]
)
def test_versions(text: str, found: tuple[int, ...]) -> None:
    assert names.version(text) == found


def test_os_release_takes_off_quotes() -> None:
    assert names.os_release("ID='debian'\nVERSION_ID=\"12\"\n# x\n\nNAME=a=b\n") == {
        "ID": "debian", "VERSION_ID": "12", "NAME": "a=b",
    }  # fmt: skip
