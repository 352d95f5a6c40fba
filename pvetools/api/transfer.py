"""Files that come onto storages from outside: uploads and downloads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvetools.api.common import NodeParams
from pvetools.api.storage import NodeStorageParams
from pvetools.api.tree import method
from pvetools.schema.core import Record, field
from pvetools.schema.kinds import boolean, choice, string

if TYPE_CHECKING:
    from pvetools.storage.incoming import Checksum

_TEMPLATES = ("/storage/{storage}", "Datastore.AllocateTemplate")
_NETWORK = ("/nodes/{node}", "Sys.AccessNetwork")


class ChecksumParams(Record):
    """What the content is expected to be."""

    checksum: str | None = field(string(min_length=1), "Expected checksum of the file.", requires="checksum-algorithm")
    checksum_algorithm: str | None = field(
        choice("md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
        "Algorithm of the checksum.",
        name="checksum-algorithm",
        requires="checksum",
    )


def _checksum(p: ChecksumParams) -> Checksum | None:
    from pvetools.storage.incoming import Checksum

    return Checksum(p.checksum_algorithm or "", p.checksum) if p.checksum else None


class FileParams(NodeStorageParams, ChecksumParams):
    """A new file of a storage."""

    content: str = field(choice("iso", "vztmpl", "import"), "Content type of the file.", required=True)
    filename: str = field(
        string(max_length=255), "Name of the file; unusual characters are replaced by _.", required=True
    )


class UploadParams(FileParams):
    """Parameters of ``POST /nodes/{node}/storage/{storage}/upload``."""

    tmpfilename: str | None = field(
        string(r"/var/tmp/pveupload-[0-9a-f]+"),  # noqa: S108
        "Received file; it is moved to the storage.",
    )


@method("POST", "/nodes/{node}/storage/{storage}/upload", UploadParams, permission=_TEMPLATES, task="imgcopy",
        task_id="")  # fmt: skip
def upload(p: UploadParams) -> None:
    """Put an ISO image, a container template, an OVA or a disk image that was received onto a storage."""
    from pvetools.storage import upload as uploads

    uploads.upload(uploads.Upload(p.storage, p.content, p.filename, p.tmpfilename or "", _checksum(p)))


class UrlParams(Record):
    """A file on a web server."""

    url: str = field(string(r"https?://.*"), "Address of the file.", required=True)
    verify_certificates: bool = field(
        boolean, "Check the server's certificate.", name="verify-certificates", default=True
    )


class DownloadParams(FileParams, UrlParams):
    """Parameters of ``POST /nodes/{node}/storage/{storage}/download-url``."""

    compression: str | None = field(
        choice("gz", "lzo", "zst", "bz2"), "Decompress the file; the checksum is that of the compressed one."
    )


@method("POST", "/nodes/{node}/storage/{storage}/download-url", DownloadParams, permission=_TEMPLATES, task="download",
        task_id="filename")  # fmt: skip
def download_url(p: DownloadParams) -> None:
    """Download a file from a web server with a public address onto a storage."""
    from pvetools.storage import download

    download.download(
        download.Download(
            p.storage, p.content, p.filename, p.url, _checksum(p), p.compression or "", p.verify_certificates
        )
    )


class MetadataParams(NodeParams, UrlParams):
    """Parameters of ``GET /nodes/{node}/query-url-metadata``."""


@method("GET", "/nodes/{node}/query-url-metadata", MetadataParams, permission=_NETWORK,
        returns={"type": "object", "properties": {"filename": {"type": "string", "optional": 1},
                 "mimetype": {"type": "string", "optional": 1},
                 "size": {"type": "integer", "optional": 1, "renderer": "bytes"}}})  # fmt: skip
def url_metadata(p: MetadataParams) -> dict[str, Any]:
    """Ask a web server for name, size and type of a file."""
    from pvetools.storage import web

    found = web.metadata(p.url, verify=p.verify_certificates)
    return {key: value for key, value in found._asdict().items() if value not in ("", None)}


_LABEL = r"(?:[a-zA-Z\d]|[a-zA-Z\d][a-zA-Z\d-]*[a-zA-Z\d])"
_WORD = r"[a-z\d]+(?:(?:[._]|__|-+)[a-z\d]+)*"
_REPOSITORY = rf"(?:{_LABEL}(?:\.{_LABEL})*(?::\d+)?/)?{_WORD}(?:/{_WORD})*"


class TagsParams(NodeParams):
    """Parameters of ``GET /nodes/{node}/query-oci-repo-tags``."""

    reference: str = field(string(_REPOSITORY), "Repository: [SERVER/]NAME.", required=True)


@method("GET", "/nodes/{node}/query-oci-repo-tags", TagsParams, permission=_NETWORK,
        returns={"type": "array", "items": {"type": "string"}})  # fmt: skip
def oci_tags(p: TagsParams) -> list[str]:
    """List the tags of a repository in an OCI registry."""
    from pvetools.storage import oci

    return oci.tags(p.reference)


class PullParams(NodeStorageParams):
    """Parameters of ``POST /nodes/{node}/storage/{storage}/oci-registry-pull``."""

    reference: str = field(string(rf"{_REPOSITORY}:\w[\w.-]{{0,127}}"), "Image: [SERVER/]NAME:TAG.", required=True)
    filename: str | None = field(
        string(min_length=1, max_length=255), "Name of the file; .tar is added.", note="NAME_TAG.tar"
    )


@method("POST", "/nodes/{node}/storage/{storage}/oci-registry-pull", PullParams, permission=_TEMPLATES,
        task="download", task_id="reference")  # fmt: skip
def oci_pull(p: PullParams) -> None:
    """Bring an image of an OCI registry onto a storage, as an archive of content type vztmpl."""
    from pvetools.storage import oci

    oci.pull(p.storage, p.reference, p.filename or "")


class ImportParams(NodeStorageParams):
    """Parameters of ``GET /nodes/{node}/storage/{storage}/import-metadata``."""

    volume: str = field(string(complete="volume"), "Guest to import: an OVA, an OVF or a vmx.", required=True)


_OBJECT = {"type": "object", "additionalProperties": 1}
_WARNING = {
    "type": {"type": "string"}, "key": {"type": "string", "optional": 1}, "value": {"type": "string", "optional": 1},
}  # fmt: skip
_GUEST = {
    "type": {"type": "string", "enum": ["vm"]},
    "source": {"type": "string"},
    "create-args": _OBJECT,
    "disks": {**_OBJECT, "optional": 1},
    "net": {**_OBJECT, "optional": 1},
    "warnings": {"type": "array", "optional": 1, "items": {"type": "object", "properties": _WARNING}},
}


@method("GET", "/nodes/{node}/storage/{storage}/import-metadata", ImportParams, permission=("user",),
        returns={"type": "object", "properties": _GUEST})  # fmt: skip
def import_metadata(p: ImportParams) -> dict[str, Any]:
    """Show with which options and disks a guest from elsewhere would be made here."""
    from pvetools.storage import imported, volumes
    from pvetools.system.errors import ParamErrors

    storage, colon, name = p.volume.partition(":")
    if colon and storage != p.storage:
        raise ParamErrors({"volume": f"'{p.volume}' does not lie on storage '{p.storage}'"})
    volid = f"{p.storage}:{name if colon else p.volume}"
    return dict(imported.as_data(volumes.guest(volid), p.storage, volumes.get(p.storage).type))
