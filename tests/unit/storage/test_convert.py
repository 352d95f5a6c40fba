"""Images that are copied by qemu-img, for real."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvetools.storage import images
from pvetools.storage.convert import Image, convert, foreign
from pvetools.storage.driver import Source
from pvetools.system import log, run
from pvetools.system.errors import NotFound, Refused, RunError

MIB = 1 << 20
PIECES = st.lists(st.tuples(st.booleans(), st.integers(1, 90_000)), min_size=1, max_size=8)


def disk(path: Path, form: str, size: int, preallocation: str = "off") -> Source:
    run.run(["qemu-img", "create", "-q", "-f", form, "-o", f"preallocation={preallocation}", path, str(size)])
    return Source("file", path, form)


def content(path: Path, form: str) -> bytes:
    run.run(["qemu-img", "convert", "-f", form, "-O", "raw", path, f"{path}.raw"])
    return Path(f"{path}.raw").read_bytes()


@settings(max_examples=15, deadline=None)
@given(
    PIECES,
    st.sampled_from((("raw", "off"), ("qcow2", "off"), ("qcow2", "metadata"))),
    st.sampled_from((0, 512, 3 * MIB)),
)
def test_an_image_is_copied_into_a_volume_of_at_least_its_size(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bool, int]], kind: tuple[str, str], more: int
) -> None:
    folder = tmp_path_factory.mktemp("images")
    data = b"".join(os.urandom(length) if noise else bytes(length) for noise, length in pieces)
    data += bytes(-len(data) % 512)
    (folder / "source.raw").write_bytes(data)
    target = disk(folder / "target", kind[0], len(data) + more, kind[1])
    convert(Image(str(folder / "source.raw"), "raw", len(data)), target)
    assert content(target.path, kind[0]) == data + bytes(more)


@pytest.mark.parametrize(("preallocation", "laid_out"), [("off", False), ("metadata", True), ("falloc", True)])
def test_only_an_image_whose_parts_have_places_takes_them_in_any_order(
    tmp_path: Path, preallocation: str, laid_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source.raw", disk(tmp_path / "target", "qcow2", MIB, preallocation)
    source.write_bytes(b"x" * MIB)
    started: list[list[str]] = []
    popen = run.popen
    monkeypatch.setattr(run, "popen", lambda argv, **how: started.append([*argv]) or popen(argv, **how))
    convert(foreign(source), target)
    assert ["-W" in argv for argv in started] == [laid_out]
    assert not images.is_laid_out(source)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_holes_and_zeros_take_no_space(tmp_path: Path, form: str) -> None:
    source, target = tmp_path / "source.raw", disk(tmp_path / "target", form, 64 * MIB)
    with source.open("wb") as file:
        file.write(bytes(8 * MIB))
        file.seek(40 * MIB)
        file.write(random.Random(1).randbytes(MIB))
        file.truncate(64 * MIB)
    convert(foreign(source), target)
    assert target.path.stat().st_blocks * 512 < 2 * MIB
    assert content(target.path, form) == source.read_bytes()


def test_what_standard_input_gives_can_be_the_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", disk(tmp_path / "target", "qcow2", MIB)
    data = os.urandom(MIB)
    source.write_bytes(b"head" + data)
    opened = f'json:{{"driver":"raw","offset":4,"size":{MIB},"file":{{"driver":"file","filename":"/proc/self/fd/0"}}}}'
    fd = os.open(source, os.O_RDONLY)
    source.unlink()
    convert(Image(opened, "raw", MIB), target, stdin=fd)
    os.close(fd)
    assert content(target.path, "qcow2") == data


def test_how_far_it_is_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    monkeypatch.setattr(log, "progress", lambda label, done, total: seen.append((label, done, total)))
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(20 * MIB))
    convert(foreign(source), disk(tmp_path / "target", "qcow2", 20 * MIB), label="import")
    done = [count for _, count, _ in seen]
    assert done == sorted(done)
    assert len(set(done)) > 3, "on the way, too"
    assert seen[-1] == ("import", 20 * MIB, 20 * MIB)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="gone"):
        foreign(tmp_path / "gone.raw")
    small, large = tmp_path / "small.raw", tmp_path / "large.qcow2"
    small.write_bytes(bytes(8192))
    with pytest.raises(RunError, match=r"such/target\.raw"):
        convert(foreign(small), Source("file", tmp_path / "no/such/target.raw", "raw"))
    disk(large, "qcow2", MIB)
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", large, tmp_path / "clone.qcow2"])
    with pytest.raises(Refused, match="only images without one can be imported"):
        foreign(tmp_path / "clone.qcow2")


def test_a_volume_that_is_too_small_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(b"x" * 2 * MIB)
    with pytest.raises(RunError, match="smaller than input"):
        convert(foreign(source), disk(tmp_path / "target", "qcow2", MIB))
