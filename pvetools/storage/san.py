"""What the storages of a SAN share: portals, and volumes that are made on the server and only found here.

Such a volume has its place at the server and its stable name in its name: ``0.0.1.scsi-36001405f3a...`` (channel, id,
LUN) or ``ns1.nvme-uuid.6b0f...``. The last part is the name that udev gives the device in ``/dev/disk/by-id``.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import blockdev, definition
from pvetools.storage.driver import Capabilities, Source, Space, Wish
from pvetools.storage.flat import FlatStorage, Record
from pvetools.storage.names import VolumeName
from pvetools.system import files, lock, log, paths
from pvetools.system.errors import NotFound, PveError, Refused
from pvetools.system.run import run

PATIENCE = 3.0  # for a portal's first answer
QUESTION_PATIENCE = 10.0  # for what it offers
TOOL_PATIENCE = 30.0  # for a login, which the kernel may try more than once
# seconds in which volumes and portals that were found at the server are not looked for again
FRESH, PATHS_FRESH = 10.0, 60.0
BY_ID = Path("/dev/disk/by-id")
_PORTAL = re.compile(r"\[(?P<v6>[^\]]+)\](?::(?P<p6>\d{1,5}))?|(?P<host>[^:]+)(?::(?P<port>\d{1,5}))?", re.ASCII)
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_+@-]{0,222}", re.ASCII)

FOREIGN = Capabilities(files=False, alloc=frozenset(), resize=frozenset(), foreign=True)


# Portals.


class Portal(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def portal(text: str, port: int) -> Portal:
    """Take a portal apart: a name or an address, an IPv6 one in brackets or bare, and a port if not the usual one."""
    match = _PORTAL.fullmatch(text)
    if not match:
        return Portal(text, port)
    return Portal(match["v6"] or match["host"], int(match["p6"] or match["port"] or port))


def connect(place: Portal, timeout: float = PATIENCE) -> socket.socket:
    """A connection to a portal; later waits have the same time-out.

    Raises:
        PveError: it does not answer in time.
    """
    if place.port > 65535:  # the system would take it for another one
        raise PveError(f"portal '{place}' has a port above 65535")
    try:
        return socket.create_connection(place, timeout)
    except (socket.gaierror, UnicodeError):  # the latter for what can be no name
        raise PveError(f"portal '{place}' has no address: the name '{place.host}' is not known") from None
    except TimeoutError:
        raise PveError(f"portal '{place}' does not answer within {timeout:g} seconds") from None
    except OSError as error:
        raise PveError(f"portal '{place}' does not answer: {error.strerror}") from None


def reach(place: Portal) -> str:
    """The address under which a portal answers; a name may have several.

    Raises:
        PveError: none answers in time.
    """
    with contextlib.closing(connect(place)) as made:
        return str(made.getpeername()[0])


def answering(places: Iterable[Portal]) -> list[Portal]:
    """The portals that answer; all are tried at once.

    Raises:
        PveError: none does; what is wrong with the first.
    """
    from concurrent.futures import ThreadPoolExecutor

    wanted = [*dict.fromkeys(places)]
    with ThreadPoolExecutor(len(wanted)) as pool:
        tried = [pool.submit(reach, place) for place in wanted]
    found = [place for place, attempt in zip(wanted, tried, strict=True) if not attempt.exception()]
    if not found:
        tried[0].result()
    return found


def each(places: Sequence[Portal], act: Callable[[Portal], None]) -> list[str]:
    """Do something with several portals side by side; gives what went wrong."""
    from concurrent.futures import ThreadPoolExecutor

    if not places:
        return []
    with ThreadPoolExecutor(len(places)) as pool:
        tried = [pool.submit(act, place) for place in places]
    errors = []
    for attempt in tried:
        try:
            attempt.result()
        except PveError as error:
            errors.append(str(error))
    return errors


def check_target(name: str, what: str) -> str:
    """The name of a target or subsystem, as it may reach the tools.

    Raises:
        PveError: it is none.
    """
    if not _TARGET.fullmatch(name):
        raise PveError(f"value '{name}' of option 'target' does not look like {what}")
    return name


# Devices.


def soon(check: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Whether something comes true before patience is at its end."""
    deadline, pause = time.monotonic() + patience, 0.01
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
    return True


