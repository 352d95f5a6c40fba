"""What every storage has to do whose volumes are made elsewhere: one suite for all of them.

A test file takes it in with `from tests.real.storage_vm.foreign import *` and supplies the fixture `server`, which also
defines the storage.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pvetools.storage import registry, volumes
from pvetools.system import paths
from pvetools.system.errors import NotFound, PveError, Refused
from tests.real.storage_vm.beds import STORAGE, sh
from tests.real.storage_vm.contract import BLOCK, EVIL, MIB, holds, put


@dataclass(frozen=True)
class Server:
    """A server with volumes, ready to be used.

    `section` is its storage's part of storage.cfg; `backing` what lies behind the volumes on the server (files or
    devices), by size in bytes.
    """

    section: str
    backing: dict[int, Path]
    absent: str  # name of a volume that is not there
    kind: str = "block"

    def define(self, *more: str) -> None:
        paths.storage_config().write_text(self.section.rstrip("\n") + "\n" + "".join(f"\t{line}\n" for line in more))

    def volume(self, number: int = 0) -> str:
        """The volume of a size, by the order of sizes."""
        size = sorted(self.backing)[number]
        (found,) = [row.volid for row in volumes.list_volumes(STORAGE) if row.size == size]
        return found

    def read(self, size: int, place: int = 0, length: int = BLOCK) -> bytes:
        """What the server has."""
        with self.backing[size].open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(place)
            return file.read(length)


def test_it_is_active_and_tells_no_space(server: Server) -> None:
    volumes.usable(STORAGE)  # to connect at first may take longer than a question for the status lasts
    (row,) = volumes.status(STORAGE)
    assert row.active, row.reason
    assert row.space == (0, 0, 0)
    assert registry.driver(volumes.get(STORAGE)).info.foreign


def test_its_volumes_are_found_with_their_sizes(server: Server) -> None:
    found = volumes.list_volumes(STORAGE)
    assert sorted(row.size for row in found) == sorted(server.backing)
    for row in found:
        assert (row.content, row.format, row.vmid) == ("images", "raw", None)
        assert volumes.info(row.volid) == row
        assert volumes.exists(row.volid)
        assert volumes.owner(row.volid) is None
    assert volumes.list_volumes(STORAGE, ["images"]) == found
    assert volumes.list_volumes(STORAGE, ["images"], vmid=100) == []
    assert volumes.owned_by(100) == []


def test_what_is_written_reaches_the_server(server: Server) -> None:
    for number, size in enumerate(sorted(server.backing)):
        volid = server.volume(number)
        put(volid, 0x11 + number)
        put(volid, 0x33 + number, size - BLOCK)
        assert holds(volid, 0x11 + number)
        sh("sync")
        assert server.read(size) == bytes([0x11 + number]) * BLOCK
        assert server.read(size, size - BLOCK) == bytes([0x33 + number]) * BLOCK


def test_a_volume_is_reached_where_its_path_says(server: Server) -> None:
    found = volumes.source(server.volume())
    assert found.path == volumes.path(server.volume())
    assert found.kind == server.kind
    assert found.format == "raw"
    assert found.path.is_block_device() == (server.kind == "block")


@pytest.mark.parametrize("name", [*EVIL, "0.0.0.sda", "0.0.0.scsi-../x", "ns1.nvme-../../sda", "lun-1", "lun1/../2"])
def test_names_that_are_none_reach_no_tool(server: Server, name: str) -> None:
    volid = f"{STORAGE}:{name}"
    for act in (volumes.path, volumes.source, volumes.info, volumes.free, lambda volid: volumes.resize(volid, MIB)):
        with pytest.raises(PveError):
            act(volid)


def test_volumes_that_are_not_there_are_told(server: Server) -> None:
    other = f"{STORAGE}:{server.absent}"
    assert not volumes.exists(other)
    for act in (volumes.source, volumes.info, volumes.free, lambda volid: volumes.resize(volid, MIB)):
        with pytest.raises(NotFound, match=f"volume '{other}' does not exist"):
            act(other)


def test_what_only_the_server_can_do_is_refused(server: Server) -> None:
    volid = server.volume()
    put(volid, 0x44)
    elsewhere = f"the volumes of storage '{STORAGE}' are made, sized and removed on its server"
    with pytest.raises(Refused, match=f"can't allocate a volume: {elsewhere}"):
        volumes.alloc(STORAGE, 100, MIB)
    with pytest.raises(Refused, match=f"can't remove volume '{volid}': {elsewhere}"):
        volumes.free(volid)
    with pytest.raises(Refused, match=f"can't resize volume '{volid}': {elsewhere}"):
        volumes.resize(volid, 1 << 30)
    with pytest.raises(Refused, match="has no snapshots of volumes of format 'raw'"):
        volumes.snapshot(volid, "first")
    with pytest.raises(Refused, match="has no base volumes of volumes of format 'raw'"):
        volumes.make_base(volid)
    for what in ("snapshot", "base", "resize", "online_resize"):
        assert not volumes.can(volid, what)
    assert holds(volid, 0x44)
    assert sorted(row.size for row in volumes.list_volumes(STORAGE)) == sorted(server.backing)


def test_without_content_its_volumes_are_still_shown_to_those_who_build_on_them(server: Server) -> None:
    server.define("content none")
    assert len(volumes.list_volumes(STORAGE)) == len(server.backing)
    assert volumes.list_volumes(STORAGE, ["images"]) == []
    volid = server.volume()
    assert volumes.source(volid).format == "raw"
    with pytest.raises(Refused, match="does not support content type 'images', only: nothing"):
        volumes.usable(STORAGE, "images")
    server.define()


def _seen(_: int) -> list[str]:
    return [row.volid for row in volumes.list_volumes(STORAGE)]


def test_many_who_look_at_once_see_the_same(server: Server) -> None:
    expected = _seen(0)
    registry.driver(volumes.get(STORAGE)).deactivate()
    with multiprocessing.get_context("fork").Pool(6) as pool:
        assert pool.map(_seen, range(12), chunksize=1) == [expected] * 12


def test_pvesm_shows_them(server: Server, cli: Callable[..., str]) -> None:
    volid = server.volume()
    assert volid in cli("pvesm", "list", STORAGE)
    assert "can't remove volume" in cli("pvesm", "free", volid, status=255)


def test_an_image_gets_in_and_out_byte_by_byte(server: Server, tmp_path: Path) -> None:
    size = min(server.backing)
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(MIB) + bytes(6 * MIB) + os.urandom(MIB))
    found = volumes.source(server.volume())
    image, opening = shlex.quote(found.image), shlex.join(found.options)
    sh(f"qemu-img convert {opening} -n -f raw -O raw {source} {image}")
    sh(f"qemu-img convert {opening} -f raw -O raw {image} {back}")
    assert back.stat().st_size == size
    with back.open("rb") as file:
        assert file.read(8 * MIB) == source.read_bytes()
