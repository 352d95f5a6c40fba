"""Images of OCI registries: what they are called there, and how one becomes an archive with all of its layers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import Any, NamedTuple
from urllib.parse import urlencode, urljoin

from pvetools.storage import contents, incoming, volumes, web
from pvetools.system import log
from pvetools.system.errors import Exists, PveError, Refused
from pvetools.system.units import human_size

_DOCKER, _DOCKER_SERVER = "docker.io", "registry-1.docker.io"
_LARGEST = 4 << 20  # bytes of a manifest, a token or a list
_MOST = 8 << 30  # bytes of a part: the archive's headers have no room for more
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_BEARER = re.compile(r'(\w+)="([^"]*)"')
_NEXT = re.compile(r'<([^>]+)>;\s*rel="?next"?')
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
INDEX, MANIFEST = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
# Docker's words for parts of an image -> those of OCI
_KINDS = {
    "application/vnd.docker.container.image.v1+json": "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
}


class Reference(NamedTuple):
    """Name of an image: registry, repository, tag."""

    server: str
    repository: str
    tag: str

    @property
    def file(self) -> str:
        """Name of the archive, when nobody asks for another one."""
        return f"{self.repository.rpartition('/')[2]}_{self.tag}.tar"


def parse(text: str) -> Reference:
    """Take a name apart; without a registry it is Docker's."""
    first, slash, rest = text.partition("/")
    if not slash or not (set(first) & {".", ":"} or first == "localhost"):
        first, rest = _DOCKER, text
    if first == _DOCKER and "/" not in rest:
        rest = f"library/{rest}"
    repository, _, tag = rest.partition(":")
    return Reference(_DOCKER_SERVER if first == _DOCKER else first, repository, tag or "latest")


class Part(NamedTuple):
    """A part of an image: what it is, its checksum, its bytes."""

    kind: str
    digest: str
    size: int

    @property
    def member(self) -> str:
        """Its name in an archive."""
        return "blobs/" + self.digest.replace(":", "/")

    def as_data(self) -> dict[str, object]:
        return {"mediaType": self.kind, "digest": self.digest, "size": self.size}


def _part(row: object) -> Part:
    """A part as a manifest names it.

    Raises:
        PveError: malformed.
    """
    row = _object(row, "manifest")
    digest, size = str(row.get("digest")), row.get("size")
    if not _DIGEST.fullmatch(digest) or not isinstance(size, int) or not 0 <= size < _MOST:
        raise PveError(f"the registry names a part with the checksum '{digest}' and the size '{size}'")
    kind = str(row.get("mediaType"))
    return Part(_KINDS.get(kind, kind), digest, size)


class Registry:
    """A registry, as far as one repository is concerned."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._token = ""

    def _url(self, path: str) -> str:
        return f"https://{self.reference.server}/v2/{self.reference.repository}/{path}"

    def _headers(self, accept: str) -> dict[str, str]:
        more = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return {"Accept": accept, **more}

    def _login(self, challenge: str) -> None:
        """Get a token as a guest, from where the registry says."""
        said = dict(_BEARER.findall(challenge))
        if not challenge.lower().startswith("bearer ") or not said.get("realm", "").startswith("https://"):
            raise PveError(f"registry '{self.reference.server}' wants a login, which is not supported")
        query = {"scope": f"repository:{self.reference.repository}:pull"}
        if "service" in said:
            query["service"] = said["service"]
        with web.opened(f"{said['realm']}?{urlencode(query)}") as answer:
            found = _json(b"".join(_limited(answer)), "token")
        self._token = str(found.get("token") or found.get("access_token") or "")

    def ready(self) -> None:
        """Find out how the registry wants to be asked.

        Raises:
            PveError: not reachable, or not without a password.
        """
        try:
            with web.opened(f"https://{self.reference.server}/v2/"):
                pass
        except web.StatusError as error:
            if error.code != 401:
                raise
            self._login(error.headers.get("WWW-Authenticate", ""))

    def read(self, path: str, accept: str = "application/json") -> tuple[bytes, Message]:
        """A small answer and its headers.

        Raises:
            PveError: with the words of the server.
        """
        with web.opened(self._url(path), headers=self._headers(accept)) as answer:
            return b"".join(_limited(answer)), answer.headers

    def blob(self, part: Part) -> Iterator[bytes]:
        """The content of a part, which has its checksum and its size.

        Raises:
            PveError: it has not.
        """
        seen, done = hashlib.new(part.digest.partition(":")[0]), 0
        with web.opened(self._url(f"blobs/{part.digest}"), headers=self._headers("*/*")) as answer:
            for chunk in answer.chunks():
                seen.update(chunk)
                done += len(chunk)
                if done > part.size:
                    break
                yield chunk
        if done != part.size or seen.hexdigest() != part.digest.partition(":")[2]:
            raise PveError(f"part {part.digest} of the image arrived damaged")


def _limited(answer: web.Answer) -> Iterator[bytes]:
    done = 0
    for chunk in answer.chunks():
        done += len(chunk)
        if done > _LARGEST:
            raise PveError(f"'{web.shown(answer.url)}' sends more than {_LARGEST >> 20} MiB")
        yield chunk


def _json(data: bytes, what: str) -> dict[str, Any]:
    try:
        return _object(json.loads(data), what)
    except (ValueError, RecursionError) as error:
        raise PveError(f"the registry's {what} is not valid JSON: {error}") from None


def _object(found: object, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise PveError(f"the registry's {what} is malformed")
    return found


def _rows(found: Mapping[str, Any], name: str) -> list[Any]:
    """A list in an object, which may be missing."""
    rows = found.get(name) or []
    if not isinstance(rows, list):
        raise PveError(f"the registry's '{name}' is no list")
    return rows


# -- tags --------------------------------------------------------------------------------------------------------------


def tags(text: str) -> list[str]:
    """Tags of a repository.

    Raises:
        PveError: not reachable, not there.
    """
    registry = Registry(parse(text))
    registry.ready()
    found: list[str] = []
    path = "tags/list?n=1000"
    for _ in range(100):
        data, headers = registry.read(path)
        found += [str(tag) for tag in _rows(_json(data, "list of tags"), "tags")]
        following = _NEXT.search(headers.get("Link", ""))
        if not following:
            break
        path = f"tags/list?{_query(registry._url(path), following[1])}"
    return found


def _query(url: str, link: str) -> str:
    """Query of a link that stands in the answer to an address."""
    try:
        return urljoin(url, link).partition("?")[2]
    except ValueError as error:
        raise PveError(f"the registry's list of tags goes on at '{link}', which is no address: {error}") from None


# -- images ------------------------------------------------------------------------------------------------------------


def _manifest(registry: Registry, name: str, depth: int = 0) -> dict[str, Any]:
    """The manifest of the image for this host's processor."""
    accept = ", ".join((INDEX, MANIFEST, _DOCKER_LIST, _DOCKER_MANIFEST))
    data, _ = registry.read(f"manifests/{name}", accept)
    if ":" in name and hashlib.new(name.partition(":")[0], data).hexdigest() != name.partition(":")[2]:
        raise PveError(f"manifest {name} arrived damaged")
    found = _json(data, "manifest")
    if "layers" in found and "config" in found:
        return found
    wanted = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    for row in _rows(found, "manifests"):
        platform = _object(_object(row, "manifest").get("platform") or {}, "manifest")
        if (platform.get("os"), platform.get("architecture")) == ("linux", wanted) and depth < 2:
            return _manifest(registry, _part(row).digest, depth + 1)
    raise Refused(f"image '{registry.reference.repository}:{registry.reference.tag}' is not there for linux/{wanted}")


