"""Storage of type ``esxi`` against a simulated host: machines are found, described and imported bit for bit."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pvetools.storage import volumes, vsphere
from pvetools.system import paths
from pvetools.system.errors import NotFound, PveError, Refused
from tests.real.vmware import host as simulated
from tests.real.vmware.host import PASSWORD, USER, Host
from tests.sandbox import cache
from tests.sandbox.root import Result, Root

MIB = 1 << 20
STORE = "ha-datacenter/LocalDS_0"
MACHINE = f"esx:{STORE}/ha-host_VM0/ha-host_VM0.vmx"

CONFIGURATION = """.encoding = "UTF-8"
displayName = "My Web|20Server"
guestOS = "debian11-64"
numvcpus = "4"
cpuid.coresPerSocket = "2"
memSize = "2048"
firmware = "efi"
uuid.bios = "56 4d 6b 16 ab cd ef 01-23 45 67 89 ab cd ef 01"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:0.present = "TRUE"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:0.fileName = "flat.vmdk"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "/vmfs/volumes/LocalDS_0/ha-host_VM0/sparse disk.vmdk"
scsi0:2.present = "FALSE"
scsi0:2.fileName = "gone.vmdk"
sata0:0.present = "TRUE"
sata0:0.deviceType = "cdrom-image"
sata0:0.fileName = "/vmfs/volumes/LocalDS_0/iso/setup.iso"
nvme0:0.present = "TRUE"
nvme0:0.fileName = "stream.vmdk"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.addressType = "generated"
ethernet0.generatedAddress = "00:0c:29:ab:cd:ef"
ethernet1.present = "TRUE"
ethernet1.address = "00:50:56:00:00:01"
serial0.present = "TRUE"
"""


@pytest.fixture(scope="module")
def simulator() -> None:
    """The program is there, or its tests can't run."""
    try:
        simulated.program()
    except cache.NotAvailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def host(simulator: None) -> Iterator[Host]:
    with simulated.running() as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the machine's disks hold."""
    path = tmp_path_factory.mktemp("data") / "data.raw"
    path.write_bytes(bytes(range(256)) * 8192 + bytes(3 * MIB) + b"end" * 1000 + bytes(1096 + 512 * 4 * 2))
    with path.open("r+b") as file:
        file.truncate(6 * MIB)
    return path


@pytest.fixture(scope="module")
def machine(host: Host, data: Path) -> Path:
    """The folder of the machine with its configuration and its disks, one of each kind."""
    folder = host.folder / "ha-host_VM0"
    (folder / "ha-host_VM0.vmx").write_text(CONFIGURATION)
    kinds = {"flat": "monolithicFlat", "sparse disk": "monolithicSparse", "stream": "streamOptimized"}
    for name, kind in kinds.items():
        words = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}"]
        subprocess.run([*words, str(data), str(folder / f"{name}.vmdk")], check=True)
    return folder


def add(root: Root, host: Host, *words: object, password: str = PASSWORD) -> Result:
    base = ["add", "esxi", "esx", "--server", host.address, "--port", host.port, "--username", USER]
    return root.cli("pvesm", *base, "--password", password, *words)


@pytest.fixture
def storage(root: Root, host: Host, machine: Path) -> Root:
    added = add(root, host, "--skip-cert-verification", 1)
    assert added.status == 0, added
    return root


def metadata(root: Root, volume: str) -> dict[str, object]:
    where = f"/nodes/{paths.node()}/storage/esx/import-metadata"
    said = root.cli("pvesh", "get", where, "--volume", volume, "--output-format", "json", ok=True)
    return json.loads(said.stdout)  # type: ignore[no-any-return]


# The definition.


def test_the_password_is_kept_in_a_file_of_its_own(storage: Root) -> None:
    kept = storage / "etc/pve/priv/storage/esx.pw"
    assert kept.read_text() == PASSWORD
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "password" not in paths.storage_config().read_text()
    assert "esx" in storage.cli("pvesm", "status", ok=True).stdout


@pytest.mark.parametrize(
    ("words", "password", "sentence"),
    [
        ((), PASSWORD, "the certificate of server '127.0.0.1' is not trusted"),
        (("--skip-cert-verification", 1), "wrong", "server '127.0.0.1': Login failure"),
        (("--skip-cert-verification", 1, "--content", "images"), PASSWORD, "does not support content type 'images'"),
    ],
)
def test_a_storage_that_cannot_be_used_is_not_defined(
    root: Root, host: Host, words: tuple[object, ...], password: str, sentence: str
) -> None:
    said = add(root, host, *words, password=password)
    assert said.status != 0
    assert sentence in said.stderr
    assert "password" not in said.stderr.replace("--password", "")
    assert not paths.storage_config().exists() or "esxi" not in paths.storage_config().read_text()
    assert not (root / "etc/pve/priv/storage/esx.pw").exists()


