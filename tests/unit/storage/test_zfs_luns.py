"""Which LUN of a server is that of a volume: others on the same server have volumes with names that end alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pvetools.storage import lio, registry, volumes
from pvetools.storage.backends.zfs import ZfsOverIscsi
from pvetools.storage.zfs import Pool
from pvetools.system import paths
from pvetools.system.errors import PveError, RunError

DISK = "vm-100-disk-0"


class Server:
    """Has these LUNs, or only what would become some, and remembers the changes that it refuses."""

    def __init__(self, *devices: str, offered: bool = True) -> None:
        self.offered = offered
        self.devices, self.told = devices, list[list[str]]()

    def __call__(self, argv: Sequence[str]) -> str:
        if argv[0] == "python3":
            self.told.append([*argv[3:]])
            raise RunError(argv, 1, "no")
        if argv[2] != lio._LIST:
            return ""
        rows = [(f"lun_{number}" if self.offered else "-", f"store{number}", device)
                for number, device in enumerate(self.devices)]  # fmt: skip
        return "".join("\t".join(row) + "\n" for row in rows)


@pytest.fixture
def storage(root: Path) -> None:
    paths.storage_config().write_text(
        "zfs: far\n\tpool tank\n\tportal 192.0.2.1\n\ttarget iqn.2003-01.org.x:y\n\tiscsiprovider LIO\n"
        "\tlio_tpg tpg1\n\tblocksize 4k\n"
    )


def driver(server: Server, base: str = "") -> ZfsOverIscsi:
    if base:
        with paths.storage_config().open("a") as file:
            file.write(f"\tzfs-base-path {base}\n")
    found = registry.driver(volumes.get("far"))
    assert isinstance(found, ZfsOverIscsi)
    found.pool = Pool(found.pool.dataset, server)
    return found


@pytest.mark.parametrize(
    ("base", "device", "same"),
    [
        ("", "/dev/zvol/tank/vm-100-disk-0", True),
        ("", "/dev/tank/vm-100-disk-0", True),
        ("", "/srv/devices/tank/vm-100-disk-0", True),
        ("", "/dev/zvol/backup/tank/vm-100-disk-0", False),
        ("", "/dev/backup/tank/vm-100-disk-0", False),
        ("", "/dev/zvol/tank/vm-100-disk-00", False),
        ("/srv/devices", "/srv/devices/tank/vm-100-disk-0", True),
        ("/srv/devices", "/dev/zvol/tank/vm-100-disk-0", True),
        ("/srv/devices", "/srv/devices/backup/tank/vm-100-disk-0", False),
        ("/dev", "/dev/zvol/tank/vm-100-disk-0", True),
        ("/dev", "/dev/zvol/backup/tank/vm-100-disk-0", False),
    ],
)
@pytest.mark.usefixtures("storage")
def test_a_lun_is_that_of_a_volume_by_its_whole_path(base: str, device: str, same: bool) -> None:
    kept = driver(Server(device), base)._kept(DISK)
    assert (kept is not None and kept.device == device) == same


@pytest.mark.usefixtures("storage")
def test_of_several_the_one_that_is_sure_is_taken() -> None:
    kept = driver(Server("/srv/tank/vm-100-disk-0", "/dev/zvol/tank/vm-100-disk-0"))._kept(DISK)
    assert kept is not None
    assert kept.number == 1


@pytest.mark.usefixtures("storage")
def test_the_volume_of_another_pool_is_not_hidden() -> None:
    server = Server("/dev/zvol/backup/tank/vm-100-disk-0")
    driver(server).hidden(DISK)
    assert server.told == []


@pytest.mark.usefixtures("storage")
def test_what_the_server_keeps_is_offered_under_its_own_path() -> None:
    server = Server("/srv/devices/tank/vm-100-disk-0", offered=False)
    with pytest.raises(PveError, match="does not let go of device '/srv/devices/tank/vm-100-disk-0': no"):
        driver(server)._offer(DISK)
    kept = ["iqn.2003-01.org.x:y", "1", "store0", "/srv/devices/tank/vm-100-disk-0"]
    assert server.told == [["offer", *kept], ["withdraw", *kept]]
    server = Server()
    with pytest.raises(PveError, match="does not offer device '/dev/zvol/tank/vm-100-disk-0': no"):
        driver(server)._offer(DISK)
    assert server.told[0][-2:] == ["tank-vm-100-disk-0", "/dev/zvol/tank/vm-100-disk-0"]


@pytest.mark.usefixtures("storage")
def test_what_is_offered_already_is_not_offered_again() -> None:
    server = Server("/srv/devices/tank/vm-100-disk-0")
    assert driver(server)._offer(DISK).number == 0
    assert server.told == []
