"""Our small NBD server, read by QEMU's tools and by libnbd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pvetools.storage import nbdserver
from pvetools.system import run
from pvetools.system.errors import PveError
from tests.sandbox.root import Root

DATA = os.urandom(1 << 20) + bytes(4 << 20) + os.urandom((3 << 20) + 512)


def read(offset: int, length: int) -> bytes:
    return DATA[offset : offset + length]


def run_dir(root: Root) -> list[str]:
    return sorted(path.name for path in (root / "run/pvetools").glob("nbd-*"))


def test_qemu_reads_every_byte(root: Root, tmp_path: Path) -> None:
    with nbdserver.serving(len(DATA), read) as url:
        assert len(run_dir(root)) == 1
        run.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", url, tmp_path / "copy.qcow2"], timeout=60)
        run.run(["qemu-img", "convert", "-O", "raw", tmp_path / "copy.qcow2", tmp_path / "copy.raw"], timeout=60)
    assert (tmp_path / "copy.raw").read_bytes() == DATA
    assert run_dir(root) == []


CLIENT = """
import sys, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
size = handle.get_size()
assert handle.is_read_only()
sys.stdout.buffer.write(handle.pread(4096, 100) + handle.pread(512, size - 512))
for offset, length in ((size - 10, 20), (size + 1, 1)):
    try:
        handle.set_strict_mode(0)
        handle.pread(length, offset)
    except nbd.Error as error:
        sys.stderr.write(error.errno + " ")
try:
    handle.pwrite(b"x" * 512, 0)
except nbd.Error as error:
    sys.stderr.write(error.errno)
sys.stdout.buffer.write(handle.pread(10, 0))
handle.shutdown()
"""


def test_other_clients_read_too_and_nobody_writes(root: Root) -> None:
    with nbdserver.serving(len(DATA), read) as url:
        done = subprocess.run([sys.executable, "-c", CLIENT, url], capture_output=True, timeout=60, check=True)
    assert done.stdout == DATA[100:4196] + DATA[-512:] + DATA[:10]
    assert set(done.stderr.decode().split()) <= {"EINVAL", "EPERM"}
    assert len(done.stderr.split()) == 3


def test_the_reason_of_a_failed_read_is_what_the_caller_gets(root: Root, tmp_path: Path) -> None:
    def fails(offset: int, length: int) -> bytes:
        if offset > 2 << 20:
            raise PveError("the server is tired")
        return read(offset, length)

    with pytest.raises(PveError, match="the server is tired"), nbdserver.serving(len(DATA), fails) as url:
        run.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", url, tmp_path / "copy.raw"], timeout=60)
    assert run_dir(root) == []


def test_nobody_has_to_come(root: Root) -> None:
    with nbdserver.serving(len(DATA), read):
        pass
    assert run_dir(root) == []


def test_any_failure_is_an_answer(root: Root, tmp_path: Path) -> None:
    def fails(offset: int, length: int) -> bytes:
        raise LookupError("nobody expected that")

    with pytest.raises(PveError, match="nobody expected that"), nbdserver.serving(len(DATA), fails) as url:
        run.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", url, tmp_path / "copy"], timeout=60)
