"""Virtual machines that come from elsewhere: what a storage can say about one, and how to get at its disks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from pvetools.storage.driver import Source
from pvetools.system.errors import PveError

# Kinds of warnings, in the words of the public interface.
CDROM = "cdrom-image-ignored"
EFI_STATE = "efi-state-lost"
RUNNING = "guest-is-running"
NVME = "nvme-unsupported"
EXTRACTING = "ova-needs-extracting"
OVMF_LSI = "ovmf-with-lsi-unsupported"
SERIAL = "serial-port-socket-only"
_SLOTS = {"ide": 4, "sata": 6, "scsi": 31}


class Warn(NamedTuple):
    """Something that does not come along; ``key`` and ``value`` say which option it is about."""

    type: str
    key: str = ""
    value: str = ""


class Disk(NamedTuple):
    """A disk: where the guest will have it, and its volume; ``size`` in bytes, 0 when nobody knows it yet."""

    volume: str
    size: int = 0


@dataclass
class Guest:
    """A virtual machine in our words: options, disks and network cards by key, and what does not come along."""

    options: dict[str, str] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    nets: dict[str, dict[str, str]] = field(default_factory=dict)
    warnings: list[Warn] = field(default_factory=list)
    firmware_disk: bool = False

    def attach(self, bus: str, number: int, disk: Disk) -> None:
        """Give a disk its place, or the next free one on the bus when it is taken."""
        places = [f"{bus}{number}", *(f"{bus}{other}" for other in range(_SLOTS[bus]))]
        key = next((place for place in places if place not in self.disks and self._fits(place)), None)
        if key is not None:
            self.disks[key] = disk
        elif bus == "scsi":
            raise PveError("the machine has more disks than there are places for")
        else:
            self.attach("scsi", 0, disk)

    def _fits(self, place: str) -> bool:
        bus = place.rstrip("0123456789")
        return int(place[len(bus) :]) < _SLOTS[bus]

    def with_efi(self) -> None:
        """It starts by UEFI; its variables stay behind."""
        self.options["bios"] = "ovmf"
        self.firmware_disk = True
        self.warnings.append(Warn(EFI_STATE, "bios", "ovmf"))


def guest_name(text: str, *, filler: str = "-") -> str:
    """A name that a guest may have, made of any text; ``filler`` stands for signs that names can't have."""
    return re.sub(r"-+", "-", re.sub(r"[^a-zA-Z0-9.-]", filler, text))[:63].strip("-.")


@runtime_checkable
class ImportSource(Protocol):
    """A backend whose content of type ``import`` is guests and disks from elsewhere."""

    def guest(self, name: str) -> Guest:
        """What the volume says about its guest.

        Raises:
            PveError: it describes none, or is damaged.
        """

    def importable(self, name: str, folder: Path | None = None) -> AbstractContextManager[Source]:
        """A disk in the reach of QEMU's tools while the block lasts; it reads nothing else of the host.

        What has to be unpacked for that goes into a folder, or into one of the storage itself.
        """


def as_data(guest: Guest, storage: str, type_: str) -> Mapping[str, object]:
    """The answer of ``import-metadata``."""
    disks: dict[str, object] = {
        key: {"volid": f"{storage}:{disk.volume}", **({"size": disk.size} if disk.size else {})}
        for key, disk in guest.disks.items()
    }
    if guest.firmware_disk:
        disks["efidisk0"] = 1
    return {
        "type": "vm",
        "source": type_,
        "create-args": guest.options,
        "disks": disks,
        "net": guest.nets,
        "warnings": [{key: text for key, text in warning._asdict().items() if text} for warning in guest.warnings],
    }
