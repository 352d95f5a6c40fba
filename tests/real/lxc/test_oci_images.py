"""Containers from images of OCI registries: layers lie on each other, and the image's program is what runs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.real.lxc.conftest import until
from tests.sandbox.root import Root

Files = dict[str, bytes | tuple[bytes, str] | None]  # content, (type, target of a link), or None for a folder
PROGRAM = {
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["echo $GREETING > /started; exec sleep 1000"],
    "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "GREETING=hello world"],
}


def layer(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if isinstance(content, tuple):
                member.type, member.linkname = content
            elif content is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def write_image(
    path: Path, layers: list[bytes], program: dict[str, Any], *, packed: bool = True, parts: Any = None
) -> None:
    """An archive in OCI's layout."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    kind = "layer.v1.tar+gzip" if packed else "layer.v1.tar"
    rows = [blob(gzip.compress(data) if packed else data, kind) for data in layers]
    config = {"architecture": "amd64", "os": "linux", "config": program}
    manifest = {
        "schemaVersion": 2, "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": rows if parts is None else parts,
    }  # fmt: skip
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
    with tarfile.open(path, "w") as archive:
        named = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
        named |= {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
        for name, data in named.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def image(root: Root) -> Path:
    return root / "var/lib/vz/template/cache/tiny_1.0.tar"


@pytest.fixture(scope="session")
def base(ct_template_small: Path) -> bytes:
    """The small template as the lowest layer."""
    return subprocess.run(["zstd", "-dc", ct_template_small], capture_output=True, check=True).stdout


BELOW: Files = {
    "data": None, "data/gone": b"1", "data/kept": b"below", "data/changed": b"below", "cache": None,
    "cache/old": b"1", "cache/deep": None, "cache/deep/old": b"1", "wasfolder": None, "wasfolder/x": b"1",
    "wasfile": b"1", "./removed": None, "./removed/x": b"1", "long" * 60: b"long", "link": (tarfile.SYMTYPE, "data"),
    "data/twin": (tarfile.LNKTYPE, "data/kept"),
}  # fmt: skip
ABOVE: Files = {
    "data/.wh.gone": b"", "data/changed": b"above", "cache/.wh..wh..opq": b"", "cache/new": b"new",
    "wasfolder": b"file", "wasfile": None, "wasfile/x": b"in", ".wh.removed": b"",
}  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("unprivileged", [1, 0])
def test_the_program_of_an_image_runs_on_all_of_its_layers(
    root: Root, image: Path, base: bytes, packed: bool, unprivileged: int
) -> None:
    write_image(image, [base, layer(BELOW), layer(ABOVE)], PROGRAM, packed=packed)
    root.cli("pct", "create", 101, "local:vztmpl/tiny_1.0.tar", "--unprivileged", unprivileged, ok=True)
    found = root.cli("pct", "config", 101, "--output-format", "json", ok=True)
    assert json.loads(found.stdout)["entrypoint"] == "/bin/sh -c 'echo $GREETING > /started; exec sleep 1000'"
    root.cli("pct", "start", 101, ok=True)

    def inside(script: str) -> str:
        return root.cli("pct", "exec", 101, "--", "sh", "-c", script, ok=True).stdout.strip()

    until(lambda: inside("cat /started 2>/dev/null || true") == "hello world", "the program's first words")
    assert inside(
        "cd /; ls data cache wasfile; cat data/kept data/changed data/twin wasfolder wasfile/x cache/new"
    ) == ("cache:\nnew\n\ndata:\nchanged\nkept\ntwin\n\nwasfile:\nx\nbelowabovebelowfileinnew")
    assert inside(f"cd /; cat {'long' * 60}; readlink link; stat -c %u:%h data/twin; ls -d removed .wh* || true") == (
        "longdata\n0:2"
    )


def test_options_on_the_command_line_count_more(root: Root, image: Path, base: bytes) -> None:
    write_image(image, [base], PROGRAM)
    root.cli("pct", "create", 101, "local:vztmpl/tiny_1.0.tar", "--entrypoint", "/sbin/init", ok=True)
    found = json.loads(root.cli("pct", "config", 101, "--output-format", "json", ok=True).stdout)
    assert found["entrypoint"] == "/sbin/init"
    assert found["env"].split("\0") == PROGRAM["Env"]


def test_a_program_that_a_container_cannot_have_is_overruled(root: Root, image: Path, base: bytes) -> None:
    write_image(image, [base], {"Entrypoint": ["/bin/sh", "-c", "a\nb"]})
    root.cli("pct", "create", 101, "local:vztmpl/tiny_1.0.tar", "--entrypoint", "/sbin/init", ok=True)
    assert json.loads(root.cli("pct", "config", 101, "--output-format", "json").stdout)["entrypoint"] == "/sbin/init"


def test_an_image_of_a_single_program_needs_no_shell(root: Root, image: Path) -> None:
    write_image(image, [layer({"app": b"\x7fELF"})], {"Entrypoint": ["/app"]})
    root.cli("pct", "create", 101, "local:vztmpl/tiny_1.0.tar", ok=True)
    assert "ostype: unmanaged" in root.config(101).read_text()


BAD = [
    ([layer({"../../../evil": b"1"})], {}, "tiny_1.0.tar' failed"),
    ([layer({"etc/x": b"1"})[:700]], {}, "tiny_1.0.tar' failed"),
    ([layer({"etc/x": b"1"})], {"Cmd": ["/bin/sh", "-c", "a\nb"]}, "asks for what a container can't have: entrypoint"),
    ([layer({"etc/x": b"1"})], {"Cmd": "no list"}, "the description of the image is malformed"),
]


@pytest.mark.parametrize(("layers", "program", "sentence"), BAD)
def test_what_cannot_be_unpacked_leaves_nothing(
    root: Root, image: Path, layers: list[bytes], program: dict[str, Any], sentence: str
) -> None:
    write_image(image, layers, program)
    said = root.cli("pct", "create", 101, "local:vztmpl/tiny_1.0.tar")
    assert said.status != 0
    assert sentence in said.stderr
    assert not root.config(101).exists()
    assert list((root / "var/lib/vz/images").iterdir()) == []
    assert not (root.path.parent / "evil").exists()


def test_parts_that_are_missing_or_unknown_are_named(root: Root, image: Path) -> None:
    missing = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{'0' * 64}", "size": 1}
    for rows, sentence in (
        ([missing], f"part 'sha256:{'0' * 64}' of the image is not in the archive"),
        (
            [{**missing, "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd"}],
            "tar+zstd', which can't be unpacked",
        ),
        ([{**missing, "digest": "../../x"}], "part '../../x' of the image is not in the archive"),
    ):
        write_image(image, [], {}, parts=rows)
        said = root.cli("pct", "create", 101, "local:vztmpl/tiny_1.0.tar")
        assert said.status != 0
        assert sentence in said.stderr
