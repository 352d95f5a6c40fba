"""What a storage backend is: capabilities as data, and the methods that every backend has.

Callers ask ``driver.info`` what a backend can do; nobody asks for its type.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from pvetools.storage.definition import Definition
from pvetools.storage.names import VolumeName
from pvetools.system.errors import PveError

_MOST_BYTES = (1 << 63) - 1024  # as many as a file can have, in whole KiB


class Capabilities(NamedTuple):
    """What a backend can do, by image format where it depends on that."""

    files: bool  # volumes are files or folders, and archives, templates and ISO images can be kept
    alloc: frozenset[str]
    resize: frozenset[str]
    online_resize: frozenset[str] = frozenset()  # also while somebody uses the volume
    snapshot: frozenset[str] = frozenset()
    rollback_to_newest: bool = False  # only to the newest snapshot: newer ones have to go first
    base: frozenset[str] = frozenset()  # can be made the base of linked clones
    limits_folders: bool = False  # folders (format subvol) take a size
    foreign: bool = False  # volumes are made elsewhere, here they are only found
    io_uring: str = "always"  # QEMU may use it: always, direct (only without the host's page cache), never
    cache: str = "none"  # QEMU's cache mode when nobody asks for another one
    # formats of streams by image format, the best first, where they are not the usual ones
    export: Mapping[str, tuple[str, ...]] = {}
    import_: Mapping[str, tuple[str, ...]] = {}

    def exports(self, form: str) -> tuple[str, ...]:
        """Formats of streams that volumes of an image format can be written as, the best first."""
        return self.export.get(form, self._usual(form))

    def imports(self, form: str) -> tuple[str, ...]:
        """Formats of streams that volumes of an image format can be made from."""
        return self.import_.get(form, self._usual(form)) if form in self.alloc else ()

    def _usual(self, form: str) -> tuple[str, ...]:
        if form == "subvol":
            return ("tar+size",)
        return (f"{form}+size", "raw+size") if self.files and form != "raw" else ("raw+size",)


class Space(NamedTuple):
    """Bytes of a storage."""

    total: int = 0
    used: int = 0
    avail: int = 0


class Network(NamedTuple):
    """A volume on a server that QEMU talks to itself, in libvirt's words.

    Args:
        protocol: ``rbd`` or ``iscsi``.
        name: POOL/IMAGE, or TARGET/LUN.
        hosts: names or addresses with ports; 0: the protocol's own.
        user: user name at the server; empty: no authentication.
        secret: file that holds the user's key or password.
        config: configuration file of the protocol's library.
        initiator: name of this host at an iSCSI target; empty: QEMU's own.
    """

    protocol: str
    name: str
    hosts: tuple[tuple[str, int], ...] = ()
    user: str = ""
    secret: Path | None = None
    config: Path | None = None
    initiator: str = ""


class Source(NamedTuple):
    """How QEMU or a mount reaches a volume.

    Args:
        kind: ``file``, ``block`` (a device) or ``folder``, all at ``path``; or ``network``, which QEMU alone can reach.
        path: where it is; of network volumes a name for messages.
        format: raw, qcow2, vmdk, subvol.
        url: what QEMU's tools open in place of a path; never with a secret in it.
        network: the server behind a network volume.
        options: words that QEMU's tools need besides to open ``image``, each complete in itself, such as
            ``--object=secret,...`` with the file of a password.
        blank: as a new volume it reads as zeros everywhere, so zeros need not be written.
    """

    kind: str
    path: Path
    format: str
    url: str = ""
    network: Network | None = None
    options: tuple[str, ...] = ()
    blank: bool = True

    @property
    def image(self) -> str:
        """What QEMU's tools open."""
        return self.url or str(self.path)


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume of a listing. Sizes in bytes; ``ctime`` in seconds since the epoch; ``parent`` as the image says it.

    ``size`` is the virtual size of images, 0 for folders.
    """

    volid: str
    content: str
    format: str
    size: int
    used: int = 0
    vmid: int | None = None
    ctime: int = 0
    parent: str = ""
    subtype: str = ""
    notes: str = ""
    protected: bool = False

    def as_data(self) -> dict[str, object]:
        """The fields that apply, for output."""
        data: dict[str, object] = {
            "volid": self.volid, "content": self.content, "format": self.format, "size": self.size, "ctime": self.ctime,
        }  # fmt: skip
        if self.content in ("images", "rootdir"):
            data["used"] = self.used
        optional = {"vmid": self.vmid, "parent": self.parent, "subtype": self.subtype, "notes": self.notes}
        data |= {key: value for key, value in optional.items() if value}
        if self.protected:
            data["protected"] = 1
        return data


class Snapshot(NamedTuple):
    """A snapshot of a volume; ``ctime`` in seconds since the epoch."""

    name: str
    ctime: int


class Stream(NamedTuple):
    """What a stream in a storage's own format holds.

    Args:
        snapshot: the state that it brings.
        base: an older snapshot that the other side has: only what has changed since is in the stream.
        between: further snapshots before ``snapshot`` that go along, oldest first.
    """

    snapshot: str
    base: str = ""
    between: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wish:
    """A volume to be made; ``size`` in bytes. An empty name lets the backend choose the next free one."""

    vmid: int
    size: int
    format: str
    name: str = ""

    def check_size(self) -> None:
        """Refuse sizes that no volume can have; those of folders may be 0. PveError."""
        if self.size <= 0 and not (self.format == "subvol" and self.size == 0):
            raise PveError("the size of a volume must be larger than 0")
        if self.size > _MOST_BYTES:
            raise PveError("the size of a volume must be smaller than 8 EiB")


class Driver(Protocol):
    """A backend at work for one storage."""

    info: Capabilities
    definition: Definition

    def prepare(self) -> None:
        """Make what is missing below the storage, just before it is defined, if its options ask for that."""

    def activate(self) -> None:
        """Make the storage usable, or say why it is not. Cheap when it is usable already."""

    def verify(self) -> None:
        """Prove that the storage can be reached as it is defined, also while it is active with an older definition."""

    def deactivate(self) -> None:
        """Undo ``activate``: unmount, log out; what guests use stays. For a storage that is removed."""

    def status(self) -> Space:
        """Size and free space."""

    def parse(self, name: str) -> VolumeName:
        """Take a volume name apart; refuses malformed ones before any path is touched."""

    def path(self, name: str, snapshot: str = "") -> Path:
        """Where a volume lies; it need not exist."""

    def directory(self, content: str) -> Path:
        """Folder of one content type."""

    def name_of(self, path: Path) -> str | None:
        """Volume name of a file of this storage; None for foreign paths."""

    def source(self, name: str) -> Source:
        """How to reach an existing volume."""

    def mountable(self, name: str) -> Source:
        """The same in the reach of the kernel, for containers: never of kind ``network`` where that can be had."""

    def volumes(self, contents: Collection[str], vmid: int | None) -> Iterator[Volume]:
        """Volumes of some content types; of images and archives only those of one guest, where one is given."""

    def volume(self, name: str) -> Volume:
        """One volume; NotFound."""

    def alloc(self, wish: Wish) -> str:
        """Make a volume; gives its name. Leaves nothing behind when it fails."""

    def free(self, name: str) -> None:
        """Remove a volume; refuses protected ones, those in use, and those that others lie on. NotFound."""

    def resize(self, name: str, size: int) -> None:
        """Grow a volume to ``size`` bytes; used ones only where ``info.online_resize`` says so."""

    def snapshots(self, name: str) -> list[Snapshot]:
        """Snapshots of a volume, oldest first."""

    def snapshot(self, name: str, snapshot: str) -> None:
        """Keep the state that a volume has now. Exists."""

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Forget a state; the volume and its other snapshots stay. NotFound."""

    def rollback(self, name: str, snapshot: str) -> None:
        """Give a volume that nobody uses the state of a snapshot, which stays. NotFound."""

    def make_base(self, name: str) -> str:
        """Make a volume that nobody uses the base of linked clones, never to be written again; gives its new name."""

    def clone(self, name: str, vmid: int) -> str:
        """Make a linked clone of a base volume for a guest; gives its name."""

    def notes(self, name: str) -> str:
        """Notes of a volume, complete."""

    def set_notes(self, name: str, text: str) -> None:
        """Replace the notes; empty ones are removed."""

    def protect(self, name: str, on: bool) -> None:
        """Guard a volume against removal, or lift that."""


class Streaming(Protocol):
    """What a backend has besides when its storage has streams of its own (formats without ``+size``)."""

    def send(self, name: str, what: Stream, out: int) -> None:
        """Write a volume's snapshots to a descriptor."""

    def receive(self, name: str, what: Stream, source: int, *, rename: bool) -> str:
        """Make a volume, or bring it from ``base`` to ``snapshot``; gives its name. Leaves nothing when it fails.

        Args:
            name: wanted name.
            what: what the stream is expected to hold.
            source: descriptor to read from.
            rename: take another name when the wanted one is used.
        """


@runtime_checkable
class Confined(Protocol):
    """A driver whose images lie on something that does not grow with them."""

    def make_room(self, name: str, size: int) -> None:
        """Give an image that QEMU uses and will grow to ``size`` bytes the space that it may need then."""
