"""OVF descriptors: what a virtual machine of another platform consists of. Nothing in one is trusted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import images, imported, markup
from pvetools.storage.imported import Disk, Guest, Warn
from pvetools.storage.markup import Node
from pvetools.system.errors import PveError, Refused

LARGEST = 10 << 20  # bytes of a descriptor
DISK_NAME = re.compile(r"[a-zA-Z0-9\-.+=_ ]+\.(qcow2|raw|vmdk)")
# Kinds of devices by the number that CIM gives them.
_PROCESSOR, _MEMORY, _IDE, _SCSI, _NETWORK, _CDROM, _DISK, _SATA = 3, 4, 5, 6, 10, 15, 17, 20
_BUSES = {_IDE: "ide", _SCSI: "scsi", _SATA: "sata"}
SCSI_CONTROLLERS = {
    "buslogic": "lsi", "lsilogic": "lsi", "lsilogicsas": "megasas", "lsisas1068": "megasas", "pvscsi": "pvscsi",
    "virtio-scsi": "virtio-scsi-pci", "virtualscsi": "pvscsi", "vmware-pvscsi": "pvscsi",
}  # fmt: skip
NIC_MODELS = {
    "e1000": "e1000", "e1000e": "e1000e", "flexible": "e1000", "pcnet32": "pcnet", "rtl8139": "rtl8139",
    "virtio": "virtio", "virtionet": "virtio", "vlance": "pcnet", "vmxnet": "vmxnet3", "vmxnet2": "vmxnet3",
    "vmxnet3": "vmxnet3",
}  # fmt: skip
DEFAULT_NIC = "e1000"
# Operating systems by the number that CIM gives them; all others are "other".
_SYSTEMS = {
    "wxp": (67, 71, 72, 75), "w2k": (58,), "w2k3": (69, 70), "wvista": (73, 74), "w2k8": (76, 77), "win7": (103, 105),
    "win8": (111, 112, 113, 114, 115, 117, 118), "win10": (116, 119, 120, 121), "win11": (122, 123),
    "l24": (97, 98), "l26": (36, *range(79, 81), *range(82, 97), 99, 100, 101, *range(106, 110)),
    "solaris": (29, 81),
}  # fmt: skip
_OSTYPES = {number: ostype for ostype, numbers in _SYSTEMS.items() for number in numbers}
_UNITS = {"byte": 1, "bytes": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20, "gigabytes": 1 << 30}
_MIB = 1 << 20


# -- the descriptor ----------------------------------------------------------------------------------------------------


class File(NamedTuple):
    """A disk of the descriptor: its file, and how many bytes the disk has as far as the descriptor says."""

    name: str
    capacity: int


def parse(data: bytes, volume: Callable[[File], Disk]) -> Guest:
    """Read a descriptor.

    Args:
        data: its content.
        volume: gives the volume of a disk's file.

    Raises:
        PveError: malformed, incomplete, or with more than one machine.
    """
    if len(data) > LARGEST:
        raise PveError(f"OVF: more than {LARGEST >> 20} MiB")
    envelope = markup.parse(data, "OVF")
    machines = list(_machines(envelope))
    if envelope.name != "Envelope" or len(machines) != 1:
        raise PveError(f"OVF: one virtual machine is expected, found {len(machines)}")
    machine = machines[0]
    hardware = machine.first("VirtualHardwareSection")
    if hardware is None:
        raise PveError("OVF: the virtual machine has no VirtualHardwareSection")
    guest = Guest(_options(machine, hardware))
    items = _items(hardware)
    _disks(guest, items, _files(envelope), volume)
    _nets(guest, items)
    if guest.disks:
        guest.options["boot"] = "order=" + ";".join(guest.disks)
    if any(row.attributes.get("key") == "firmware" and row.attributes.get("value") == "efi"
           for row in hardware.all("Config")):  # fmt: skip
        guest.with_efi()
    return guest


def _machines(node: Node) -> Iterator[Node]:
    yield from node.all("VirtualSystem")
    for collection in node.all("VirtualSystemCollection"):
        yield from _machines(collection)


def _options(machine: Node, hardware: Node) -> dict[str, str]:
    system = machine.first("OperatingSystemSection")
    options = {"ostype": _OSTYPES.get(_whole(system.attributes.get("id", "") if system else ""), "other")}
    if name := imported.guest_name(machine.value("Name") or machine.attributes.get("id", ""), filler=""):
        options["name"] = name
    for item in _items(hardware).values():
        kind, quantity = item.number("ResourceType"), item.number("VirtualQuantity")
        if kind == _PROCESSOR and quantity:
            options["cores"] = str(quantity)
        elif kind == _MEMORY and quantity:
            options["memory"] = str(quantity * _unit(item.value("AllocationUnits") or "byte * 2^20") // _MIB)
    return options


def _items(hardware: Node) -> dict[str, Node]:
    """Devices by their id; newer descriptors have elements of their own for disks and cards."""
    found = [node for name in ("Item", "StorageItem", "EthernetPortItem") for node in hardware.all(name)]
    return {item.value("InstanceID"): item for item in found}


def _whole(text: str) -> int:
    """A whole number; 0 for everything else."""
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0


def _unit(text: str) -> int:
    """Bytes of a unit such as ``byte * 2^20``."""
    words = text.strip().lower()
    match = re.fullmatch(r"bytes?(?: *\* *(\d{1,4})(?: *\^ *(\d{1,2}))?)?", words, re.ASCII)
    if match:
        size: int = int(match[1] or 1) ** int(match[2] or 1)
        return size
    if words not in _UNITS:
        raise PveError(f"OVF: unknown unit '{text}'")
    return _UNITS[words]


def _files(envelope: Node) -> dict[str, File]:
    """Files of the disks by the disks' ids."""
    references, section = envelope.first("References"), envelope.first("DiskSection")
    files = {row.attributes.get("id"): row for row in (references.all("File") if references else ())}
    found: dict[str, File] = {}
    for disk in section.all("Disk") if section else ():
        file = files.get(disk.attributes.get("fileRef", ""))
        if file is None:
            raise PveError(f"OVF: disk '{disk.attributes.get('diskId')}' has no file")
        unit = _unit(disk.attributes.get("capacityAllocationUnits", "byte"))
        size = _whole(disk.attributes.get("capacity", "")) * unit
        found[disk.attributes.get("diskId", "")] = File(_file_name(file), size)
    return found


