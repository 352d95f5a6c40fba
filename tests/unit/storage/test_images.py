"""Headers of disk images, against what qemu-img says about them."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvetools.storage import images
from pvetools.system import run
from pvetools.system.errors import PveError, Refused

MIB = 1 << 20


def make(path: Path, form: str, size: int, *options: str, backing: str = "") -> Path:
    extra = [word for option in options for word in ("-o", option)]
    extra += ["-F", "raw", "-b", backing] if backing else []
    run.run(["qemu-img", "create", "-q", "-f", form, *extra, path, str(size)])
    return path


@pytest.mark.parametrize("size", [MIB, 3 * MIB + 512, 5 << 40])
@pytest.mark.parametrize("options", [["compat=0.10"], ["compat=1.1"], ["cluster_size=512"], ["extended_l2=on"]])
def test_qcow2_sizes(tmp_path: Path, size: int, options: list[str]) -> None:
    path = make(tmp_path / "a.qcow2", "qcow2", size if options != ["cluster_size=512"] else MIB, *options)
    said = json.loads(run.run(["qemu-img", "info", "--output=json", path]).stdout)
    assert images.inspect(path, "qcow2") == images.ImageInfo(said["virtual-size"])


@pytest.mark.parametrize(
    "options", [[], ["subformat=streamOptimized"], ["subformat=monolithicFlat"], ["subformat=twoGbMaxExtentSparse"]]
)
def test_vmdk_sizes(tmp_path: Path, options: list[str]) -> None:
    path = make(tmp_path / "a.vmdk", "vmdk", 5 << 30, *options)
    info = images.inspect(path, "vmdk")
    assert info.size == 5 << 30
    assert info.external == (options in (["subformat=monolithicFlat"], ["subformat=twoGbMaxExtentSparse"]))


def test_raw_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.touch()
    os.truncate(path, 12345 * 512)
    assert images.inspect(path, "raw") == images.ImageInfo(12345 * 512)


@pytest.mark.parametrize("form", ["qcow2", "vmdk"])
def test_backing_files_are_named_and_refused_for_foreign_images(tmp_path: Path, form: str) -> None:
    base = make(tmp_path / f"base.{form}", form, MIB)
    path = tmp_path / f"top.{form}"
    run.run(["qemu-img", "create", "-q", "-f", form, "-F", form, "-b", base, path])
    assert images.inspect(path, form).backing == str(base)
    with pytest.raises(Refused, match=f"backing file '{base}'"):
        images.check_foreign(path, form)
    assert images.check_foreign(base, form).size == MIB


def test_a_qcow2_image_with_an_external_data_file_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.qcow2", "qcow2", MIB, f"data_file={tmp_path}/secret.raw")
    with pytest.raises(Refused, match="keeps its data in other files"):
        images.check_foreign(path, "qcow2")


def test_a_raw_image_is_never_taken_for_another_format(tmp_path: Path) -> None:
    inner = make(tmp_path / "inner.qcow2", "qcow2", 4 * MIB)
    path = tmp_path / "a.raw"
    inner.rename(path)
    assert images.inspect(path, "raw").size == path.stat().st_size


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("qcow2", b""),
        ("qcow2", b"QFI\xfb"),
        ("qcow2", b"\0" * 512),
        ("qcow2", struct.pack(">4sI", b"QFI\xfb", 9) + b"\0" * 100),
        ("qcow2", struct.pack(">4sIQI", b"QFI\xfb", 3, 600, 5000) + b"\0" * 100),
        ("vmdk", b""),
        ("vmdk", b"KDMV"),
        ("vmdk", b"# Disk DescriptorFile\nnothing\n"),
    ],
)
def test_damaged_headers_are_reported(tmp_path: Path, form: str, content: bytes) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(content)
    with pytest.raises(PveError, match=f"'{path}' is not a valid {form} image"):
        images.inspect(path, form)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\2", b"KDMV", b"COWD", b"# Disk DescriptorFile\nRW 5 "]),
    st.lists(st.sampled_from([b"\0", b"\1", b"\xff", b"\0" * 7, b"\xff" * 8]) | st.binary(max_size=9), max_size=30).map(
        b"".join
    ),
    st.sampled_from(["qcow2", "vmdk"]),
)
def test_no_header_crashes_the_reader(tmp_path: Path, start: bytes, rest: bytes, form: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(start + rest)
    try:
        info = images.inspect(path, form)
    except PveError:
        return
    assert info.size >= 0


def sparse_vmdk(capacity: int, descriptor: bytes, *, declared: int = 1) -> bytes:
    """A VMDK header with a descriptor in the sector behind it, whether the header names that or not."""
    head = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 1, 3, capacity, 128, declared, 20, 512, 0, 21, 128)
    return (head.ljust(512, b"\0") + descriptor).ljust(64 << 10, b"\0")


def test_a_vmdk_that_names_a_file_of_the_host_as_its_data_is_refused(tmp_path: Path) -> None:
    """QEMU opens the extents of the descriptor when the header gives no size."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 2000)
    path = tmp_path / "a.vmdk"
    text = f'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 20 FLAT "{secret}" 0\n'
    path.write_bytes(sparse_vmdk(0, text.encode()))
    out = run.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, tmp_path / "out"], check=False)
    assert out.code or b"secret" in (tmp_path / "out").read_bytes()  # that is what would happen
    with pytest.raises(PveError, match="its header gives no size"):
        images.check_foreign(path, "vmdk")


@pytest.mark.parametrize("declared", [0, 1])
@pytest.mark.parametrize("before", ["", "#", " x"])
def test_a_parent_is_seen_wherever_qemu_would_see_it(tmp_path: Path, declared: int, before: str) -> None:
    path = tmp_path / "a.vmdk"
    text = f'# Disk DescriptorFile\nversion=1\nparentCID=11111111\n{before}parentFileNameHint="/etc/passwd"\n'
    path.write_bytes(sparse_vmdk(2048, text.encode(), declared=declared))
    with pytest.raises(Refused, match="backing file '/etc/passwd'"):
        images.check_foreign(path, "vmdk")
