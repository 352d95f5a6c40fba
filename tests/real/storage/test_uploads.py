"""Uploads: a received file becomes a volume, or stays where it is."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from pvetools.system import paths
from tests.sandbox.root import Result, Root

DATA = b"an ISO image " * 5000


@pytest.fixture
def received(root: Root) -> Path:
    path = root / "var/tmp/pveupload-0123456789abcdef"
    path.write_bytes(DATA)
    return path


def upload(root: Root, *words: object, name: str = "a.iso", content: str = "iso") -> Result:
    path = f"/nodes/{paths.node()}/storage/local/upload"
    sent = ["--tmpfilename", "/var/tmp/pveupload-0123456789abcdef"]
    return root.cli("pvesh", "create", path, "--content", content, "--filename", name, *sent, *words)


def test_an_upload_replaces_the_file_of_its_name(root: Root, received: Path) -> None:
    target = root / "var/lib/vz/template/iso/my_disc.iso"
    target.write_bytes(b"old")
    right = ["--checksum", hashlib.sha1(DATA).hexdigest().upper(), "--checksum-algorithm", "sha1"]
    ran = upload(root, *right, name="C:\\discs\\my disc.iso")
    assert ran.status == 0, ran
    assert target.read_bytes() == DATA
    assert target.stat().st_mode & 0o777 == 0o644
    assert not received.exists()
    assert "UPID:" in ran.stdout
    assert ":imgcopy::root@pam:" in ran.stdout


def test_a_template_may_end_in_capitals(root: Root, received: Path) -> None:
    received.write_bytes(gzip.compress(bytes(1024)))
    assert upload(root, name="deb.TAR.GZ", content="vztmpl").status == 0
    assert "tgz" in root.cli("pvesm", "list", "local", "--content", "vztmpl", ok=True).stdout


def test_a_sparse_image_stays_sparse(root: Root, received: Path) -> None:
    with received.open("wb") as file:
        file.truncate(1 << 30)
        file.write(b"x" * 4096)
    assert upload(root, name="disk.raw", content="import").status == 0
    found = (root / "var/lib/vz/import/disk.raw").stat()
    assert found.st_size == 1 << 30
    assert found.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    ("name", "content", "words", "sentence"),
    [
        ("a.iso", "iso", ["--checksum", "00", "--checksum-algorithm", "md5"], "md5 checksum is"),
        ("a.iso", "iso", ["--checksum", "", "--checksum-algorithm", "md5"], "checksum: value must be at least 1"),
        ("a.iso", "iso", ["--checksum", "00"], "requires this property: 'checksum-algorithm'"),
        ("a.txt", "iso", [], "'a.txt' is no name for content type 'iso'"),
        ("a.qcow2", "import", [], "'a.qcow2' is not a valid qcow2 image"),
        ("a.tar.gz", "vztmpl", [], "'a.tar.gz' does not hold what its name says"),
        ("a.iso", "backup", [], "content: value 'backup' does not have a value in the enumeration"),
    ],
)
def test_a_refused_upload_stays_where_it_is(
    root: Root, received: Path, name: str, content: str, words: list[str], sentence: str
) -> None:
    ran = upload(root, *words, name=name, content=content)
    assert ran.status != 0
    assert sentence in ran.stderr
    assert received.read_bytes() == DATA
    assert [path for path in (root / "var/lib/vz").rglob("*") if path.is_file()] == []


def test_only_a_plain_file_of_our_own_is_taken(root: Root, received: Path) -> None:
    received.rename(received.with_name("other"))
    assert "no such file" in upload(root).stderr
    received.symlink_to("/etc/shadow")
    assert "is not a plain file" in upload(root).stderr
    received.unlink()
    os.link(received.with_name("other"), received)
    assert "is not a plain file" in upload(root).stderr
    received.with_name("other").unlink()
    os.chown(received, 1000, 1000)
    assert "belongs to another user" in upload(root).stderr
    path = f"/nodes/{paths.node()}/storage/local/upload"
    assert "tmpfilename" in root.cli("pvesh", "create", path, "--content", "iso", "--filename", "a.iso").stderr


def test_a_storage_that_does_not_hold_the_content_takes_none(root: Root, received: Path) -> None:
    paths.storage_config().write_text(f"dir: local\n\tpath {root.path}/var/lib/vz\n\tcontent images\n")
    assert "does not support content type 'iso'" in upload(root).stderr
    assert received.exists()


def test_an_image_with_a_backing_file_is_refused(root: Root, received: Path) -> None:
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/shadow", str(received), "1M"]
    subprocess.run(words, check=True)
    ran = upload(root, name="a.qcow2", content="import")
    assert ran.status != 0
    assert "image 'a.qcow2' has the backing file '/etc/shadow'" in ran.stderr