def settle() -> None:
    """Wait until udev has made the names of new devices; a host that is too busy for that is used as it is."""
    with contextlib.suppress(PveError):
        run(["udevadm", "settle", "--timeout=10"], timeout=20)


class StableName(NamedTuple):
    """A name in ``/dev/disk/by-id``; a lower rank is better."""

    rank: int
    name: str


def stable_names(kinds: Sequence[str]) -> dict[str, StableName]:
    """Kernel's name of a device -> its name in ``/dev/disk/by-id`` that begins as one of ``kinds``, the first best."""
    found: dict[str, StableName] = {}
    for link in sorted(BY_ID.glob("*")):
        rank = next((number for number, kind in enumerate(kinds) if re.match(kind, link.name)), None)
        if rank is None or re.search(r"-part\d+$", link.name):
            continue
        device = Path(os.path.realpath(link)).name
        found[device] = min(found.get(device, StableName(len(kinds), "")), StableName(rank, link.name))
    return found


def best(named: Mapping[StableName, str]) -> Iterator[tuple[str, str]]:
    """Of the names that paths to one place have, with their devices, those of the best rank.

    Of several paths, each name of a volume belongs to the one that udev has seen last: perhaps not all to the same.
    """
    return ((name, device) for (rank, name), device in named.items() if rank == min(named).rank)


def bytes_of(device: str) -> int:
    """Size of a device by its kernel's name; 0 when it has gone."""
    try:
        return int(Path("/sys/class/block", device, "size").read_text()) * 512
    except (OSError, ValueError):
        return 0


