"""Images behind qemu-nbd and nbdkit as sources and targets of VM archives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pvetools.backup import vma
from pvetools.backup.vma_format import CLUSTER
from pvetools.system import compress, nbd
from pvetools.system.errors import MissingTool, PveError
from pvetools.system.streams import MIB, FileSource, Target, poll_one
from tests.unit.backup import samples
from tests.unit.backup.samples import Feed, Sink

DISK = samples.noisy((9 << 20) + 512 * 3, 11) + bytes(40 << 20) + samples.noisy(3 << 20, 12)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "disk.raw"
    path.write_bytes(DISK)
    return path


@pytest.fixture(scope="module")
def qcow2(raw: Path) -> Path:
    path = raw.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    return path


def empty(path: Path, form: str, size: int) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", form, path, str(size)], check=True)
    return path


def content(path: Path, form: str) -> bytes:
    out = path.with_suffix(".content")
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", path, out], check=True)
    return out.read_bytes()


def archive(source: nbd.Export | FileSource) -> bytes:
    with Sink() as sink:
        vma.write(sink.fd, {"c": b"x"}, [vma.Disk("drive-scsi0", source)], uuid=samples.UUID, ctime=samples.CTIME)
    return sink.data


def servers_of(path: Path) -> list[int]:
    """Processes that serve an image."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(path) in words and words[0].endswith(b"qemu-nbd"):
                found.append(int(entry.name))
    return found


