"""Templates, passwords and keys as users hand them in."""

from __future__ import annotations

import ctypes
import gzip
import subprocess
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest

from pvetools.guest.lxc import create, unpack
from pvetools.guest.lxc.idmap import IdMap
from pvetools.system.errors import NotFound, ParamErrors, PveError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8Kq0mJvGkz me@host"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "etc/file")
    return path


@pytest.mark.parametrize(
    ("tool", "suffix"), [("gzip", ".gz"), ("xz", ".xz"), ("zstd", ".zst"), ("bzip2", ".bz2"), ("lzop", ".lzo")]
)
def test_compression_is_told_by_content_not_by_name(archive: Path, tool: str, suffix: str) -> None:
    subprocess.run([tool, "-q", "-k", archive] if tool != "gzip" else [tool, "-k", archive], check=True)
    packed = archive.with_name(archive.name + suffix).rename(archive.with_name("template"))
    assert f".{unpack.compression(packed)}" == suffix
    (root := packed.with_name("root")).mkdir()
    unpack.unpack(packed, root, IdMap())
    assert (root / "etc/file").read_bytes() == Path(__file__).read_bytes()


def test_a_plain_tar_needs_no_program(archive: Path) -> None:
    assert unpack.compression(archive) == ""


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04zip", bytes(10240), b"#!/bin/sh\n" * 100])
def test_foreign_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(PveError, match=r"'x\.tar\.gz' is not a tar archive"):
        unpack.compression(tmp_path / "x.tar.gz")


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        create.from_template(str(tmp_path / "missing.tar"))


def test_a_damaged_archive_is_told_from_a_full_disk(archive: Path, tmp_path: Path) -> None:
    packed = tmp_path / "t.tar.gz"
    packed.write_bytes(gzip.compress(archive.read_bytes())[:-200])
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(PveError, match=r"unpacking .t\.tar\.gz. failed: cannot decompress .*: unexpected end of file"):
        unpack.unpack(packed, root, IdMap())


@pytest.mark.parametrize("text", [KEY, f"# mine\n\n{KEY}\n", quote(KEY, safe=""), quote(KEY + "\n", safe="")])
def test_keys_come_plain_or_url_encoded(text: str) -> None:
    assert create.ssh_keys(text) == [KEY]


def test_several_keys_with_options() -> None:
    more = 'command="/bin/x y",no-pty ssh-rsa AAAAB3== you'
    assert create.ssh_keys(f"{KEY}\n{more}\necdsa-sha2-nistp256 AAAA\n") == [KEY, more, "ecdsa-sha2-nistp256 AAAA"]


@pytest.mark.parametrize("text", ["hello", "ssh-rsa", "-----BEGIN OPENSSH PRIVATE KEY-----", f"{KEY}\nrubbish here"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ParamErrors, match="is not a public SSH key"):
        create.ssh_keys(text)


@pytest.mark.parametrize("password", ["secret", "pass: wörd$6$", "x" * 200])
def test_a_password_verifies_against_its_hash(password: str) -> None:
    hashed = create.hash_password(password)
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    assert hashed.startswith("$6$") and ":" not in hashed
    assert crypt(password.encode(), hashed.encode()) == hashed.encode()
    assert crypt(b"other", hashed.encode()) != hashed.encode()
    assert create.hash_password(password) != hashed  # another salt
