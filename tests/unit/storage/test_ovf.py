"""OVF descriptors and OVA archives: what they mean, and what is not believed."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pvetools.storage import imported, markup, ova, ovf, volumes
from pvetools.storage.imported import Disk, Guest, Warn
from pvetools.system.errors import NotFound, PveError, Refused

MIB = 1 << 20


def item(kind: int, number: int, **more: object) -> str:
    inner = "".join(f"<rasd:{name}>{text}</rasd:{name}>" for name, text in more.items())
    return (
        f"<Item><rasd:InstanceID>{number}</rasd:InstanceID><rasd:ResourceType>{kind}</rasd:ResourceType>{inner}</Item>"
    )


def descriptor(*items: str, files: tuple[str, ...] = (), system: int = 96, extra: str = "", head: str = "") -> bytes:
    references = "".join(f'<File ovf:id="f{n}" ovf:href="{name}"/>' for n, name in enumerate(files))
    disks = "".join(
        f'<Disk ovf:diskId="d{n}" ovf:fileRef="f{n}" ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^20"/>'
        for n in range(len(files))
    )
    return f"""<?xml version="1.0"?>{head}
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References>{references}</References><DiskSection>{disks}</DiskSection>
<VirtualSystem ovf:id="my vm"><OperatingSystemSection ovf:id="{system}"/>
<VirtualHardwareSection>{"".join(items)}{extra}</VirtualHardwareSection></VirtualSystem></Envelope>""".encode()


def anything(file: ovf.File) -> Disk:
    return Disk(file.name, file.capacity)


def read(*items: str, **more: Any) -> Guest:
    return ovf.parse(descriptor(*items, **more), anything)


CPU, MEMORY = item(3, 1, VirtualQuantity=2), item(4, 2, VirtualQuantity=1, AllocationUnits="byte * 2^30")
IDE, SCSI, SATA = item(5, 10, Address=0), item(6, 11, ResourceSubType="VirtualSCSI"), item(20, 12)
OTHER_IDE, OTHER_SCSI = item(5, 13, Address=1), item(6, 14, ResourceSubType="lsilogic")


def disk(number: int, parent: int, place: int = 0) -> str:
    return item(17, 100 + number, HostResource=f"ovf:/disk/d{number}", Parent=parent, AddressOnParent=place)


def test_processor_memory_name_and_system_are_taken_over() -> None:
    assert read(CPU, MEMORY).options == {"cores": "2", "memory": "1024", "name": "myvm", "ostype": "l26"}
    for system, ostype in ((105, "win7"), (120, "win10"), (123, "win11"), (97, "l24"), (81, "solaris"), (1, "other")):
        assert read(system=system).options["ostype"] == ostype


@pytest.mark.parametrize(("unit", "memory"), [("byte * 2^20", 1), ("MegaBytes", 1), ("byte*2^30", 1024), ("byte", 0)])
def test_units_are_understood(unit: str, memory: int) -> None:
    assert read(item(4, 2, VirtualQuantity=1, AllocationUnits=unit)).options["memory"] == str(memory)


def test_disks_get_the_places_they_had() -> None:
    files = tuple(f"disk{n}.vmdk" for n in range(6))
    guest = read(
        IDE, SCSI, SATA, OTHER_IDE, OTHER_SCSI, disk(0, 10, 1), disk(1, 13, 0), disk(2, 11, 3), disk(3, 14, 3),
        disk(4, 12, 5), disk(5, 12, 5), files=files,
    )  # fmt: skip
    assert {key: disk.volume for key, disk in guest.disks.items()} == {
        "ide1": "disk0.vmdk", "ide2": "disk1.vmdk", "scsi3": "disk2.vmdk", "scsi0": "disk3.vmdk",
        "sata5": "disk4.vmdk", "sata0": "disk5.vmdk",
    }  # fmt: skip
    assert {disk.size for disk in guest.disks.values()} == {2 * MIB}
    assert guest.options["scsihw"] == "pvscsi"
    assert guest.options["boot"] == "order=ide1;ide2;scsi3;scsi0;sata5;sata0"


def test_network_cards_keep_their_models() -> None:
    models = ("VmxNet3", "E1000e", "PCNet32", "nobody knows", "")
    guest = read(*(item(10, n, ResourceSubType=model) for n, model in enumerate(models)))
    assert [guest.nets[f"net{n}"]["model"] for n in range(5)] == ["vmxnet3", "e1000e", "pcnet", "e1000", "e1000"]


def test_what_does_not_come_along_is_told() -> None:
    efi = '<vmw:Config xmlns:vmw="x" vmw:key="firmware" vmw:value="efi"/>'
    guest = read(IDE, item(15, 3, Parent=10, HostResource="ovf:/file/f0"), extra=efi)
    assert guest.options["bios"] == "ovmf"
    data = imported.as_data(guest, "store", "dir")
    assert data["disks"] == {"efidisk0": 1}
    assert data["warnings"] == [
        {"type": "cdrom-image-ignored", "key": "cdrom", "value": "ovf:/file/f0"},
        {"type": "efi-state-lost", "key": "bios", "value": "ovmf"},
    ]


def test_missing_declarations_of_namespaces_do_not_matter() -> None:
    text = descriptor(CPU, MEMORY).decode()
    for part in (
        'xmlns="http://schemas.dmtf.org/ovf/envelope/1"',
        'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"',
    ):
        text = text.replace(part, "")
    assert ovf.parse(text.encode(), anything).options["memory"] == "1024"


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
READS = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
EMPTY = '<Envelope><VirtualSystem ovf:id="a"/><VirtualSystem ovf:id="b"/></Envelope>'


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is not valid XML"),
        (b"<a>", "is not valid XML"),
        (b"<a/>", "one virtual machine is expected, found 0"),
        (EMPTY.encode(), "one virtual machine is expected, found 2"),
        (b"<a>" * 200 + b"</a>" * 200, "nested too deep"),
        (descriptor(head=BOMB), "a document type or an entity is declared"),
        (descriptor(head=READS), "a document type or an entity is declared"),
        (descriptor(SCSI, disk(0, 11), files=("../x.vmdk",)), "'../x.vmdk' is no plain name"),
        (descriptor(SCSI, disk(0, 11), files=("/etc/passwd",)), "'/etc/passwd' is no plain name"),
        (descriptor(SCSI, disk(0, 11), files=("a.vhd",)), "'a.vhd' is no plain name"),
        (descriptor(SCSI, disk(0, 11), files=()), "disk '100' has no file"),
        (descriptor(disk(0, 11), files=("a.vmdk",)), "disk '100' has no controller"),
        (descriptor(item(4, 2, VirtualQuantity=1, AllocationUnits="bushels")), "unknown unit 'bushels'"),
    ],
)
def test_what_cannot_be_believed_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(PveError) as caught:
        ovf.parse(data, anything)
    assert sentence in str(caught.value)


def image(path: Path, form: str = "vmdk") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", form, str(path), str(3 * MIB)], check=True)
    return path


def test_images_beside_a_descriptor_are_looked_at(tmp_path: Path) -> None:
    data, look = descriptor(SCSI, disk(0, 11), files=("a.vmdk",)), ovf.beside(tmp_path / "x.ovf", "import/")
    with pytest.raises(PveError, match="is not there or no plain file"):
        ovf.parse(data, look)
    image(tmp_path / "a.vmdk")
    assert ovf.parse(data, look).disks["scsi0"] == Disk("import/a.vmdk", 3 * MIB)
    (tmp_path / "a.vmdk").rename(tmp_path / "b.vmdk")
    (tmp_path / "a.vmdk").symlink_to("b.vmdk")
    with pytest.raises(PveError, match="is not there or no plain file"):
        ovf.parse(data, look)


# Archives.


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    return info, data


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


MACHINE = member("x.ovf", descriptor(CPU, SCSI, disk(0, 11), files=("a b.vmdk",)))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    data = image(tmp_path / "a b.vmdk").read_bytes()
    sums = f"SHA256(a b.vmdk)= {hashlib.sha256(data).hexdigest()}\n".encode()
    return pack(tmp_path / "x.ova", MACHINE, member("x.mf", sums), member("a b.vmdk", data))


def test_an_archive_tells_its_guest(archive: Path) -> None:
    guest = ova.guest(archive, "import/x.ova/")
    assert guest.disks == {"scsi0": Disk("import/x.ova/a b.vmdk", 2 * MIB)}
    assert guest.warnings == [Warn("ova-needs-extracting")]


def test_a_disk_comes_out_whole(archive: Path, tmp_path: Path) -> None:
    ova.extract(archive, "a b.vmdk", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "a b.vmdk").read_bytes()
    with pytest.raises(NotFound, match=r"holds no disk 'b\.vmdk'"):
        ova.extract(archive, "b.vmdk", tmp_path / "out")


def test_a_damaged_disk_is_noticed(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[-15000] ^= 1
    archive.write_bytes(data)
    with pytest.raises(PveError, match="sha256 checksum is"):
        ova.extract(archive, "a b.vmdk", tmp_path / "out")
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(PveError, match=r"is not a valid OVA archive|ends within disk"):
        ova.extract(archive, "a b.vmdk", tmp_path / "out")


HARMFUL = [
    (member("a b.vmdk", kind=tarfile.SYMTYPE, target="/etc/passwd"), "is no plain file with a plain name"),
    (member("a b.vmdk", kind=tarfile.LNKTYPE, target="x.ovf"), "is no plain file with a plain name"),
    (member("../a b.vmdk"), "is no plain file with a plain name"),
    (member("/a b.vmdk"), "is no plain file with a plain name"),
    (member("sub/a b.vmdk"), "is no plain file with a plain name"),
    (member(".hidden.vmdk"), "is no plain file with a plain name"),
    (member("a\nb.vmdk"), "is no plain file with a plain name"),
    (member("dev", kind=tarfile.CHRTYPE), "is no plain file with a plain name"),
    (member("folder", kind=tarfile.DIRTYPE), "is no plain file with a plain name"),
    (member("x.ovf"), "member 'x.ovf' comes twice"),
    (member("y.ovf"), "one OVF descriptor is expected in it, found 2"),
    (member("c.vmdk"), "disk 'a b.vmdk' is not in the archive"),
]


@pytest.mark.parametrize(("other", "sentence"), HARMFUL, ids=[repr(other[0].name) for other, _ in HARMFUL])
def test_members_that_could_do_harm_are_refused(
    tmp_path: Path, other: tuple[tarfile.TarInfo, bytes], sentence: str
) -> None:
    with pytest.raises(PveError, match=sentence):
        ova.check(pack(tmp_path / "x.ova", MACHINE, other))


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    for data in (b"", b"x" * 5000):
        (tmp_path / "x.ova").write_bytes(data)
        with pytest.raises(PveError, match=r"is not a valid OVA archive|one OVF descriptor is expected"):
            ova.check(tmp_path / "x.ova")


# On a storage.


def test_disks_of_an_archive_are_unpacked_for_a_while(archive: Path, local: Path) -> None:
    folder = local / "import"
    folder.mkdir(parents=True)
    archive.rename(folder / "x.ova")
    with volumes.importable("local:import/x.ova/a b.vmdk") as found:
        assert (found.path.parent, found.format) == (folder, "vmdk")
        assert len(list(folder.iterdir())) == 2
    assert [path.name for path in folder.iterdir()] == ["x.ova"]
    for name in ("x.ova", "x.ova/other.vmdk"):
        with pytest.raises((Refused, NotFound)), volumes.importable(f"local:import/{name}"):
            pass
    assert [path.name for path in folder.iterdir()] == ["x.ova"]


def test_only_descriptors_and_archives_describe_guests(local: Path) -> None:
    (local / "import").mkdir(parents=True)
    image(local / "import/a.qcow2", "qcow2")
    with pytest.raises(Refused, match="describes no guest"):
        volumes.guest("local:import/a.qcow2")
    with pytest.raises(NotFound):
        volumes.guest("local:import/a.ova")
    with volumes.importable("local:import/a.qcow2") as found:
        assert (found.path.name, found.format) == ("a.qcow2", "qcow2")


@pytest.mark.parametrize("encoding", ["foo", "shift_jis"])
def test_an_encoding_that_nobody_knows_is_refused(encoding: str) -> None:
    with pytest.raises(PveError, match="is not valid XML"):
        markup.parse(f'<?xml version="1.0" encoding="{encoding}"?><a/>'.encode(), "the descriptor")


def test_damaged_headers_of_an_archive_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.ova"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as made:
        member = tarfile.TarInfo("a.ovf")
        member.pax_headers = {"GNU.sparse.map": "a,b"}
        made.addfile(member, io.BytesIO())
    with pytest.raises(PveError, match="is not a valid OVA archive"):
        ova.check(path)
