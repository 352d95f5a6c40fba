"""Roots of containers from images of OCI registries: the layers of an archive become one stream that tar unpacks.

A file of a layer replaces what the layers below have in its place; ``.wh.NAME`` removes NAME from them, and
``.wh..wh..opq`` everything that they have in that folder. What is hidden that way never reaches the root.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shlex
import tarfile
import threading
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from pvetools.guest.lxc import tar
from pvetools.guest.lxc.idmap import IdMap
from pvetools.options.lxc import LxcOptions
from pvetools.schema.core import NestedErrors
from pvetools.system import log
from pvetools.system.errors import PveError, Refused
from pvetools.system.streams import pipe

_LAYOUT, _INDEX = "oci-layout", "index.json"
_LARGEST = 4 << 20  # bytes of a description
_MOST = 200  # parts of an image
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_MARK, _OPAQUE = ".wh.", ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_ARCHITECTURES = {"amd64": "amd64", "386": "i386", "arm64": "arm64", "arm": "armhf", "riscv64": "riscv64"}
# the last two come out of tarfile: numbers that are none, headers before headers before headers
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, RecursionError)


class _Layer(NamedTuple):
    member: tarfile.TarInfo
    packed: bool


class Image:
    """An archive in OCI's layout: its layers, the lowest first, and how its program is started."""

    def __init__(self, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> None:
        self._archive, self._members = archive, members
        rows = _rows(self._read(_INDEX), "manifests")
        if len(rows) != 1:
            raise Refused(f"the archive holds {len(rows)} images, one is expected")
        manifest = self._read(self._blob(rows[0]))
        self.config = self._read(self._blob(manifest.get("config")))
        self.layers = [self._layer(row) for row in _rows(manifest, "layers")]

    def _read(self, name: str) -> dict[str, Any]:
        member = self._members[name]
        file = self._archive.extractfile(member)
        if file is None or member.size > _LARGEST:
            raise PveError(f"'{name}' in the archive is no description of an image")
        try:
            return _object(json.loads(file.read()))
        except (ValueError, RecursionError) as error:
            raise PveError(f"'{name}' in the archive is damaged: {error}") from None

    def _blob(self, row: object) -> str:
        """Name of the member that a description names by its checksum."""
        digest = str(_object(row).get("digest"))
        name = "blobs/" + digest.replace(":", "/")
        if not _DIGEST.fullmatch(digest) or name not in self._members:
            raise PveError(f"part '{_in_one_line(digest)}' of the image is not in the archive")
        return name

    def _layer(self, row: object) -> _Layer:
        kind = str(_object(row).get("mediaType"))
        if kind.endswith((".tar", "/tar")):
            return _Layer(self._members[self._blob(row)], packed=False)
        if not kind.endswith(("+gzip", ".gzip")):
            raise Refused(f"a layer of the image is of kind '{_in_one_line(kind)}', which can't be unpacked")
        return _Layer(self._members[self._blob(row)], packed=True)

    @contextlib.contextmanager
    def opened(self, layer: _Layer) -> Iterator[tarfile.TarFile]:
        """The members of a layer, to be read once from the first to the last."""
        raw = self._archive.extractfile(layer.member)
        with contextlib.ExitStack() as stack:
            file = cast(IO[bytes], stack.enter_context(gzip.open(raw)) if layer.packed and raw else raw)
            yield stack.enter_context(tarfile.open(fileobj=file, mode="r|"))


def _in_one_line(text: str) -> str:
    """For messages: signs that can't be printed are spelled out."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _object(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise PveError("the description of the image is malformed")
    return found


def _rows(found: dict[str, Any], name: str) -> list[Any]:
    rows = found.get(name) or []
    if not isinstance(rows, list) or len(rows) > _MOST:
        raise PveError(f"the description of the image is malformed: '{name}'")
    return rows


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image | None]:
    """The image that an archive holds; None when it is another kind of archive, such as a plain template."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = _parts(archive)
            yield Image(archive, members) if members else None
    except _DAMAGED as error:
        raise PveError(f"'{path.name}' is damaged: {_in_one_line(str(error))}") from None


def _parts(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Members of an archive in OCI's layout; nothing for another one, which shows at once."""
    found: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        name = member.name.removeprefix("./").rstrip("/")
        top = name.partition("/")[0]
        if top not in ("", "blobs", _LAYOUT, _INDEX, "manifest.json", "repositories") or len(found) > _MOST:
            return {}
        if member.isreg():
            found[name] = member
    return found if {_LAYOUT, _INDEX} <= found.keys() else {}


def is_image(path: Path) -> bool:
    """Whether a file is such an archive; what is wrong with another one shows when it is unpacked."""
    try:
        with tarfile.open(path, "r:") as archive:
            return bool(_parts(archive))
    except _DAMAGED:
        return False


def options(path: Path, given: Collection[str] = ()) -> dict[str, str]:
    """Options of a container that does what the image was made for.

    Args:
        path: archive in OCI's layout.
        given: options that the user has given: what the image says about these does not count.

    Raises:
        PveError: damaged. Refused: it asks for what a container can't have.
    """
    with opened(path) as image:
        if image is None:
            return {}
        found: dict[str, str] = {}
        run = _object(image.config.get("config") or {})
        words = [str(word) for key in ("Entrypoint", "Cmd") for word in _rows(run, key)]
        if words:
            found["entrypoint"] = shlex.join(words)
        if pairs := [str(pair) for pair in _rows(run, "Env")]:
            found["env"] = "\0".join(pairs)
        if arch := _ARCHITECTURES.get(str(image.config.get("architecture"))):
            found["arch"] = arch
        try:
            return LxcOptions.check({key: text for key, text in found.items() if key not in given}).texts()
        except NestedErrors as error:
            why = _in_one_line("; ".join(f"{key}: {reason}" for key, reason in error.errors.items()))
            raise Refused(f"image '{path.name}' asks for what a container can't have: {why}") from None


# -- layers ------------------------------------------------------------------------------------------------------------


class _Hidden:
    """What the layers above one hide of it."""

    def __init__(self) -> None:
        self.whole: set[str] = set()  # with everything below
        self.below: set[str] = set()  # only what lies below
        self.folders: set[str] = set()  # everything but folders

    def __contains__(self, member: tarfile.TarInfo) -> bool:
        name = member.name
        if name in self.whole or (name in self.folders and not member.isdir()):
            return True
        while name:
            name = name.rpartition("/")[0]
            if name in self.whole or name in self.below:
                return True
        return False

    def add(self, members: list[tuple[str, bool]]) -> None:
        """Note what a layer with these members (name, whether it is a folder) hides of those below it."""
        for name, folder in members:
            above, _, last = name.rpartition("/")
            if last == _OPAQUE:
                self.below.add(above)
            elif last.startswith(_MARK):
                self.whole.add(f"{above}/{last[len(_MARK) :]}".lstrip("/"))
            elif folder:
                self.folders.add(name)
            else:
                self.whole.add(name)

    def copy(self) -> _Hidden:
        made = _Hidden()
        made.whole, made.below, made.folders = set(self.whole), set(self.below), set(self.folders)
        return made


class _Part(NamedTuple):
    """What is left of a layer.

    Args:
        hidden: what the layers above it hide.
        behind: the file that a hard link leads to at last; of the files themselves only hidden ones.
        heirs: hidden files that a hard link keeps alive; the first such link has the data.
    """

    hidden: _Hidden
    behind: dict[str, str]
    heirs: dict[str, str]

    def kept(self, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """A member as it is to be unpacked; None: not at all."""
        name = member.name
        if _is_mark(name):
            return None
        if name in self.heirs and not member.isdir() and not member.islnk():
            member.name = self.heirs[name]
            return member
        if member in self.hidden:
            return None
        if not member.islnk():
            return member
        target = self.behind.get(member.linkname, member.linkname)
        member.linkname = self.heirs.get(target, target)
        return None if self.heirs.get(target) == name else member


def _is_mark(name: str) -> bool:
    return name.rpartition("/")[2].startswith(_MARK)


def _plain_name(name: str) -> str:
    return re.sub(r"^(?:\./+|/+)+", "", name).rstrip("/") or "."


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member with its name as the others write it; what else its header says stays, long names apart."""
    member.name = _plain_name(member.name)
    if member.islnk():
        member.linkname = _plain_name(member.linkname)
    member.pax_headers = {key: text for key, text in member.pax_headers.items() if key.startswith(_XATTR)}
    return member


def _parts_left(image: Image) -> list[_Part]:
    """What is left of each layer."""
    now, found = _Hidden(), []
    for layer in reversed(image.layers):
        part = _Part(now.copy(), {}, {})
        seen: list[tuple[str, bool]] = []
        with image.opened(layer) as members:
            for member in map(_plain, members):
                seen.append((member.name, member.isdir()))
                if member.islnk():
                    _inherit(part, member)
                elif not member.isdir() and member in part.hidden and not _is_mark(member.name):
                    part.behind[member.name] = member.name
        now.add(seen)
        found.append(part)
    return found[::-1]


def _inherit(part: _Part, member: tarfile.TarInfo) -> None:
    """Note where a hard link leads, and that it has the data now if what it leads to is hidden."""
    target = part.behind.get(member.linkname, member.linkname)
    if target == member.name:
        return
    if target in part.behind and member not in part.hidden:
        part.heirs.setdefault(target, member.name)
    part.behind.setdefault(member.name, target)


def _flatten(image: Image, out: IO[bytes]) -> None:
    """Write what all layers give together, as one archive."""
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as made:
        for number, (layer, part) in enumerate(zip(image.layers, _parts_left(image), strict=True), 1):
            log.emit(f"layer {number} of {len(image.layers)}")
            with image.opened(layer) as members:
                for member in members:
                    content = members.extractfile(member) if member.isreg() else None
                    if kept := part.kept(_plain(member)):
                        made.addfile(kept, content)


def unpack(path: Path, root: Path, ids: IdMap, *, ignore_errors: bool = False) -> None:
    """Unpack an image into a mounted root, as the container's root.

    Args:
        path: archive in OCI's layout.
        root: directory of the host that becomes the container's ``/``.
        ids: the container's id map.
        ignore_errors: go on when single members cannot be made.

    Raises:
        PveError: damaged, with members that lie outside, a full storage.
    """
    failed: list[BaseException] = []

    def write(image: Image, inlet: IO[bytes]) -> None:
        try:
            with inlet:
                _flatten(image, inlet)
        except BrokenPipeError:
            pass  # whoever reads has said why
        except BaseException as error:
            failed.append(error)

    try:
        with opened(path) as image, pipe() as (outlet, inlet):
            if image is None:
                raise PveError("it is no image of an OCI registry")
            writer = threading.Thread(target=write, args=(image, inlet), daemon=True)
            writer.start()
            try:
                argv = tar.extract_command(root, ids)
                tar.extract(outlet.fileno(), argv, devices=not ids.entries, ignore_errors=ignore_errors, log=log.emit)
            finally:
                outlet.close()
                writer.join()
        error = failed[0] if failed else None
    except PveError as caught:
        error = failed[0] if failed else caught  # a stream that is cut short is not the cause
    if error:
        raise PveError(f"unpacking '{path.name}' failed: {_in_one_line(str(error))}") from error
