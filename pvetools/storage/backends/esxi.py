"""Backend ``esxi``: virtual machines of a VMware server, to be imported. Nothing is changed there."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import images, imported, nbdserver, secrets, vmx, vsphere
from pvetools.storage.driver import Source, Space, Volume
from pvetools.storage.flat import Record
from pvetools.storage.imported import Disk, Guest, Warn
from pvetools.storage.names import VolumeName
from pvetools.storage.san import ForeignStorage
from pvetools.storage.vsphere import Inventory, Place, Reader, Server, Session
from pvetools.system.errors import PveError, Refused

_NAME = re.compile(r"([^/\x00-\x1f\x7f]+)/([^/\x00-\x1f\x7f]+)/([^\x00-\x1f\x7f]+\.(vmx|vmdk))")
_HEAD = 64 << 10
_LARGEST = 1 << 20  # bytes of a configuration


class _Image(NamedTuple):
    """Where the data of a disk are, in which of QEMU's formats, and how many bytes the disk has."""

    place: Place
    format: str
    size: int


class Esxi(ForeignStorage):
    """One storage of type ``esxi``. A volume is ``DATACENTER/DATASTORE/PATH``: a configuration or a disk."""

    # The server.

    def _server(self) -> Server:
        options = self.definition.options
        password = secrets.read(self.id, self.definition.type, "password")
        if password is None:
            raise PveError(f"storage '{self.id}' has no password; set it with: pvesm set {self.id} --password")
        return Server(
            str(options.server), options.port or 443, str(options.username), password,
            verify=not options.skip_cert_verification,
        )  # fmt: skip

    def _session(self) -> contextlib.AbstractContextManager[Session]:
        return vsphere.session(self._server())

    def activate(self) -> None:
        """Nothing to do before somebody asks for something."""

    def verify(self) -> None:
        with self._session():
            pass

    def status(self) -> Space:
        self.verify()
        return super().status()

    # Names.

    def parse(self, name: str) -> VolumeName:
        match = _NAME.fullmatch(name)
        if not match or {"", ".", ".."} & set(name.split("/")):
            raise PveError(
                f"unable to parse esxi volume name '{name}', expected DATACENTER/DATASTORE/PATH.vmx or .vmdk"
            )
        return VolumeName("import", name, match[4])

    def _place(self, name: str) -> Place:
        return Place(*self.parse(name).name.split("/", 2))

    def records(self) -> Iterable[Record]:
        return ()

    def device(self, own: str, snapshot: str = "") -> Path:
        raise Refused(
            f"volume '{self.id}:{own}' has no path here: it lies on server '{self.definition.options.server}'"
        )

    # What there is.

    def volumes(self, contents: Collection[str], vmid: int | None) -> Iterator[Volume]:
        if "import" in contents:
            with self._session() as session:
                for machine in session.inventory().machines:
                    yield Volume(f"{self.id}:{machine.place}", "import", "vmx", 0)

    def volume(self, name: str) -> Volume:
        parsed, place = self.parse(name), self._place(name)
        with self._session() as session:
            size = self._image(session, place).size if parsed.format == "vmdk" else session.size(place)
        return Volume(f"{self.id}:{name}", "import", parsed.format, size)

    def require(self, name: str) -> Record:
        found = self.volume(name)
        return Record(name, found.size, found.format)

    def source(self, name: str) -> Source:
        found = self.volume(name)
        return Source("network", Path(f"/{name}"), found.format)

    # Import.

    def guest(self, name: str) -> Guest:
        if self.parse(name).format != "vmx":
            raise Refused(f"volume '{self.id}:{name}' describes no guest: a .vmx is expected")
        place = self._place(name)
        with self._session() as session:
            text = _text(session.read(place, _LARGEST))
            inventory = session.inventory()

            def disk(file: str) -> Disk:
                there = inventory.resolve(file, place)
                return Disk(str(there), self._image(session, there).size)

            found = vmx.guest(vmx.read(text), disk)
        if _runs(inventory, place):
            found.warnings.append(Warn(imported.RUNNING))
        return found

    def _image(self, session: Session, place: Place) -> _Image:
        """The data of a disk.

        Raises:
            NotFound. PveError: damaged. Refused: it lies in other files or below a snapshot.
        """
        head = session.read(place, _HEAD)
        if head[:4] in (b"KDMV", b"COWD"):
            return _Image(place, "vmdk", _sparse_size(head, place))
        found = vmx.extent(_text(head), str(place))
        flat = place.beside(found.file)
        if session.size(flat) < found.size:
            raise PveError(f"'{flat}' is shorter than the {found.size} bytes of disk '{place}'")
        return _Image(flat, "raw", found.size)

    @contextlib.contextmanager
    def importable(self, name: str, folder: Path | None = None) -> Iterator[Source]:
        """QEMU asks this process for pieces of the disk, which asks the server: no secret leaves it."""
        if self.parse(name).format != "vmdk":
            raise Refused(f"volume '{self.id}:{name}' is no disk; name one of its disks, as import-metadata shows them")
        with self._session() as session:
            image = self._image(session, self._place(name))
            reader = Reader(session, image.place)
            with nbdserver.serving(session.size(image.place), reader.read) as url:
                yield Source("network", Path(f"/{name}"), image.format, url)


def _runs(inventory: Inventory, place: Place) -> bool:
    return any(machine.place == place and not machine.off for machine in inventory.machines)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _sparse_size(head: bytes, place: Place) -> int:
    """Bytes of a disk whose file has VMware's sparse header; it must need no other file."""
    with tempfile.NamedTemporaryFile(suffix=".vmdk") as file:
        file.write(head)
        file.flush()
        try:
            return images.check_foreign(Path(file.name), "vmdk").size
        except PveError as error:
            kind = Refused if isinstance(error, Refused) else PveError
            raise kind(str(error).replace(file.name, str(place))) from None
