"""Images of a real OCI registry: pulled whole and checked, for this processor, as an archive that others read too."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.storage import oci, web
from pvetools.system import paths
from tests.real.storage import registry as registries
from tests.real.storage.registry import Registry
from tests.sandbox.root import Result, Root

pytestmark = pytest.mark.skipif(not registries.installed(), reason="needs a registry: apt install docker-registry")

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
LAYERS = [registries.layer({"etc/one": b"1" * 100000}), registries.layer({"etc/two": os.urandom(3 << 20)})]


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(web.ALLOWED, "127.0.0.0/8, ::1/128")


def image(registry: Registry, repository: str, tag: str, architecture: str = "amd64", kind: str = DOCKER) -> dict:
    """Push an image; gives its descriptor."""
    config = json.dumps({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sh"]}}).encode()
    docker = kind == DOCKER
    names = ("docker.container.image.v1+json", "docker.image.rootfs.diff.tar.gzip") if docker else (
        "oci.image.config.v1+json", "oci.image.layer.v1.tar+gzip")  # fmt: skip
    prefix = "application/vnd."
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": prefix + names[0], **registry.push(repository, config)},
        "layers": [{"mediaType": prefix + names[1], **registry.push(repository, data)} for data in LAYERS],
    }
    return registry.tag(repository, tag, manifest)


@pytest.fixture(params=["open", "tokens"])
def registry(
    request: pytest.FixtureRequest, tmp_path: Path, allowed: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    with registries.serving(tmp_path, tokens=request.param == "tokens") as running:
        monkeypatch.setenv("SSL_CERT_FILE", str(running.certificate))
        image(running, "os/tiny", "1.0")
        yield running


@pytest.fixture
def folder(root: Root) -> Path:
    return root / "var/lib/vz/template/cache"


def pull(root: Root, reference: str, *words: object) -> Result:
    where = f"/nodes/{paths.node()}/storage/local/oci-registry-pull"
    return root.cli("pvesh", "create", where, "--reference", reference, *words)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_an_image_becomes_an_archive_in_the_layout_of_oci(root: Root, registry: Registry, folder: Path) -> None:
    said = pull(root, f"{registry.name}/os/tiny:1.0")
    assert said.status == 0, said
    found = members(folder / "tiny_1.0.tar")
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (top,) = json.loads(found["index.json"])["manifests"]
    manifest = json.loads(found["blobs/" + top["digest"].replace(":", "/")])
    assert [row["mediaType"] for row in (manifest["config"], *manifest["layers"])] == [
        "application/vnd.oci.image.config.v1+json", *2 * ["application/vnd.oci.image.layer.v1.tar+gzip"],
    ]  # fmt: skip
    for name, data in found.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    assert [found["blobs/" + row["digest"].replace(":", "/")] for row in manifest["layers"]] == LAYERS
    assert "local:vztmpl/tiny_1.0.tar" in root.cli("pvesm", "list", "local", ok=True).stdout


def test_of_several_processors_this_one_is_chosen(root: Root, registry: Registry, folder: Path) -> None:
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    mine = names.get(os.uname().machine, os.uname().machine)
    rows = []
    for architecture in ("s390x", mine):
        made = image(registry, "os/tiny", architecture, architecture)
        rows.append({**made, "platform": {"os": "linux", "architecture": architecture}})
    registry.tag("os/tiny", "multi", {"schemaVersion": 2, "mediaType": LIST, "manifests": rows})
    registry.tag("os/tiny", "other", {"schemaVersion": 2, "mediaType": LIST, "manifests": rows[:1]})
    assert pull(root, f"{registry.name}/os/tiny:multi", "--filename", "mine").status == 0
    config = [json.loads(data) for data in members(folder / "mine.tar").values() if data.startswith(b'{"architecture"')]
    assert [row["architecture"] for row in config] == [mine]
    said = pull(root, f"{registry.name}/os/tiny:other")
    assert said.status != 0
    assert f"is not there for linux/{mine}" in said.stderr


def test_tags_are_listed(root: Root, registry: Registry) -> None:
    image(registry, "os/tiny", "latest", kind=oci.MANIFEST)
    where = f"/nodes/{paths.node()}/query-oci-repo-tags"
    words = ["--reference", f"{registry.name}/os/tiny", "--output-format", "json"]
    assert sorted(json.loads(root.cli("pvesh", "get", where, *words, ok=True).stdout)) == ["1.0", "latest"]


def test_what_is_damaged_or_not_there_leaves_nothing(root: Root, registry: Registry, folder: Path) -> None:
    assert "404 Not Found" in pull(root, f"{registry.name}/os/tiny:2.0").stderr
    registry.damage(f"sha256:{hashlib.sha256(LAYERS[1]).hexdigest()}")
    said = pull(root, f"{registry.name}/os/tiny:1.0")
    assert said.status != 0
    assert "of the image arrived damaged" in said.stderr
    assert list(folder.iterdir()) == []


def test_an_existing_file_is_never_overwritten(root: Root, registry: Registry, folder: Path) -> None:
    (folder / "tiny_1.0.tar").write_bytes(b"mine")
    assert "exists already" in pull(root, f"{registry.name}/os/tiny:1.0").stderr
    assert (folder / "tiny_1.0.tar").read_bytes() == b"mine"


def test_a_registry_on_a_private_network_is_refused(
    root: Root, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(web.ALLOWED)
    assert "which is not public" in pull(root, f"{registry.name}/os/tiny:1.0").stderr


@pytest.mark.parametrize("reference", ["tiny", "Tiny:1", "a//b:1", "-x:1", "https://a/b:1", "a:b/c", "a" * 60 + "!:1"])
def test_malformed_names_are_refused(root: Root, reference: str) -> None:
    said = pull(root, reference)
    assert said.status != 0
    assert "reference: value" in said.stderr


@pytest.mark.parametrize(
    ("text", "server", "repository", "tag"),
    [
        ("alpine:3", "registry-1.docker.io", "library/alpine", "3"),
        ("me/thing:1", "registry-1.docker.io", "me/thing", "1"),
        ("docker.io/alpine:3", "registry-1.docker.io", "library/alpine", "3"),
        ("docker.io/library/alpine:3", "registry-1.docker.io", "library/alpine", "3"),
        ("quay.io/a/b/c:x", "quay.io", "a/b/c", "x"),
        ("localhost:5000/a:x", "localhost:5000", "a", "x"),
    ],
)
def test_names_lead_to_their_registries(text: str, server: str, repository: str, tag: str) -> None:
    assert oci.parse(text) == (server, repository, tag)