def wait_until(condition: object, what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} seconds"
        time.sleep(0.01)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_image_gives_the_same_archive_as_its_plain_content(form: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(form)
    with nbd.image(path, form) as export:
        assert export.size == len(DISK)
        data = archive(export)
    assert servers_of(path) == []
    assert samples.read_archive(data) == {"drive-scsi0": DISK}
    assert data == samples.build({"c": b"x"}, {"drive-scsi0": DISK})


def test_zeros_that_the_server_knows_are_not_read(qcow2: Path) -> None:
    with nbd.image(qcow2, "qcow2") as export:
        extents = list(export.extents())
    assert sum(length for length, _ in extents) == len(DISK)
    assert sum(length for length, zero in extents if zero) >= 40 << 20


def test_odd_sizes_are_rounded_up_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "odd.raw"
    path.write_bytes(b"\xff" * 70000)
    with nbd.image(path, "raw") as export:
        data = archive(export)
    assert samples.read_archive(data) == {"drive-scsi0": b"\xff" * 70000 + bytes(144)}


@pytest.mark.parametrize("order", samples.orders())
@pytest.mark.parametrize(("form", "known_zero"), [("qcow2", True), ("qcow2", False), ("raw", False)])
def test_archives_are_restored_into_images(order: samples.Order, form: str, known_zero: bool, tmp_path: Path) -> None:
    other = samples.noisy(1 << 20, 5)
    data = samples.build({}, {"drive-scsi0": DISK, "drive-scsi1": other}, order=order)
    paths = [tmp_path / "0", tmp_path / "1"]
    for path, disk in zip(paths, (DISK, other), strict=True):
        empty(path, form, len(disk))
        if not known_zero:
            subprocess.run(["qemu-io", "-f", form, "-c", f"write -P 0xaa 0 {len(disk) // 512 * 512}", path],
                           check=True, capture_output=True)  # fmt: skip
    with (
        nbd.image(paths[0], form, read_only=False, known_zero=known_zero) as first,
        nbd.image(paths[1], form, read_only=False, known_zero=known_zero) as second,
        Feed(data, 100_000) as fd,
    ):
        targets: dict[str, Target | None] = {"drive-scsi0": first, "drive-scsi1": second}
        vma.Reader(fd).copy(targets)
    assert content(paths[0], form) == DISK
    assert content(paths[1], form) == other
    if known_zero:
        assert paths[0].stat().st_blocks * 512 < 14 << 20
    assert servers_of(paths[0]) == []


def test_everything_together_with_a_compressor(qcow2: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.vma.zst"
    with compress.writing(path, compress.compressor("zstd", zstd=2)) as fd, nbd.image(qcow2, "qcow2") as export:
        vma.write(fd, {}, [vma.Disk("drive-scsi0", export)])
    with compress.reading(path, "zst") as fd:
        vma.extract(fd, tmp_path / "out")
    assert (tmp_path / "out/disk-drive-scsi0.raw").read_bytes() == DISK


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(PveError, match=r"no such image '.*gone'"), nbd.image(tmp_path / "gone", "raw"):
        pass


def test_an_image_of_another_format_is_refused_in_the_servers_words(raw: Path) -> None:
    with pytest.raises(PveError, match=r"cannot serve '.*disk\.raw': .*not in qcow2 format"), nbd.image(raw, "qcow2"):
        pass


def test_an_image_in_use_is_refused(tmp_path: Path) -> None:
    path = empty(tmp_path / "busy.qcow2", "qcow2", MIB)
    with (
        nbd.image(path, "qcow2", read_only=False),
        pytest.raises(PveError, match=r"cannot serve '.*busy\.qcow2': .*another process"),
        nbd.image(path, "qcow2"),
    ):
        pass


def test_a_read_only_export_cannot_be_written(raw: Path) -> None:
    with nbd.image(raw, "raw") as export, pytest.raises(PveError, match=r"NBD server of '.*disk\.raw': .*write"):
        export.finish_write(export.begin_write(0, memoryview(bytearray(4096))))


def test_an_error_in_the_block_ends_the_server(qcow2: Path) -> None:
    with pytest.raises(KeyError), nbd.image(qcow2, "qcow2"):
        assert servers_of(qcow2)
        raise KeyError
    assert servers_of(qcow2) == []


def test_a_server_that_dies_while_it_is_read_is_an_error(qcow2: Path) -> None:
    with pytest.raises(PveError, match=r"NBD server of '.*disk\.qcow2'"), nbd.image(qcow2, "qcow2") as export:
        os.kill(servers_of(qcow2)[0], signal.SIGKILL)
        archive(export)


def test_a_server_that_dies_while_it_is_written_is_an_error(tmp_path: Path) -> None:
    path = empty(tmp_path / "t.qcow2", "qcow2", len(DISK))
    data = samples.build({}, {"drive-scsi0": DISK})
    with (
        pytest.raises(PveError, match=r"NBD server of '.*t\.qcow2'"),
        nbd.image(path, "qcow2", read_only=False) as export,
        Feed(data) as fd,
    ):
        os.kill(servers_of(path)[0], signal.SIGKILL)
        vma.Reader(fd).copy({"drive-scsi0": export})


KILLED = """
import sys, time
from pathlib import Path
from pvetools.system import nbd
with nbd.image(Path(sys.argv[1]), "qcow2"):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_killed_tool_leaves_no_server_behind(qcow2: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, qcow2], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    assert len(servers_of(qcow2)) == 1
    child.kill()
    child.wait(10)
    child.stdout.close()
    wait_until(lambda: not servers_of(qcow2), "the end of the server")


@contextmanager
def nbdkit(folder: Path, *words: str) -> Iterator[Path]:
    """A server of the test's making."""
    path = folder / "kit"
    server = subprocess.Popen(["nbdkit", "-f", "--exit-with-parent", "-U", path, *words], stderr=subprocess.PIPE)
    try:
        wait_until(path.exists, "the socket of nbdkit")
        yield path
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_a_read_error_names_the_disk(tmp_path: Path, raw: Path) -> None:
    with nbdkit(tmp_path, "--filter=error", "file", str(raw), "error-pread=EIO", "error-pread-rate=20%") as path:
        export = nbd.Export(path, label="drive-scsi0")
        with pytest.raises(PveError, match=r"NBD server of 'drive-scsi0': .*(Input/output error|EIO)"):
            archive(export)
        export.close()


def test_a_full_target_names_the_disk(tmp_path: Path) -> None:
    words = ("--filter=error", "memory", str(len(DISK)), "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    data = samples.build({}, {"drive-scsi0": DISK})
    with nbdkit(tmp_path, *words) as path, Feed(data) as fd:
        export = nbd.Export(path, label="vm-100-disk-0")
        with pytest.raises(PveError, match=r"'vm-100-disk-0': .*(No space left|ENOSPC)"):
            vma.Reader(fd).copy({"drive-scsi0": export})
        export.close()


def test_requests_are_under_way_together(tmp_path: Path, raw: Path) -> None:
    """With 250 ms for each read, 24 reads one after the other would take six seconds."""
    with nbdkit(tmp_path, "--filter=delay", "pattern", "24M", "rdelay=250ms") as path:
        export = nbd.Export(path)
        started = time.monotonic()
        archive(export)
        assert time.monotonic() - started < 4
        export.close()


def test_a_server_without_block_status_is_read_completely(tmp_path: Path, raw: Path) -> None:
    with nbdkit(tmp_path, "--no-sr", "file", str(raw)) as path:
        export = nbd.Export(path)
        assert list(export.extents()) == [(len(DISK), False)]
        assert samples.read_archive(archive(export)) == {"drive-scsi0": DISK}
        export.close()


def test_an_unknown_export_is_refused(raw: Path, tmp_path: Path) -> None:
    with nbdkit(tmp_path, "--filter=exportname", "file", str(raw), "exportname-strict=true", "exportname=sda") as path:
        export = nbd.Export(path, "sda")
        assert export.size == len(DISK)
        export.close()
        with pytest.raises(PveError, match="sdb"):
            nbd.Export(path, "sdb")


def test_nobody_at_the_socket_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(PveError, match=r"cannot reach the NBD server of 'sda' at '.*nothing': No such file"):
        nbd.Export(tmp_path / "nothing", "sda")


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "CONNECT_TIMEOUT", 0.3)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mute"))
        listener.listen()
        with pytest.raises(PveError, match="did not answer within"):
            nbd.Export(tmp_path / "mute")


def test_a_missing_binding_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nbd", None)
    with pytest.raises(MissingTool, match="apt install python3-libnbd"):
        nbd.Export(tmp_path / "x")


MEMORY = """
import sys
from pathlib import Path
from pvetools.backup import vma
from pvetools.system import nbd
source, target, archive = map(Path, sys.argv[1:])
for _ in range(3):
    with nbd.image(source, "raw") as export, archive.open("wb") as file:
        vma.write(file.fileno(), {}, [vma.Disk("drive-scsi0", export)])
    with nbd.image(target, "raw", read_only=False) as export, archive.open("rb") as file:
        vma.Reader(file.fileno()).copy({"drive-scsi0": export})
peak = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak[0].split()[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Every second block is zero, so that there are as many requests as can be: 24576 writes."""
    size = 64 * MIB
    source, target = tmp_path / "source", tmp_path / "target"
    block = b"\x11" * 4096 + bytes(4096)
    source.write_bytes(block * (size // len(block)))
    empty(target, "raw", size)
    done = subprocess.run([sys.executable, "-c", MEMORY, source, target, tmp_path / "archive"], check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert target.read_bytes() == source.read_bytes()
    assert int(done.stdout) < 60


def test_reads_and_writes_by_hand(tmp_path: Path) -> None:
    path = empty(tmp_path / "hand.qcow2", "qcow2", 4 * CLUSTER)
    data = memoryview(bytearray(b"\x42" * CLUSTER))
    back = memoryview(bytearray(CLUSTER))
    with nbd.image(path, "qcow2", read_only=False) as export:
        assert export.capacity == 4 * CLUSTER
        export.finish_write(export.begin_write(CLUSTER, data))
        export.finish_write(export.begin_zero(CLUSTER, 4096))
        export.complete()
        export.finish_read(export.begin_read(CLUSTER, back), poll_one)
    assert bytes(back) == bytes(4096) + bytes(data[4096:])
    assert content(path, "qcow2")[CLUSTER : 2 * CLUSTER] == bytes(back)
