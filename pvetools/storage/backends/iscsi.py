"""Backend ``iscsi``: LUNs of an iSCSI target, which the kernel's initiator brings here (open-iscsi).

A LUN that several paths lead to is one device of dm-multipath where multipathd runs; that is preferred to the paths.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import iscsi, san
from pvetools.storage.san import Lun, Portal
from pvetools.system import log
from pvetools.system.errors import PveError
from pvetools.system.run import run

_SESSIONS = Path("/sys/class/iscsi_session")
_CONNECTIONS = Path("/sys/class/iscsi_connection")
_JOINING = 8.0  # seconds in which multipathd joins new paths
_DISK = "0"  # type of SCSI devices
_NUMBERS = re.compile(r"\d+:(\d+):(\d+):(\d+)")
# the name by its world wide identifier comes first: the device above the paths has it as well, and no other
_KINDS = (r"scsi-3", r"scsi-", r"dm-uuid-mpath-")


class Session(NamedTuple):
    """A session of the kernel."""

    number: int
    portal: Portal
    works: bool
    host: str


class Iscsi(san.ConnectedStorage):
    """One storage of type ``iscsi``."""

    names = re.compile(
        r"\d{1,5}\.\d{1,5}\.\d{1,20}\.(?P<device>(?:scsi|dm-uuid-mpath)-[A-Za-z0-9][A-Za-z0-9.:_+=@-]{0,200})", re.ASCII
    )
    example = "CHANNEL.ID.LUN.scsi-WWID"
    port = iscsi.PORT

    @property
    def target(self) -> str:
        return san.check_target(
            super().target, "the name of an iSCSI target, such as iqn.2003-01.org.linux-iscsi:disks"
        )

    def _sessions(self) -> list[Session]:
        found = []
        for folder in _SESSIONS.glob("session*"):
            if san.attribute(folder / "targetname") == self.target:
                number = folder.name.removeprefix("session")
                link = _CONNECTIONS / f"connection{number}:0"
                host, port = san.attribute(link / "persistent_address"), san.attribute(link / "persistent_port")
                works = san.attribute(folder / "state") == "LOGGED_IN"
                adapter = next((part[4:] for part in folder.resolve().parts if re.fullmatch(r"host\d+", part)), "")
                found.append(Session(int(number), Portal(host, int(port or self.port)), works, adapter))
        return sorted(found)

    def paths(self) -> list[tuple[Portal, bool]]:
        return [(session.portal, session.works) for session in self._sessions()]

    def remembered(self) -> list[Portal]:
        said = run(["iscsiadm", "-m", "node"], check=False, timeout=san.TOOL_PATIENCE).stdout
        return [place for place, name in iscsi.portals(said) if name == self.target]

    def refresh(self) -> None:
        for session in self._sessions():
            if session.works:  # one that does not would keep this waiting
                _tell(Path(f"/sys/class/scsi_host/host{session.host}/scan"), "- - -")
                for path, _ in _disks_of(session):
                    _tell(path / "device/rescan", "1")
        san.settle()
        self._join()

    def _join(self) -> None:
        """Wait until multipathd has joined the paths that it wants, and tell it which LUNs have grown."""
        if not san.soon(self._is_joined, _JOINING):
            log.warn(f"storage '{self.id}': multipathd has not joined the paths to '{self.target}'")
        maps = {above: path.name for path, _ in self._disks() if (above := _multipath(path))}
        for above, path in maps.items():
            if san.bytes_of(above) != san.bytes_of(path):
                name = san.attribute(Path("/sys/class/block", above, "dm/name"))
                run(["multipathd", "resize", "map", name], check=False, timeout=san.TOOL_PATIENCE)

    def _is_joined(self) -> bool:
        return not any(_is_claimed(path) and not _multipath(path) for path, _ in self._disks())

    def _offered(self, place: Portal) -> list[Portal]:
        """The portals of the target, as one of them tells; one that does not tell them has told them before."""
        try:
            offered = [found for found, name in iscsi.discover(place) if name == self.target]
        except PveError as error:
            if not (offered := self.remembered()):
                raise PveError(f"storage '{self.id}': {error}") from None
        if not offered:
            raise PveError(f"storage '{self.id}': portal '{place}' does not offer the target '{self.target}'")
        return offered

    def connect(self, place: Portal) -> list[str]:
        offered, have = self._offered(place), {portal for portal, _ in self.paths()}
        missing = [portal for portal in offered if portal not in have]
        if not missing:
            return []
        recorded = self.remembered()
        return san.each(missing, lambda portal: self._open(portal, new=portal not in recorded))

    def _open(self, place: Portal, *, new: bool) -> None:
        san.reach(place)
        record = ["iscsiadm", "-m", "node", "-T", self.target, "-p", str(place)]
        if new:
            run([*record, "-o", "new"], timeout=san.TOOL_PATIENCE)
        run([*record, "--login"], timeout=san.TOOL_PATIENCE)

    def disconnect(self) -> None:
        for above in sorted({_multipath(path) for path, _ in self._disks()} - {""}):
            name = san.attribute(Path("/sys/class/block", above, "dm/name"))
            run(["multipath", "-f", name], timeout=san.TOOL_PATIENCE)
        if self._sessions():
            run(["iscsiadm", "-m", "node", "-T", self.target, "--logout"], timeout=san.TOOL_PATIENCE)

    def _disks(self) -> Iterator[tuple[Path, str]]:
        for session in self._sessions():
            yield from _disks_of(session)

    def whole(self, device: str) -> str:
        return _multipath(Path(device)) or device

    def luns(self) -> Iterator[Lun]:
        stable = san.stable_names(_KINDS)
        found: dict[str, dict[san.StableName, str]] = {}
        for folder, numbers in self._disks():
            device = self.whole(folder.name)
            if device in stable:
                found.setdefault(numbers, {})[stable[device]] = device
        for numbers, named in found.items():
            for name, device in san.best(named):
                yield Lun(f"{numbers}.{name}", device)


def _disks_of(session: Session) -> Iterator[tuple[Path, str]]:
    """The kernel's folder of every disk of a session, and CHANNEL.ID.LUN."""
    for folder in Path(_SESSIONS, f"session{session.number}/device").glob("target*/*/block/*"):
        match = _NUMBERS.fullmatch(folder.parts[-3])
        if match and san.attribute(folder.parents[1] / "type") == _DISK:
            yield folder, ".".join(match.groups())


def _tell(attribute: Path, text: str) -> None:
    """Ask the kernel for something; a device that goes away at this moment is no error."""
    with contextlib.suppress(OSError):
        attribute.write_text(text)


def _multipath(path: Path) -> str:
    """The device of dm-multipath above a path."""
    for holder in Path("/sys/class/block", path.name, "holders").glob("dm-*"):
        if san.attribute(holder / "dm/uuid").startswith("mpath-"):
            return holder.name
    return ""


def _is_claimed(path: Path) -> bool:
    """Whether udev keeps a path for multipathd."""
    known = san.attribute(Path("/run/udev/data", f"b{san.attribute(path / 'dev')}"))
    return "E:DM_MULTIPATH_DEVICE_PATH=1" in known.splitlines() and Path("/run/multipathd.pid").exists()