def pull(storage: str, text: str, filename: str = "") -> None:
    """Bring an image onto a storage as an archive in OCI's layout.

    Raises:
        Exists: a file with its name. PveError: not reachable, not there, damaged; nothing stays.
    """
    reference = parse(text)
    name = contents.file_name("vztmpl", f"{(filename or reference.file).removesuffix('.tar')}.tar")
    folder = volumes.content_dir(storage, "vztmpl")
    if os.path.lexists(folder / name):
        raise Exists(f"'{folder / name}' exists already")
    registry = Registry(reference)
    registry.ready()
    manifest = _manifest(registry, reference.tag)
    config, layers = _part(manifest["config"]), [_part(row) for row in _rows(manifest, "layers")]
    log.emit(f"pulling '{text}': {len(layers)} layers, {human_size(sum(layer.size for layer in layers))}")
    incoming.need_space(folder, sum(part.size for part in [config, *layers]))
    with incoming.part(folder) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            _pack(archive, registry, [config, *layers])
        contents.check(temporary, "vztmpl", name)
        incoming.appear(storage, temporary, folder / name)
    log.emit(f"pulled '{storage}:vztmpl/{name}'")


def _pack(archive: tarfile.TarFile, registry: Registry, parts: list[Part]) -> None:
    """Write the parts, then what leads to them."""
    for number, part in enumerate(dict.fromkeys(parts)):
        log.emit(f"part {number + 1} of {len(parts)}: {part.digest} ({human_size(part.size)})")
        _add(archive, part.member, _Stream(registry.blob(part)), part.size)
    config, *layers = (part.as_data() for part in parts)
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).encode()
    top = Part(MANIFEST, f"sha256:{hashlib.sha256(manifest).hexdigest()}", len(manifest))
    named = {**top.as_data(), "annotations": {"org.opencontainers.image.ref.name": registry.reference.tag}}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}).encode()
    for name, data in (
        (top.member, manifest), ("index.json", index), ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
    ):  # fmt: skip
        _add(archive, name, io.BytesIO(data), len(data))


def _add(archive: tarfile.TarFile, name: str, content: Any, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    archive.addfile(member, content)
    if isinstance(content, _Stream):
        content.finish()


class _Stream:
    """Pieces as a file that can be read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._piece, self._at = pieces, b"", 0

    def read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            if self._at == len(self._piece):
                self._piece, self._at = next(self._pieces, b""), 0
            if not self._piece:
                break
            taken = self._piece[self._at : self._at + size - len(found)]
            self._at += len(taken)
            found += taken
        return found

    def finish(self) -> None:
        """Take what is left, so that the source can check that it gave all."""
        for _ in self._pieces:
            pass