def test_a_server_that_is_gone_is_inactive(storage: Root, host: Host) -> None:
    text = paths.storage_config().read_text()
    paths.storage_config().write_text(text.replace(f"port {host.port}", "port 1"))
    said = storage.cli("pvesm", "status", "--storage", "esx", ok=True)
    assert said.stdout.splitlines()[1].split()[:3] == ["esx", "esxi", "inactive"]
    assert "server '127.0.0.1' port 1: Connection refused" in said.stderr


def test_something_else_than_a_vmware_server_is_told(storage: Root) -> None:
    from tests.real.storage.webserver import certificate, serving

    with serving(certificate(storage / "var", "localhost")) as server:
        text = paths.storage_config().read_text()
        lines = [f"\tport {server.port}" if "port" in line else line for line in text.splitlines()]
        paths.storage_config().write_text("\n".join(lines) + "\n")
        said = storage.cli("pvesm", "list", "esx")
        assert said.status != 0
        assert "no VMware server?" in said.stderr


# What is there.


def test_machines_are_listed(storage: Root) -> None:
    listed = storage.cli("pvesm", "list", "esx", ok=True).stdout.splitlines()[1:]
    assert [line.split() for line in listed] == [
        [f"esx:{STORE}/ha-host_VM{n}/ha-host_VM{n}.vmx", "vmx", "import", "0"] for n in (0, 1)
    ]


def test_a_machine_is_described_in_our_words(storage: Root) -> None:
    folder = f"esx:{STORE}/ha-host_VM0"
    assert metadata(storage, MACHINE) == {
        "type": "vm",
        "source": "esxi",
        "create-args": {
            "bios": "ovmf", "boot": "order=scsi0;scsi1;scsi2", "cores": "2", "memory": "2048", "name": "My-Web-Server",
            "ostype": "l26", "scsihw": "pvscsi", "serial0": "socket", "sockets": "2",
            "smbios1": "uuid=564d6b16-abcd-ef01-2345-6789abcdef01",
        },
        "disks": {
            "efidisk0": 1,
            "scsi0": {"volid": f"{folder}/flat.vmdk", "size": 6 * MIB},
            "scsi1": {"volid": f"{folder}/sparse disk.vmdk", "size": 6 * MIB},
            "scsi2": {"volid": f"{folder}/stream.vmdk", "size": 6 * MIB},
        },
        "net": {
            "net0": {"model": "vmxnet3", "macaddr": "00:0C:29:AB:CD:EF"},
            "net1": {"model": "e1000", "macaddr": "00:50:56:00:00:01"},
        },
        "warnings": [
            {"type": "cdrom-image-ignored", "key": "sata0:0", "value": "/vmfs/volumes/LocalDS_0/iso/setup.iso"},
            {"type": "nvme-unsupported", "key": "nvme0:0", "value": "stream.vmdk"},
            {"type": "serial-port-socket-only", "key": "serial0"},
            {"type": "efi-state-lost", "key": "bios", "value": "ovmf"},
        ],
    }  # fmt: skip


def test_a_running_machine_is_told(storage: Root, host: Host) -> None:
    (host.folder / "ha-host_VM1/ha-host_VM1.vmx").write_text('displayName = "b"\n')
    found = metadata(storage, MACHINE.replace("VM0", "VM1"))
    assert found["warnings"] == [{"type": "guest-is-running"}]


# Disks.


@pytest.mark.parametrize("name", ["flat", "sparse disk", "stream"])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_disk_is_imported_bit_for_bit(storage: Root, data: Path, name: str, form: str) -> None:
    source = f"esx:{STORE}/ha-host_VM0/{name}.vmdk"
    said = storage.cli("qm", "create", 100, "--scsi0", f"local:0,import-from={source},format={form}")
    assert said.status == 0, said
    target = storage / f"var/lib/vz/images/100/vm-100-disk-0.{form}"
    words = ["qemu-img", "compare", "-f", "raw", "-F", form, str(data), str(target)]
    assert subprocess.run(words, check=False).returncode == 0
    assert list((storage / "run/pvetools").glob("nbd-*")) == []


def test_a_machine_is_made_as_it_was_described(storage: Root) -> None:
    found: dict[str, dict[str, Any]] = metadata(storage, MACHINE)  # type: ignore[assignment]
    words = [word for key, text in found["create-args"].items() for word in (f"--{key}", text)]
    for key, disk in found["disks"].items():
        if key != "efidisk0":
            words += [f"--{key}", f"local:0,import-from={disk['volid']}"]
    for key, card in found["net"].items():
        words += [f"--{key}", f"{card['model']}={card['macaddr']},bridge=vmbr0"]
    said = storage.cli("qm", "create", 100, *words)
    assert said.status == 0, said
    config = storage.config(100).read_text()
    assert "scsi2: local:100/vm-100-disk-2.raw,size=6M" in config
    assert "net0: vmxnet3=00:0C:29:AB:CD:EF,bridge=vmbr0" in config


