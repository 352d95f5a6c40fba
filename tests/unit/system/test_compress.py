"""Streams through compressors: real programs, and how each kind of failure shows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pvetools.backup import vma
from pvetools.system import compress, run
from pvetools.system.errors import MissingTool, PveError
from pvetools.system.streams import write_all
from tests.unit.backup import samples

DATA = os.urandom(300_000) + bytes(300_000)
PACKERS = {"gz": ["gzip"], "lzo": ["lzop"], "zst": ["zstd"], "bz2": ["bzip2"], "xz": ["xz", "-0"]}


def packed(folder: Path, extension: str, data: bytes = DATA) -> Path:
    path = folder / f"archive.{extension}"
    with compress.writing(path, [*PACKERS[extension], "-c"] if extension != "zst" else ["zstd", "-c"]) as fd:
        write_all(fd, data)
    return path


def unpack(path: Path, extension: str) -> bytes:
    with compress.reading(path, extension) as fd, os.fdopen(os.dup(fd), "rb") as file:
        return file.read()


@pytest.mark.parametrize("option", ["0", "1", "gzip", "lzo", "zstd"])
@pytest.mark.parametrize("pigz", [0, 2])
def test_every_value_of_the_option_makes_a_file_that_reads_back(option: str, pigz: int, tmp_path: Path) -> None:
    argv = compress.compressor(option, zstd=2, pigz=pigz)
    path = tmp_path / "archive"
    with compress.writing(path, argv) as fd:
        write_all(fd, DATA)
    assert unpack(path, compress.extension(option)) == DATA
    assert (path.read_bytes() == DATA) == (option == "0")


def test_zstd_takes_its_level_from_its_usual_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSTD_CLEVEL", "9")
    assert compress.compressor("zstd") == ["zstd", "-9", "--threads=1"]
    for wrong in ("0", "20", "-3", "high", "", "١"):
        monkeypatch.setenv("ZSTD_CLEVEL", wrong)
        with pytest.raises(PveError, match=f"ZSTD_CLEVEL: value '{wrong}' is not a level from 1 to 19"):
            compress.compressor("zstd")


def test_commands_follow_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZSTD_CLEVEL", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert compress.compressor("gzip") == ["gzip", "--rsyncable"]
    assert compress.compressor("gzip", pigz=1) == ["pigz", "-p", "4", "--rsyncable"]
    assert compress.compressor("gzip", pigz=3) == ["pigz", "-p", "3", "--rsyncable"]
    assert compress.compressor("zstd") == ["zstd", "-1", "--threads=1"]
    assert compress.compressor("zstd", zstd=0) == ["zstd", "-1", "--threads=4"]
    assert compress.compressor("1") == compress.compressor("lzo") == ["lzop"]
    assert compress.compressor("0") == []
    with pytest.raises(PveError, match="unknown compression 'rar', expected one of 0, 1, gzip, lzo, zstd"):
        compress.compressor("rar")


@pytest.mark.parametrize("extension", sorted(PACKERS))
def test_every_extension_is_read(extension: str, tmp_path: Path) -> None:
    assert unpack(packed(tmp_path, extension), extension) == DATA


def test_skippable_frames_in_front_of_zstd_data_are_fine(tmp_path: Path) -> None:
    path = packed(tmp_path, "zst")
    path.write_bytes(bytes.fromhex("502a4d18 04000000 00000000") + path.read_bytes())
    assert unpack(path, "zst") == DATA


@pytest.mark.parametrize("extension", sorted(PACKERS))
@pytest.mark.parametrize("damage", ["truncated", "bit flip"])
def test_a_damaged_file_fails_with_one_sentence(extension: str, damage: str, tmp_path: Path) -> None:
    path = packed(tmp_path, extension)
    raw = bytearray(path.read_bytes())
    if damage == "truncated":
        del raw[len(raw) // 2 :]
    else:
        raw[len(raw) // 3] ^= 0x10
    path.write_bytes(raw)
    with pytest.raises(PveError, match=rf"cannot decompress '.*archive\.{extension}': \S+") as caught:
        unpack(path, extension)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("extension", sorted(PACKERS))
@pytest.mark.parametrize(("content", "reason"), [(b"", "it is empty"), (b"VMA\0" * 99, "it is not a .* file")])
def test_foreign_content_is_told_from_damage(extension: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{extension}"
    path.write_bytes(content)
    with pytest.raises(PveError, match=reason):
        unpack(path, extension)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PveError, match=r"cannot open '.*gone\.zst': No such file"):
        unpack(tmp_path / "gone.zst", "zst")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_a_truncated_archive_is_reported_as_such_not_as_a_short_extent(cut: float, tmp_path: Path) -> None:
    raw = samples.build({"qemu-server.conf": b"x"}, {"drive-scsi0": samples.noisy(6 << 20, 3)})
    path = packed(tmp_path, "zst", raw)
    os.truncate(path, int(path.stat().st_size * cut))
    with (
        pytest.raises(PveError, match=r"cannot decompress '.*archive\.zst': zstd: Read error .*premature end"),
        compress.reading(path, "zst") as fd,
    ):
        vma.Reader(fd).verify()


def test_a_flipped_data_bit_is_found_by_the_compressors_checksum(tmp_path: Path) -> None:
    """The archive itself has no checksum over data, so the end of the stream must be waited for."""
    raw = samples.build({}, {"drive-scsi0": samples.noisy(6 << 20, 3)})
    path = packed(tmp_path, "zst", raw)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with (
        pytest.raises(PveError, match=r"cannot decompress .*: zstd: .*checksum"),
        compress.reading(path, "zst") as fd,
    ):
        vma.Reader(fd).verify()


def test_the_readers_own_complaint_is_kept_while_the_decompressor_is_well(tmp_path: Path) -> None:
    path = packed(tmp_path, "zst", b"no archive" * 500_000)
    with pytest.raises(vma.VmaError, match="not a vma file"), compress.reading(path, "zst") as fd:
        vma.Reader(fd)


def test_reading_only_the_beginning_is_no_error(tmp_path: Path) -> None:
    path = packed(tmp_path, "zst", bytes(8 << 20))
    with compress.reading(path, "zst", to_end=False) as fd:
        assert os.read(fd, 10) == bytes(10)


def test_a_failing_compressor_is_reported_with_its_status(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with (
        pytest.raises(PveError, match=r"wrong exit status 3 \(no room\)"),
        compress.writing(path, ["sh", "-c", "cat >/dev/null; echo no room >&2; exit 3"]) as fd,
    ):
        write_all(fd, DATA)
    assert not path.exists()


def test_a_compressor_that_stops_reading_is_reported_with_its_status(tmp_path: Path) -> None:
    with (
        pytest.raises(PveError, match="wrong exit status 7"),
        compress.writing(tmp_path / "x", ["sh", "-c", "exit 7"]) as fd,
    ):
        while True:
            write_all(fd, DATA)


def test_a_full_disk_is_said_in_the_compressors_words() -> None:
    with (
        Path("/dev/full").open("wb") as full,
        pytest.raises(PveError, match=r"wrong exit status \d+ .*No space left"),
        compress.compressing(full.fileno(), ["zstd", "-c", "-q"]) as fd,
    ):
        write_all(fd, DATA)


def test_an_error_of_the_writer_kills_the_compressor_and_removes_the_file(tmp_path: Path) -> None:
    path, said = tmp_path / "x", tmp_path / "said"
    script = f'trap "" TERM; echo $$ >"{said}"; cat >/dev/null; echo end >>"{said}"'
    with pytest.raises(KeyError), compress.writing(path, ["sh", "-c", script]) as fd:
        write_all(fd, DATA)
        while not said.exists() or not said.read_text().strip():
            os.sched_yield()
        raise KeyError("broken")
    assert not path.exists()
    assert not Path(f"/proc/{said.read_text().split()[0]}").exists()


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(FileExistsError), compress.writing(path, ["cat"]):
        pass
    assert path.read_text() == "mine"


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find", lambda tool: None if tool == "lzop" else shutil.which(tool))
    with (
        pytest.raises(MissingTool, match="'lzop' is not installed; install it with: apt install lzop"),
        compress.writing(tmp_path / "x", ["lzop"]),
    ):
        pass
    assert not (tmp_path / "x").exists()
