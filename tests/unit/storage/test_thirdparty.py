"""A type of storage that another package brings along: installed for real, and used like those that are built in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pvetools.options import thirdparty
from pvetools.storage import volumes
from pvetools.system import paths

PROJECT = Path(__file__).parents[3]
SOURCE = PROJECT / "tests/thirdparty/pvetools_shelf"
ENTRY = "import sys; sys.argv[0] = {tool!r}; from pvetools.cli.{tool} import main; sys.exit(main())"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def wheel(folder: Path, entry: str = "pvetools_shelf:Shelf") -> Path:
    """The example as a package to install: a ZIP archive with its metadata."""
    made, info = folder / "pvetools_shelf-1.0-py3-none-any.whl", "pvetools_shelf-1.0.dist-info"
    with zipfile.ZipFile(made, "w") as archive:
        archive.write(SOURCE / "__init__.py", "pvetools_shelf/__init__.py")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pvetools-shelf\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", f"[pvetools.storage]\nshelf = {entry}\n")
        archive.writestr(f"{info}/RECORD", "")
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Python packages with the example in it."""
    place = tmp_path_factory.mktemp("site")
    return install(wheel(tmp_path_factory.mktemp("wheel")), place)


def install(package: Path, place: Path) -> Path:
    options = ["--no-index", "--no-deps", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", place, package], check=True, timeout=120
    )
    assert (place / "pvetools_shelf-1.0.dist-info/entry_points.txt").exists()
    return place


@pytest.fixture
def run(root: Path, site: Path) -> Callable[..., Ran]:
    """Run a tool as a process that finds the package."""

    def run(tool: str, *words: str, place: Path = site) -> Ran:
        path = os.pathsep.join([str(place), str(PROJECT)])
        done = subprocess.run(
            [sys.executable, "-c", ENTRY.format(tool=tool), *words], env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the tools are for root")


def test_it_is_defined_used_changed_and_removed_like_any_other(run: Callable[..., Ran], root: Path) -> None:
    (root / "hall").mkdir()
    (root / "hall/oak.lock").write_text("acorn")
    ran = run("pvesm", "add", "shelf", "mine", "--path", f"{root}/hall", "--shelf", "oak", "--shelf-key", "nut")
    assert (ran.code, ran.err) == (255, "storage 'mine': the key does not fit\n")
    assert not paths.storage_config().exists()
    assert not [*root.glob("etc/pve/priv/storage/*")]

    ran = run("pvesm", "add", "shelf", "mine", "--path", f"{root}/hall", "--shelf", "oak", "--shelf-key", "acorn")
    assert ran.code == 0, ran.err
    assert paths.storage_config().read_text() == f"shelf: mine\n\tpath {root}/hall\n\tshelf oak\n"
    key = root / "etc/pve/priv/storage/mine.shelf-key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("acorn", 0o600)
    assert ["mine", "shelf", "active"] in [line.split()[:3] for line in run("pvesm", "status").out.splitlines()]
    assert run("pvesm", "alloc", "mine", "100", "", "1M").out == "successfully created 'mine:100/vm-100-disk-0.qcow2'\n"
    assert (root / "hall/oak/images/100/vm-100-disk-0.qcow2").exists()
    assert "mine:100/vm-100-disk-0.qcow2" in run("pvesm", "list", "mine").out
    shown = json.loads(run("pvesh", "get", "/storage/mine", "--output-format", "json").out)
    assert (shown["type"], shown["shelf"], "shelf-key" in shown) == ("shelf", "oak", False)
    listed = json.loads(run("pvesh", "get", "/storage", "--type", "shelf", "--output-format", "json").out)
    assert [row["storage"] for row in listed] == ["mine"]

    assert run("pvesm", "set", "mine", "--shelf", "elm", "--content", "images,iso").code == 0
    assert "\tshelf elm\n" in paths.storage_config().read_text()
    assert run("pvesm", "remove", "mine").code == 0
    assert not key.exists()
    assert (root / "hall/oak/images/100/vm-100-disk-0.qcow2").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shelf", "Oak"], "shelf: value 'Oak' does not match the regex pattern"),
        ([], "shelf: property is missing and it is not optional"),
        (["--shelf", "oak", "--server", "x"], "server: unexpected property for storage type 'shelf'"),
        (["--shelf", "oak", "--content", "backup"], "storage type 'shelf' does not support content type 'backup'"),
        (["--shelf", "oak", "--nonsense", "1"], "Unknown option: nonsense"),
    ],
)
def test_its_options_are_checked(run: Callable[..., Ran], root: Path, words: list[str], sentence: str) -> None:
    ran = run("pvesm", "add", "shelf", "mine", "--path", f"{root}/hall", *words)
    assert ran.code != 0
    assert sentence in ran.err
    assert not paths.storage_config().exists()


def test_its_options_are_no_others(run: Callable[..., Ran], root: Path) -> None:
    ran = run("pvesm", "add", "dir", "mine", "--path", f"{root}/hall", "--shelf", "oak")
    assert "shelf: unexpected property for storage type 'dir'" in ran.err


def test_a_broken_package_is_named_and_hides_no_other_storage(
    run: Callable[..., Ran], root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = tmp_path_factory.mktemp("broken")
    install(wheel(tmp_path_factory.mktemp("wheel"), "pvetools_shelf:Missing"), broken)
    paths.storage_config().write_text(f"shelf: mine\n\tpath {root}/hall\n\tshelf oak\n")
    ran = run("pvesm", "status", place=broken)
    assert ran.code == 0
    assert [line.split()[:3] for line in ran.out.splitlines()[1:]] == [["local", "dir", "active"]]
    assert "storage type 'shelf': can't load 'pvetools_shelf:Missing'" in ran.err


def test_nobody_looks_for_packages_of_built_in_types(root: Path) -> None:
    paths.storage_config().write_text(f"dir: mine\n\tpath {root}/hall\n\tcontent iso\n\tfuture option\n")
    thirdparty.entries.cache_clear()
    assert [row.active for row in volumes.status()] == [True, True]
    assert volumes.list_volumes("mine") == []
    assert volumes.volume_id(root / "elsewhere") is None
    assert thirdparty.entries.cache_info().currsize == 0
