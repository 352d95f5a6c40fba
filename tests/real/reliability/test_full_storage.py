"""A storage that runs full in the middle: one clear sentence, and nothing is left on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.reliability.scenes import Ct, Kind, Material, Vm
from tests.real.reliability.stage import MIB, configs, put_template, temporary_files, volumes
from tests.sandbox.root import Result, Root
from tests.sandbox.zygote import QuickRoot

KINDS = pytest.mark.parametrize("kind", [Vm, Ct], ids=["VM", "CT"])
SPACE = MIB


@pytest.fixture
def root(base: QuickRoot, material: Material) -> QuickRoot:
    put_template(base, material.template)
    return base


@pytest.fixture
def tight(root: QuickRoot) -> Iterator[Path]:
    """A storage "tight" of one MiB, for everything."""
    folder = root / "tight"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs", folder], check=True)
    root.cli("pvesm", "add", "dir", "tight", "--path", folder, "--content", "images,rootdir,backup", ok=True)
    root.cli("pvesm", "status", ok=True)  # makes its folders
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def check_nothing(root: Root, tight: Path, said: Result, guests: set[int]) -> None:
    assert said.status != 0, said
    assert "internal error" not in said.stderr
    assert any(words in said.stderr for words in ("No space left", "is full")), said
    assert not [path for path in tight.rglob("*") if not path.is_dir() and path.suffix != ".log"]
    assert set(configs(root)) == guests
    assert not any(guest.lock for guest in configs(root).values())
    assert not temporary_files(root)
    assert not root.loops()
    assert {name for name in root.running() if name != "mounts"} == set()
    assert root.mounts() == [str(tight)]


@KINDS
def test_creation(root: QuickRoot, tight: Path, kind: Kind, tmp_path: Path) -> None:
    large = tmp_path / "large.raw"
    large.write_bytes(os.urandom(5 * MIB))
    words = {
        Vm: ("--scsi0", f"tight:0,import-from={large}"),
        Ct: ("--rootfs", "tight:0.01"),
    }[kind]
    template = next((root / "var/lib/vz/template/cache").iterdir()).name
    source = () if kind is Vm else (f"local:vztmpl/{template}",)
    check_nothing(root, tight, root.cli(kind.tool, "create", 101, *source, *words), set())


def test_import(root: QuickRoot, tight: Path, material: Material, tmp_path: Path) -> None:
    large = tmp_path / "large.raw"
    large.write_bytes(os.urandom(5 * MIB))
    root.cli(*Vm.create(100, material), ok=True)  # type: ignore[arg-type]
    before = root.config(100).read_bytes()
    check_nothing(root, tight, root.cli("qm", "disk", "import", 100, large, "tight", "--format", "qcow2"), {100})
    assert root.config(100).read_bytes() == before


@KINDS
def test_backup(root: QuickRoot, tight: Path, kind: Kind, material: Material) -> None:
    root.cli(*kind.create(100, material), ok=True)  # type: ignore[arg-type]
    kind.put_data(root)
    content = kind.content(root, 100)
    filler = tight / "filler.log"
    filler.write_bytes(bytes(SPACE - MIB // 4))
    said = root.cli("vzdump", 100, "--storage", "tight", "--compress", "zstd")
    check_nothing(root, tight, said, {100})
    assert kind.content(root, 100) == content


def test_backup_of_a_running_machine(root: QuickRoot, tight: Path, material: Material) -> None:
    root.cli(*Vm.create(100, material), ok=True)  # type: ignore[arg-type]
    root.cli("qm", "start", 100, ok=True)
    (tight / "filler.log").write_bytes(bytes(SPACE - MIB // 4))
    said = root.cli("vzdump", 100, "--storage", "tight", "--compress", "zstd")
    assert "qmpstatus: running" in root.cli("qm", "status", 100, "--verbose", ok=True).stdout
    root.cli("qm", "stop", 100, ok=True)
    check_nothing(root, tight, said, {100})


@KINDS
def test_restore(root: QuickRoot, tight: Path, kind: Kind, material: Material) -> None:
    root.cli(*kind.create(100, material), ok=True)  # type: ignore[arg-type]
    kind.put_data(root)
    if kind is Vm:
        for path in volumes(root, 100).values():
            subprocess.run(["qemu-io", "-f", path.suffix[1:], "-c", "write -P 7 4M 3M", path], check=True)
    root.cli("vzdump", 100, "--compress", "zstd", "--storage", "local", ok=True)
    (archive,) = (root / "var/lib/vz/dump").glob("*.zst")
    words = kind.restore(101, f"local:backup/{archive.name}")
    said = root.cli(*[word for word in words if word not in ("--storage", "local")], "--storage", "tight")  # type: ignore[arg-type]
    check_nothing(root, tight, said, {100})


@pytest.mark.parametrize("command", [("set", "--memory", 96), ("destroy",)])
def test_a_full_configuration_folder(root: QuickRoot, material: Material, command: tuple[object, ...]) -> None:
    """A guest's file is the old or the new one, never a part; what needs no space still works."""
    root.cli(*Vm.create(100, material), ok=True)  # type: ignore[arg-type]
    folder = root.config(100).parent
    before = root.config(100).read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    try:
        (folder / "100.conf").write_bytes(before)
        with pytest.raises(OSError, match="No space"), (folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        said = root.cli("qm", command[0], 100, *command[1:])
        if command[0] == "destroy":
            assert said.status == 0, said
            assert not volumes(root, 100)
        else:
            assert said.status != 0
            assert "No space left" in said.stderr
            assert "internal error" not in said.stderr
            assert (folder / "100.conf").read_bytes() == before
            assert sorted(path.name for path in folder.iterdir()) == ["100.conf", "filler"]
    finally:
        subprocess.run(["umount", folder], check=True)
