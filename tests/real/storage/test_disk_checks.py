"""What keeps a disk from being wiped. The disk is a loop device, so it is described by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.storage.disks import checks, facts, groups, storages
from pvetools.storage.disks import list as disks
from pvetools.system import paths
from pvetools.system.errors import PveError, Refused
from tests.sandbox.root import fresh

MIB = 1 << 20


def sh(command: str, stdin: str = "") -> str:
    words = ["/bin/sh", "-ec", command]
    return subprocess.run(words, input=stdin, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def root() -> Iterator[Path]:
    with fresh() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PVETOOLS_ROOT", str(made.path))
        yield made.path


@pytest.fixture
def disk(root: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 MiB."""
    with (tmp_path / "image").open("wb") as file:
        file.truncate(256 * MIB)
    made = sh(f"losetup -f --show {tmp_path}/image").strip()
    yield Path(made)
    sh(f"partx -d {made} || true; losetup -d {made}; rm -f {made}p*")


def parted(disk: Path, script: str) -> list[Path]:
    """Partitions of a disk; the nodes of loop devices' partitions are made here where nobody else does."""
    sh(f"sfdisk -q {disk}; partx -a {disk} || partx -u {disk}", script)
    found = sorted(Path("/sys/block", disk.name).glob(f"{disk.name}p*"))
    for folder in found:
        major, minor = (folder / "dev").read_text().strip().split(":")
        sh(f"test -b /dev/{folder.name} || mknod /dev/{folder.name} b {major} {minor}")
    return [Path("/dev", folder.name) for folder in found]


def described(disk: Path, *parts: Path, chosen: Path | None = None) -> checks.Device:
    blocks = tuple(disks.Block(part.name) for part in parts)
    whole = disks.Block(disk.name, 256 * MIB, partitions=blocks)
    return checks.Device(chosen or disk, whole, next((one for one in blocks if one.path == str(chosen)), None))


def test_an_extended_partition_is_left_alone_but_not_its_disk_nor_what_lies_in_it(disk: Path) -> None:
    script = "label: dos\nsize=64M,type=83\nsize=128M,type=f\n5: size=32M,type=83\n"
    first, extended, logical = parts = parted(disk, script)
    with pytest.raises(Refused, match=f"'{extended}' is an extended partition"):
        checks.require_idle(described(disk, *parts, chosen=extended))
    for chosen in (first, logical, None):
        checks.require_idle(described(disk, *parts, chosen=chosen))


def test_a_disk_with_inactive_volumes_of_a_guest_is_left_alone(disk: Path) -> None:
    (part,) = parts = parted(disk, "label: gpt\ntype=linux\n")
    sh(f"pvcreate -qq {part} && vgcreate -qq vgchecked {part}")
    try:
        paths.storage_config().write_text("lvm: store\n\tvgname vgchecked\n\nlvm: other\n\tvgname more\n")
        config = paths.guest_config("qemu", 100)
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text("scsi0: other:vm-100-disk-0,size=1G\n")
        for chosen in (part, None):
            checks.require_idle(described(disk, *parts, chosen=chosen))
        config.write_text("scsi0: store:vm-100-disk-0,size=1G\n")
        for chosen in (part, None):
            with pytest.raises(Refused, match="volume 'store:vm-100-disk-0' belongs to VM 100"):
                checks.require_idle(described(disk, *parts, chosen=chosen))
    finally:
        sh("vgremove -qqf vgchecked")


def test_only_the_partition_that_was_given_is_emptied_again(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = parts = parted(disk, "label: gpt\ntype=linux\n")
    whole = described(disk, *parts).disk
    monkeypatch.setattr(facts, "blocks", lambda *_: iter([whole]))

    def failing(_: storages.New) -> None:
        assert "vgchecked" in sh("vgs --noheadings -o vg_name")
        raise PveError("no room for the definition")

    monkeypatch.setattr(storages.New, "add", failing)
    with pytest.raises(PveError, match="no room for the definition"):
        groups.create("vgchecked", str(part), add_storage=True)
    assert "vgchecked" not in sh("vgs --noheadings -o vg_name")
    assert sh(f"wipefs -n {part}") == ""
    assert "gpt" in sh(f"wipefs -n {disk}")
    assert sh(f"sfdisk --part-type {disk} 1").strip() == "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
