"""Backend ``nvmeof``: namespaces of an NVMe subsystem over TCP, which the kernel brings here (nvme-cli).

Several portals are several paths to one device: the kernel's own multipathing joins them. A volume is named by the id
of its namespace and the name that udev gives it: ``ns1.nvme-uuid.6b0f4e5c-...``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import nvmeof, san
from pvetools.storage.san import Lun, Portal
from pvetools.system.errors import PveError
from pvetools.system.run import run

_RECONNECT = 2  # seconds between tries to get a lost connection back
_CONTROLLERS = Path("/sys/class/nvme")
_NAMESPACE = re.compile(r":0x([0-9a-fA-F]+)")
_PATH = re.compile(r"(nvme\d+)(?:c\d+)?(n\d+)")
_KINDS = (r"nvme-(?:uuid|eui)\.", r"nvme-nvme\.", r"nvme-")


class Controller(NamedTuple):
    """A path to the subsystem."""

    name: str
    portal: Portal
    works: bool


class NvmeOf(san.ConnectedStorage):
    """One storage of type ``nvmeof``."""

    names = re.compile(r"ns\d{1,10}\.(?P<device>nvme-[A-Za-z0-9][A-Za-z0-9.:_+=@-]{0,200})", re.ASCII)
    example = "nsID.nvme-WWID"
    port = nvmeof.PORT

    @property
    def target(self) -> str:
        return san.check_target(
            super().target, "the NQN of an NVMe subsystem, such as nqn.2014-08.org.nvmexpress:disks"
        )

    def _controllers(self) -> list[Controller]:
        found = []
        for folder in _CONTROLLERS.glob("nvme*"):
            if san.attribute(folder / "subsysnqn") == self.target and san.attribute(folder / "transport") == "tcp":
                pairs = (word.partition("=") for word in san.attribute(folder / "address").split(","))
                where = {key: value for key, _, value in pairs}
                place = Portal(where.get("traddr", ""), int(where.get("trsvcid") or self.port))
                found.append(Controller(folder.name, place, san.attribute(folder / "state") == "live"))
        return sorted(found)

    def paths(self) -> list[tuple[Portal, bool]]:
        return [(controller.portal, controller.works) for controller in self._controllers()]

    def connect(self, place: Portal) -> list[str]:
        offered = [portal for portal, name in nvmeof.discover(place) if name == self.target]
        if not offered:
            raise PveError(f"storage '{self.id}': portal '{place}' does not offer the subsystem '{self.target}'")
        have = {portal for portal, _ in self.paths()}
        errors = san.each([portal for portal in offered if portal not in have], self._open)
        self._wait_for_namespaces()
        return errors

    def refresh(self) -> None:
        """The server tells the kernel of new namespaces itself."""

    def _wait_for_namespaces(self) -> None:
        """The kernel looks for them when a connection is up already."""
        working = next((controller.name for controller in self._controllers() if controller.works), "")
        if working:
            said = run(["nvme", "list-ns", f"/dev/{working}"], check=False, timeout=san.QUESTION_PATIENCE).stdout
            wanted = {int(number, 16) for number in _NAMESPACE.findall(said)}
            san.soon(lambda: wanted <= {int(number or 0) for _, number in self._namespaces()})

    def _open(self, place: Portal) -> None:
        address = san.reach(place)
        words = ["nvme", "connect", "-t", "tcp", "-a", address, "-s", str(place.port), "-n", self.target]
        run([*words, f"--reconnect-delay={_RECONNECT}"], timeout=san.TOOL_PATIENCE)

    def disconnect(self) -> None:
        if self._controllers():
            run(["nvme", "disconnect", "-n", self.target], timeout=san.TOOL_PATIENCE)

    def _namespaces(self) -> Iterator[tuple[str, str]]:
        """The kernel's name and the id of every namespace, once for each path."""
        for controller in self._controllers():
            for folder in (_CONTROLLERS / controller.name).glob("nvme*n*"):
                if match := _PATH.fullmatch(folder.name):
                    device = match[1] + match[2]
                    yield device, san.attribute(Path("/sys/class/block", device, "nsid"))

    def luns(self) -> Iterator[Lun]:
        stable = san.stable_names(_KINDS)
        for device, number in self._namespaces():
            if device in stable and number:
                yield Lun(f"ns{number}.{stable[device].name}", device)
