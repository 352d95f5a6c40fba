"""Passwords and keys in files of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from pvetools.storage import secrets
from pvetools.system.errors import PveError


@pytest.mark.parametrize(
    ("type_", "option", "file", "content"),
    [
        ("cifs", "password", "storage/one.pw", "password=s3cret\n"),
        ("iscsidirect", "password", "storage/one.pw", "s3cret"),
        ("esxi", "password", "storage/one.pw", "s3cret"),
        ("rbd", "keyring", "ceph/one.keyring", "s3cret\n"),
        ("cephfs", "keyring", "ceph/one.secret", "s3cret\n"),
        ("pbs", "encryption-key", "storage/one.enc", "s3cret"),
        ("fancy", "token", "storage/one.token", "s3cret"),
    ],
)
def test_each_lies_where_proxmox_ve_keeps_it(root: Path, type_: str, option: str, file: str, content: str) -> None:
    secrets.write("one", type_, {option: "s3cret"})
    place = root / "etc/pve/priv" / file
    assert secrets.path("one", type_, option) == place
    assert place.read_text() == content
    assert place.stat().st_mode & 0o777 == 0o600
    assert place.parent.stat().st_mode & 0o777 == 0o700
    assert secrets.read("one", type_, option) == "s3cret"
    secrets.remove("one", type_, [option])
    assert not place.exists()
    assert secrets.read("one", type_, option) is None


@pytest.mark.parametrize("secret", ["", "password=x", " with blanks ", "a,b=c", "ä€", "#x", "x" * 256])
def test_whatever_the_password_it_comes_back(root: Path, secret: str) -> None:
    secrets.write("one", "cifs", {"password": secret})
    assert secrets.read("one", "cifs", "password") == secret


@pytest.mark.parametrize("sign", ["\n", "\r", "\0"])
def test_a_password_with_a_line_break_would_be_two(root: Path, sign: str) -> None:
    with pytest.raises(PveError, match="the password of storage 'one' must not contain line breaks") as told:
        secrets.write("one", "cifs", {"password": f"abc{sign}def"})
    assert "abc" not in str(told.value)
    assert secrets.read("one", "cifs", "password") is None


def test_what_is_undone_brings_the_old_secrets_back(root: Path) -> None:
    secrets.write("one", "pbs", {"password": "old", "encryption-key": "kept"})
    with contextlib.ExitStack() as undo:
        secrets.change("one", "pbs", {"password": "new", "master-pubkey": "more"}, ["encryption-key"], undo)
        found = {
            option: secrets.read("one", "pbs", option) for option in ("password", "encryption-key", "master-pubkey")
        }
        assert found == {"password": "new", "encryption-key": None, "master-pubkey": "more"}
    found = {option: secrets.read("one", "pbs", option) for option in ("password", "encryption-key", "master-pubkey")}
    assert found == {"password": "old", "encryption-key": "kept", "master-pubkey": None}
    for place in (root / "etc/pve/priv/storage").iterdir():
        assert place.stat().st_mode & 0o777 == 0o600


def test_what_is_refused_changes_nothing(root: Path) -> None:
    secrets.write("one", "cifs", {"password": "old"})
    with pytest.raises(PveError), contextlib.ExitStack() as undo:
        secrets.change("one", "cifs", {"password": "a\nb"}, (), undo)
    assert secrets.read("one", "cifs", "password") == "old"
