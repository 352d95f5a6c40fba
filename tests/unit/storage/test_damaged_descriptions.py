"""Descriptions of foreign machines with any damage: they are read, or refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvetools.storage import ova, ovf, vmx, web
from pvetools.storage.imported import Disk
from pvetools.system.errors import PveError

DESCRIPTOR = b"""<?xml version="1.0"?>
<Envelope xmlns:ovf="o" xmlns:rasd="r"><References><File ovf:href="a.vmdk" ovf:id="f1"/></References>
<DiskSection><Disk ovf:capacity="6" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="d1" ovf:fileRef="f1"/>
</DiskSection><VirtualSystem ovf:id="vm"><OperatingSystemSection ovf:id="96"/><VirtualHardwareSection>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>
<Item><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType><rasd:Parent>1</rasd:Parent>
<rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:AddressOnParent>0</rasd:AddressOnParent></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>"""
CONFIGURATION = b"""displayName = "a|20b"
numvcpus = "4"
cpuid.coresPerSocket = "2"
uuid.bios = "56 4d 6b 16 ab cd ef 01-23 45 67 89 ab cd ef 01"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "flat.vmdk"
ethernet0.present = "TRUE"
ethernet0.generatedAddress = "00:0c:29:ab:cd:ef"
"""
EXTENT = b'# Disk DescriptorFile\nversion=1\nRW 12288 FLAT "a-flat.vmdk" 0\n'

_WORDS = [b"", b"-1", b"9" * 30, b"9" * 5000, b"\xc2\xb2", b"&lt;", b"<a>", b'"', b"byte * 2^99", b"\0", b"/../"]
_Change = tuple[float, float, bytes]
CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 0.05), st.sampled_from(_WORDS) | st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, changes: list[_Change]) -> bytes:
    """Data in which stretches (a place and a length, as shares of the whole) were replaced."""
    for place, length, new in changes:
        start = int(place * len(data))
        data = data[:start] + new + data[start + int(length * len(data)) :]
    return data


def any_disk(file: ovf.File) -> Disk:
    return Disk(file.name, file.capacity)


@given(CHANGES)
def test_descriptors(changes: list[_Change]) -> None:
    with contextlib.suppress(PveError):
        ovf.parse(damaged(DESCRIPTOR, changes), any_disk)


@given(CHANGES)
def test_configurations_and_extents(changes: list[_Change]) -> None:
    with contextlib.suppress(PveError):
        vmx.guest(vmx.read(damaged(CONFIGURATION, changes).decode("utf-8", "replace")), lambda file: Disk(file, 1))
    with contextlib.suppress(PveError):
        vmx.extent(damaged(EXTENT, changes).decode("utf-8", "replace"), "a.vmdk")


@pytest.fixture(scope="module")
def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for name, data in (("a.ovf", DESCRIPTOR), ("a.mf", b"SHA256(a.vmdk)= 00\n"), ("a.vmdk", b"KDMV" * 300)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return out.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_archives(archive: bytes, tmp_path: Path, changes: list[_Change]) -> None:
    path = tmp_path / "a.ova"
    path.write_bytes(damaged(archive, changes))
    with contextlib.suppress(PveError):
        ova.guest(path)
    with contextlib.suppress(PveError):
        ova.extract(path, "a.vmdk", tmp_path / "out")


@given(st.text("http:/[]@%?#. \0\nä0１2a-_\\\u2028", max_size=30))
def test_addresses(text: str) -> None:
    with contextlib.suppress(PveError):
        web._split(f"https://{text}")