def _file_name(file: Node) -> str:
    name = file.attributes.get("href", "")
    for attribute in ("compression", "chunkSize"):
        if file.attributes.get(attribute, "identity") != "identity":
            raise Refused(f"OVF: file '{name}' is stored with {attribute}, which is not supported")
    if not DISK_NAME.fullmatch(name):
        raise Refused(f"OVF: '{name}' is no plain name of a vmdk, qcow2 or raw image")
    return name


def _disks(guest: Guest, items: Mapping[str, Node], files: Mapping[str, File], volume: Callable[[File], Disk]) -> None:
    for item in items.values():
        kind, resource = item.number("ResourceType"), item.value("HostResource")
        if kind == _CDROM and resource:
            guest.warnings.append(Warn(imported.CDROM, "cdrom", resource))
        if kind != _DISK:
            continue
        file = files.get(resource.rpartition("/")[2])
        controller = items.get(item.value("Parent"))
        bus = _BUSES.get(controller.number("ResourceType") or 0) if controller else None
        if file is None or controller is None or bus is None:
            name = item.value("ElementName") or item.value("InstanceID")
            raise PveError(f"OVF: disk '{name}' has no {'file' if file is None else 'controller'} that is known")
        first = 2 * (controller.number("Address") or 0) if bus == "ide" else 0
        guest.attach(bus, first + (item.number("AddressOnParent") or 0), volume(file))
        model = SCSI_CONTROLLERS.get(controller.value("ResourceSubType").lower())
        if bus == "scsi" and model:
            guest.options.setdefault("scsihw", model)


def _nets(guest: Guest, items: Mapping[str, Node]) -> None:
    cards = [item for item in items.values() if item.number("ResourceType") == _NETWORK]
    for number, item in enumerate(cards):
        model = NIC_MODELS.get(item.value("ResourceSubType").lower(), DEFAULT_NIC)
        guest.nets[f"net{number}"] = {"model": model}


def beside(path: Path, prefix: str = "") -> Callable[[File], Disk]:
    """Volumes of the images that lie beside a descriptor; their real size counts.

    Raises (the function):
        PveError: no such image, or one that would read other files.
    """

    def volume(file: File) -> Disk:
        image = path.parent / file.name
        if image.is_symlink() or not image.is_file():
            raise PveError(f"OVF: '{image}' is not there or no plain file")
        return Disk(f"{prefix}{file.name}", images.check_foreign(image, file.name.rpartition(".")[2]).size)

    return volume