def test_no_secret_leaves_this_process(storage: Root) -> None:
    with volumes.importable(f"esx:{STORE}/ha-host_VM0/flat.vmdk") as source:
        words = " ".join([source.image, *source.options])
        assert PASSWORD not in words
        assert "vmware_soap_session" not in words
        (folder,) = (storage / "run/pvetools").glob("nbd-*")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_a_login_that_has_expired_is_renewed(storage: Root, data: Path) -> None:
    with vsphere.session(vsphere.Server("127.0.0.1", _port(), USER, PASSWORD, verify=False)) as session:
        reader = vsphere.Reader(session, vsphere.Place(*STORE.split("/"), "ha-host_VM0/flat-flat.vmdk"))
        assert reader.read(1 << 20, 2 << 20) == data.read_bytes()[1 << 20 : 3 << 20]
        session.cookie = "vmware_soap_session=expired"
        assert reader.read(100, 50) == data.read_bytes()[100:150]
        assert session.cookie != "vmware_soap_session=expired"
        with pytest.raises(PveError, match=r"does not give a piece of .*: 416"):
            reader.read((6 << 20) - 10, 20)


def _port() -> int:
    return volumes.get("esx").options.port or 443


def test_a_server_that_dies_in_the_middle_is_named(simulator: None, root: Root, tmp_path: Path) -> None:
    with simulated.running() as host:
        folder = host.folder / "ha-host_VM0"
        with (folder / "big-flat.vmdk").open("wb") as file:
            file.truncate(8 << 30)
        (folder / "big.vmdk").write_text(f'# Disk DescriptorFile\nRW {(8 << 30) // 512} VMFS "big-flat.vmdk"\n')
        assert add(root, host, "--skip-cert-verification", 1).status == 0
        words = ["create", 100, "--scsi0", f"local:0,import-from=esx:{STORE}/ha-host_VM0/big.vmdk"]
        process = root.spawn("qm", *words, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not list((root / "run/pvetools").glob("nbd-*")):
            assert time.monotonic() < deadline, "the import did not begin within 60 s"
            assert process.poll() is None
            time.sleep(0.02)
        host.process.kill()
        _, said = process.communicate(timeout=100)
    assert process.returncode != 0
    assert b"server '127.0.0.1' port" in said
    assert not (root / "var/lib/vz/images/100").exists()
    assert not root.config(100).exists()


BAD = [
    ("delta.vmdk", 'parentFileNameHint="flat.vmdk"\nRW 10 VMFSSPARSE "delta-delta.vmdk"\n', "remove the snapshots"),
    ("two.vmdk", 'RW 10 FLAT "a-flat.vmdk" 0\nRW 10 FLAT "b-flat.vmdk" 0\n', "lies in 2 files"),
    ("raw.vmdk", 'RW 10 VMFSRDM "raw-rdm.vmdk"\n', "as VMFSRDM, which can't be imported"),
    ("out.vmdk", 'RW 10 FLAT "../../../etc/passwd" 0\n', "which can't be imported"),
    ("gone.vmdk", 'RW 10 VMFS "gone-flat.vmdk"\n', "has no file"),
    ("short.vmdk", 'RW 100000 VMFS "flat-flat.vmdk"\n', "is shorter than"),
]


@pytest.mark.parametrize(("name", "text", "sentence"), BAD)
def test_disks_that_cannot_be_read_alone_are_refused(
    storage: Root, machine: Path, name: str, text: str, sentence: str
) -> None:
    (machine / name).write_text(f"# Disk DescriptorFile\n{text}")
    said = storage.cli("qm", "create", 100, "--scsi0", f"local:0,import-from=esx:{STORE}/ha-host_VM0/{name}")
    assert said.status != 0
    assert sentence in said.stderr
    assert not (storage / "var/lib/vz/images/100").exists()


def test_what_is_not_there_or_malformed_is_told(storage: Root) -> None:
    with pytest.raises(NotFound, match=r"has no file 'ha-datacenter/LocalDS_0/x/y\.vmdk'"):
        volumes.info(f"esx:{STORE}/x/y.vmdk")
    assert not volumes.exists(f"esx:{STORE}/x/y.vmx")
    for name in ("x.vmx", "a/b/c.iso", f"{STORE}/../x.vmx", "a//x.vmx", "a/b/"):
        with pytest.raises(PveError, match="unable to parse esxi volume name"):
            volumes.info(f"esx:{name}")


def test_nothing_is_changed_on_the_server(storage: Root) -> None:
    with pytest.raises(Refused, match="does not support content type 'images'"):
        volumes.alloc("esx", 100, MIB)
    with pytest.raises(Refused, match="are made, sized and removed on its server"):
        volumes.free(MACHINE)
    with pytest.raises(Refused, match="has no path here"):
        volumes.path(MACHINE)
    with pytest.raises(Refused, match="is no disk"), volumes.importable(MACHINE):
        pass