def attribute(path: Path) -> str:
    """One of the kernel's attributes; empty when it has gone."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


class Lun(NamedTuple):
    """A volume on the server and its device here (the kernel's name)."""

    name: str
    device: str


# Storages.


class ForeignStorage(FlatStorage):
    """Base of storages that show what others have made."""

    info = FOREIGN
    names: re.Pattern[str]  # of volumes; group "device" is the stable name of the device, where there is one
    example: str
    parent_in_name = False

    def parse(self, name: str) -> VolumeName:
        if not self.names.fullmatch(name):
            raise PveError(f"unable to parse {self.definition.type} volume name '{name}', expected {self.example}")
        return VolumeName("images", name)

    def status(self) -> Space:
        return Space()  # nobody tells what the server has left

    def alloc(self, wish: Wish) -> str:
        raise self._made_elsewhere("allocate a volume")

    def free(self, name: str) -> None:
        self.require(name)
        raise self._made_elsewhere(f"remove volume '{self.id}:{name}'")

    def resize(self, name: str, size: int) -> None:
        self.require(name)
        raise self._made_elsewhere(f"resize volume '{self.id}:{name}'")

    def _made_elsewhere(self, what: str) -> Refused:
        return Refused(f"can't {what}: the volumes of storage '{self.id}' are made, sized and removed on its server")


class ConnectedStorage(ForeignStorage):
    """Base of those whose volumes the kernel brings here as block devices."""

    port: int  # that of portals without one

    @property
    def target(self) -> str:
        """Name of the target or subsystem."""
        return self.definition.options.target or ""

    @property
    def portal(self) -> Portal:
        """The portal of the definition."""
        return portal(self.definition.options.portal or "", self.port)

    @abstractmethod
    def paths(self) -> list[tuple[Portal, bool]]:
        """The connections of this host to the target, and whether each works."""

    def remembered(self) -> list[Portal]:
        """Portals of the target that the host knows from earlier."""
        return []

    @abstractmethod
    def connect(self, place: Portal) -> list[str]:
        """Log in to all portals that one tells of, where that is missing; gives what went wrong.

        Raises:
            PveError: that portal does not offer the target.
        """

    @abstractmethod
    def refresh(self) -> None:
        """See which volumes there are now."""

    @abstractmethod
    def disconnect(self) -> None:
        """Log out from everywhere."""

    @abstractmethod
    def luns(self) -> Iterable[Lun]:
        """What is connected."""

    def up(self) -> bool:
        """Whether there is a path to the server."""
        return any(works for _, works in self.paths())

    def prepare(self) -> None:
        reach(self.portal)  # later the others do as well; one that never answered is a mistake

    def activate(self) -> None:
        if self._is_fresh("volumes", FRESH) and self.up():
            return
        reached = self._reached()
        with lock.storage_lock(self.id):
            if self._is_fresh("volumes", FRESH) and self.up():
                return  # somebody else did it while this process waited
            states = [works for _, works in self.paths()]
            if not (states and all(states) and self._is_fresh("paths", PATHS_FRESH)):
                self._connect(reached)
            self.refresh()
            settle()
            self._stamp("volumes")

    def _reached(self) -> Portal:
        """A portal that answers. PveError: none does."""
        try:
            return answering([self.portal, *(place for place, _ in self.paths())])[0]
        except PveError:
            if more := self.remembered():
                with contextlib.suppress(PveError):
                    return answering(more)[0]
            raise

    def _connect(self, reached: Portal) -> None:
        errors = self.connect(reached)
        if not soon(self.up):  # a connection whose server was away comes back by itself
            why = "; ".join(errors) or "no connection works"
            raise PveError(f"storage '{self.id}': can't connect to '{self.target}': {why}")
        for error in errors:
            log.warn(f"storage '{self.id}': a path to '{self.target}' is missing: {error}")
        self._stamp("paths")

    def _stamp_file(self, what: str) -> Path:
        return paths.run_dir() / f"san-{self.id}-{what}"

    def _stamp(self, what: str) -> None:
        file = self._stamp_file(what)
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(file, f"{time.monotonic()}\n")

    def _is_fresh(self, what: str, seconds: float) -> bool:
        text = files.read_text(self._stamp_file(what)) or ""
        try:
            return 0 <= time.monotonic() - float(text) < seconds
        except ValueError:
            return False

    def deactivate(self) -> None:
        with lock.storage_lock(self.id):
            for what in ("volumes", "paths"):
                files.remove(self._stamp_file(what))
            if user := self._user():
                raise Refused(f"storage '{self.id}' stays connected to '{self.target}': {user}")
            self.disconnect()

    def _user(self) -> str:
        """Why the connection is needed, in words."""
        for other in definition.every()[0].values():
            same = (other.type, other.options.target) == (self.definition.type, self.target)
            if same and other.id != self.id and other.enabled:
                return f"storage '{other.id}' uses it as well"
        settle()
        for lun in self.luns():
            if user := blockdev.user_of(Path("/dev", lun.device)):
                return f"volume '{self.id}:{lun.name}' is in use by {user}"
        return ""

    def records(self) -> Iterator[Record]:
        for name, device in sorted({lun.name: lun.device for lun in self.luns()}.items()):
            yield Record(name, bytes_of(device))

    def require(self, name: str) -> Record:
        # The device decides: its number at the server may have changed since the name was written into a configuration,
        # and udev knows it by several names, of which Proxmox VE may have taken another one.
        wanted = self.device(self.parse(name).name)
        device = self.whole(Path(os.path.realpath(wanted)).name)
        found = [lun for lun in self.luns() if self.device(lun.name) == wanted or lun.device == device]
        if not found:
            raise NotFound(f"volume '{self.id}:{name}' does not exist")
        lun = min(found, key=lambda lun: self.device(lun.name) != wanted)
        return Record(lun.name, bytes_of(lun.device))

    def whole(self, device: str) -> str:
        """The device (the kernel's name) that joins all paths to a volume, for one of the paths."""
        return device

    def device(self, own: str, snapshot: str = "") -> Path:
        match = self.names.fullmatch(own)
        return BY_ID / (match["device"] if match else own)

    def source(self, name: str) -> Source:
        return Source("block", self.device(self.require(name).name), "raw")
