"""A host that is always the same, for tests of definitions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pvetools.config import guest
from pvetools.guest.qemu import domain
from pvetools.guest.qemu.place import Place, Source
from pvetools.options.qemu import QemuOptions

UUID = "0f6c2e6a-5f0a-5a0a-8f0a-000000000100"


class Volumes(dict[str, Source]):
    """Any volume of `local`, and any path; devices are block devices."""

    def __missing__(self, volid: str) -> Source:
        path = Path(volid)
        if not volid.startswith("/"):
            name = volid.partition(":")[2]
            path = Path("/var/lib/vz", "template" if name.startswith("iso/") else "images", name)
        block = path.is_relative_to("/dev")
        return Source(str(path), "qcow2" if path.suffix == ".qcow2" else "raw", block)


def place(**changes: object) -> Place:
    """VM 100 below the root `/`."""
    usual = Place(
        100, "pvetools-100", UUID, "/run/pvetools/qemu", "/", Volumes(), {"vmbr0": 1500}, "tap100", True, False
    )
    return usual._replace(**changes)


def section(text: str) -> Mapping[str, str]:
    """The current part of a configuration file."""
    return guest.parse("qemu", 100, text, Path("100.conf")).current


def define(text: str, **changes: object) -> domain.Domain:
    """The domain of a configuration file."""
    return domain.define(QemuOptions.read(section(text)), place(**changes))
