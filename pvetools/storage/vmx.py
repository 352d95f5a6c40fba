"""Configurations (``.vmx``) and disk descriptors (``.vmdk``) of VMware's machines, in our words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pvetools.storage import imported
from pvetools.storage.imported import Disk, Guest, Warn
from pvetools.storage.ovf import DEFAULT_NIC, NIC_MODELS, SCSI_CONTROLLERS
from pvetools.system.errors import PveError, Refused

SECTOR = 512
_LINE = re.compile(r'\s*([^\s#=][^=]*?)\s*=\s*"(.*)"\s*')
_ESCAPE = re.compile(r"\|([0-9a-fA-F]{2})")
_DEVICE = re.compile(r"(ide|sata|scsi|nvme)(\d{1,3}):(\d{1,3})\.filename", re.ASCII)
_CARD = re.compile(r"ethernet(\d{1,3})\.present", re.ASCII)
_SERIAL = re.compile(r"serial(\d{1,3})\.present", re.ASCII)
_EXTENT = re.compile(r'^\s*(RW|RDONLY|NOACCESS)\s+(\d{1,15})\s+(\w+)\s+"([^"]*)"(?:\s+(\d+))?', re.MULTILINE)
_PARENT = re.compile(r'^\s*parentFileNameHint\s*=\s*"([^"]*)"', re.MULTILINE)
_FLAT = ("FLAT", "VMFS")
# Operating systems by the beginning of VMware's name for them, the special ones first.
_SYSTEMS = (
    ("windows11", "win11"), ("windows12", "win11"), ("windows2019srvnext", "win11"), ("windows2022", "win11"),
    ("windows2019", "win10"), ("windows9", "win10"), ("windows8", "win8"), ("windows7", "win7"),
    ("winlonghorn", "w2k8"), ("longhorn", "w2k8"), ("winvista", "wvista"), ("winnet", "w2k3"), ("winxp", "wxp"),
    ("win2000", "w2k"), ("solaris", "solaris"), ("other24xlinux", "l24"), ("rhel2", "l24"), ("rhel3", "l24"),
)  # fmt: skip
_LINUX = re.compile(
    r"linux|ubuntu|debian|centos|rhel|sles|suse|fedora|redhat|asianux|mandr|coreos|photon|oracle|alma|rocky|nld|oes|sjds"
)


def read(text: str) -> dict[str, str]:
    """The settings by name in small letters."""
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return {match[1].lower(): _unescaped(match[2]) for match in found if match}


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def _is_on(settings: Mapping[str, str], name: str) -> bool:
    return settings.get(name, "").lower() == "true"


def guest(settings: Mapping[str, str], disk: Callable[[str], Disk]) -> Guest:
    """The machine as it would be made here; ``disk`` gives the volume behind a file's name.

    Raises:
        PveError: of ``disk``.
    """
    made = Guest(_options(settings))
    for key, file in settings.items():
        match = _DEVICE.fullmatch(key)
        if match and _is_on(settings, f"{match[1]}{match[2]}:{match[3]}.present"):
            _device(made, settings, match, file, disk)
    made.disks = dict(sorted(made.disks.items()))
    _cards(made, settings)
    _serial_ports(made, settings)
    if made.disks:
        made.options["boot"] = "order=" + ";".join(made.disks)
    if settings.get("firmware", "").lower() == "efi":
        made.with_efi()
        if (chosen := made.options.get("scsihw", "")).startswith("lsi"):
            made.warnings.append(Warn(imported.OVMF_LSI, "scsihw", chosen))
    return made


def _options(settings: Mapping[str, str]) -> dict[str, str]:
    options = {"ostype": _ostype(settings.get("guestos", "").lower())}
    if name := imported.guest_name(settings.get("displayname", "")):
        options["name"] = name
    total, each = _number(settings, "numvcpus", 1) or 1, _number(settings, "cpuid.corespersocket", 1)
    sockets = total // each if each and total % each == 0 else 1
    options |= {"sockets": str(sockets), "cores": str(total // sockets)}
    if memory := _number(settings, "memsize", 0):
        options["memory"] = str(memory)
    uuid = re.sub(r"[^0-9a-f]", "", settings.get("uuid.bios", "").lower())
    if len(uuid) == 32:
        parts = (uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:32])
        options["smbios1"] = f"uuid={'-'.join(parts)}"
    return options


def _number(settings: Mapping[str, str], name: str, default: int) -> int:
    text = settings.get(name, "")
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else default


def _ostype(system: str) -> str:
    for beginning, ostype in _SYSTEMS:
        if system.startswith(beginning):
            return ostype
    return "l26" if _LINUX.search(system) else "other"


def _device(
    made: Guest, settings: Mapping[str, str], match: re.Match[str], file: str, disk: Callable[[str], Disk]
) -> None:
    bus, controller, unit = match[1], int(match[2]), int(match[3])
    key = f"{bus}{controller}:{unit}"
    kind = settings.get(f"{key}.devicetype", "disk").lower()
    if "cdrom" in kind:
        if "image" in kind:
            made.warnings.append(Warn(imported.CDROM, key, file))
        return
    if "disk" not in kind or not file.lower().endswith(".vmdk"):
        return
    if bus == "nvme":
        made.warnings.append(Warn(imported.NVME, key, file))
    if bus == "scsi":
        model = SCSI_CONTROLLERS.get(settings.get(f"scsi{controller}.virtualdev", "lsilogic").lower())
        made.options.setdefault("scsihw", model or "lsi")
    number = {"ide": 2 * controller + unit, "sata": 30 * controller + unit}.get(bus, 16 * controller + unit)
    made.attach("scsi" if bus == "nvme" else bus, number, disk(file))


def _cards(made: Guest, settings: Mapping[str, str]) -> None:
    numbers = sorted(
        int(match[1]) for key in settings if (match := _CARD.fullmatch(key)) and _is_on(settings, match[0])
    )
    for number in numbers:
        card = {"model": NIC_MODELS.get(settings.get(f"ethernet{number}.virtualdev", "").lower(), DEFAULT_NIC)}
        address = settings.get(f"ethernet{number}.address") or settings.get(f"ethernet{number}.generatedaddress", "")
        if re.fullmatch(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", address, re.IGNORECASE):
            card["macaddr"] = address.upper()
        made.nets[f"net{number}"] = card


def _serial_ports(made: Guest, settings: Mapping[str, str]) -> None:
    for key in sorted(settings):
        match = _SERIAL.fullmatch(key)
        if match and _is_on(settings, key) and int(match[1]) < 4:
            made.options[f"serial{match[1]}"] = "socket"
            made.warnings.append(Warn(imported.SERIAL, f"serial{match[1]}"))


class Extent(NamedTuple):
    """The file beside a descriptor that holds a disk's data as they are, and the disk's bytes."""

    file: str
    size: int


def extent(text: str, name: str) -> Extent:
    """Where a descriptor says that the data are.

    Raises:
        PveError: this is no descriptor. Refused: the disk lies in several files, below a snapshot, or elsewhere.
    """
    if "# Disk DescriptorFile" not in text[:1024]:
        raise PveError(f"'{name}' is no disk of VMware's")
    parent = _PARENT.search(text)
    if parent:
        raise Refused(f"disk '{name}' lies on '{parent[1]}': remove the snapshots of the machine first")
    found = _EXTENT.findall(text)
    if len(found) != 1:
        raise Refused(f"disk '{name}' lies in {len(found)} files, only disks in one file can be imported")
    _, sectors, kind, file, offset = found[0]
    if kind not in _FLAT or offset.strip("0") or "/" in file:
        raise Refused(f"disk '{name}' keeps its data in '{file}' as {kind}, which can't be imported")
    return Extent(file, int(sectors) * SECTOR)
