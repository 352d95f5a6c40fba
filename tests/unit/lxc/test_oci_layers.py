"""Images of OCI registries: what is left of their layers, damaged ones, and what they ask for."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from pvetools.guest.lxc import create, ociimage
from pvetools.guest.lxc.idmap import IdMap
from pvetools.system.errors import PveError, Refused
from tests.real.lxc.test_oci_images import Files, layer, write_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image.tar"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def unpack(image: Path, root: Path, *layers: Files) -> dict[str, bytes]:
    write_image(image, [layer(files) for files in layers], {})
    ociimage.unpack(image, root, IdMap())
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def hard(target: str) -> tuple[bytes, str]:
    return tarfile.LNKTYPE, target


LINKED: Files = {
    "usr": None, "usr/bin": None, "usr/bin/perl": b"old", "usr/bin/perl5": hard("./usr/bin/perl"),
    "usr/bin/perl5.36": hard("usr/bin/perl5"),
}  # fmt: skip


def test_a_hard_link_outlives_the_file_that_an_upper_layer_removes(image: Path, root: Path) -> None:
    found = unpack(image, root, LINKED, {"usr/bin/.wh.perl": b""})
    assert found == {"usr/bin/perl5": b"old", "usr/bin/perl5.36": b"old"}
    assert (root / "usr/bin/perl5").samefile(root / "usr/bin/perl5.36")


def test_a_hard_link_outlives_the_file_that_an_upper_layer_replaces(image: Path, root: Path) -> None:
    found = unpack(image, root, LINKED, {"usr/bin/perl": b"new"})
    assert found == {"usr/bin/perl": b"new", "usr/bin/perl5": b"old", "usr/bin/perl5.36": b"old"}


def test_hard_links_go_on_without_the_one_between_them(image: Path, root: Path) -> None:
    found = unpack(image, root, LINKED, {"usr/bin/.wh.perl5": b""})
    assert found == {"usr/bin/perl": b"old", "usr/bin/perl5.36": b"old"}
    assert (root / "usr/bin/perl").samefile(root / "usr/bin/perl5.36")


def test_of_a_file_that_is_hidden_with_all_its_links_nothing_stays(image: Path, root: Path) -> None:
    assert unpack(image, root, LINKED, {"usr/.wh.bin": b"", "usr/x": b"x"}) == {"usr/x": b"x"}


def _sparse() -> bytes:
    member = tarfile.TarInfo("x")
    member.pax_headers = {"GNU.sparse.map": "abc"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    return out.getvalue()


def _nested() -> bytes:
    member = tarfile.TarInfo("././@LongLink")
    member.type = tarfile.GNUTYPE_LONGNAME
    return member.tobuf(tarfile.GNU_FORMAT) * 2000


@pytest.mark.parametrize("data", [_sparse(), _nested()], ids=["sparse map", "headers before headers"])
def test_what_tarfile_stumbles_over_is_damaged(image: Path, root: Path, data: bytes) -> None:
    image.write_bytes(data)
    assert not ociimage.is_image(image)
    with pytest.raises(PveError, match=r"'image\.tar' is damaged: ") as caught:
        ociimage.options(image)
    assert "\n" not in str(caught.value)
    write_image(image, [data], {})
    with pytest.raises(PveError, match=r"unpacking 'image\.tar' failed: "):
        ociimage.unpack(image, root, IdMap())


BROKEN = {"Entrypoint": ["/bin/sh", "-c", "a\nb"], "Env": ["TEXT=a\nb"]}


@pytest.mark.parametrize(("given", "left"), [("entrypoint", "env"), ("env", "entrypoint")])
def test_what_the_user_gives_is_not_asked_of_the_image(image: Path, given: str, left: str) -> None:
    write_image(image, [], BROKEN)
    assert create.image_options(str(image), {"entrypoint", "env"}) == {"arch": "amd64"}
    with pytest.raises(Refused, match=rf"asks for what a container can't have: {left}: ") as caught:
        create.image_options(str(image), {given})
    assert r"a\nb" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_message_about_an_image_has_a_second_line(image: Path, root: Path) -> None:
    for rows in ([{"mediaType": "a\nb"}], [{"mediaType": "x/tar", "digest": "a\nb"}]):
        write_image(image, [], {}, parts=rows)
        with pytest.raises(PveError, match=r"'a\\nb'"):
            ociimage.options(image)
    write_image(image, [layer({"../a\nb": b""})], {})
    with pytest.raises(PveError, match=r"'\.\./a\\nb' points outside"):
        ociimage.unpack(image, root, IdMap())
