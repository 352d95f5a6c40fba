"""What is carried into the VM: the Python packages of this environment once, this checkout at each run."""

from __future__ import annotations

import importlib.metadata
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.sandbox import cache, image, template

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = "/srv/packages"
CHECKOUT = "/srv/checkout"
ASSETS = "/srv/assets"
# Before the distribution's own packages: its pytest and typer are other versions.
PTH = "/usr/lib/python3/dist-packages/pvetools.pth"
PTH_TEXT = f"import sys; sys.path[0:0] = ['{PACKAGES}', '{CHECKOUT}']\n"
ROOTS = ("typer", "rich", "pyyaml", "psutil", "pyroute2", "pytest", "pytest-timeout")
FOLDERS = ("pvetools", "tests")
FILES = ("pyproject.toml",)


def _distributions() -> list[importlib.metadata.Distribution]:
    """The wanted distributions with those that they need here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = list(ROOTS)
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        try:
            made = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in ROOTS:
                raise cache.NotAvailable(f"the Python package {name} is not installed") from None
            continue  # needed elsewhere only
        found[name] = made
        for line in made.requires or ():
            if "extra ==" not in line:
                wanted.append(re.match(r"[\w.-]+", line)[0])  # type: ignore[index]
    return [found[name] for name in sorted(found)]


def fingerprint() -> str:
    """Names and versions of the packages."""
    return " ".join(f"{made.metadata['Name']}={made.version}" for made in _distributions())


def _members() -> Iterator[tuple[Path, str]]:
    for made in _distributions():
        for file in made.files or ():
            if ".." not in file.parts and not file.is_absolute():
                path = Path(str(made.locate_file(file)))
                if path.is_file():
                    yield path, str(file)


def packages(out: IO[bytes]) -> None:
    """Write the packages as a tar."""
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, name in _members():
            tar.add(path, name)


def checkout(out: IO[bytes]) -> None:
    """Write the sources and tests of this checkout as a tar, with what Python has compiled of them."""
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in FOLDERS:
            for path in sorted((REPOSITORY / folder).rglob("*")):
                if path.is_file() and path.suffix != ".tmp":
                    _add(tar, path)
        for name in FILES:
            _add(tar, REPOSITORY / name)


def assets(out: IO[bytes]) -> None:
    """Write what guests are made of as a tar: the small container template, and the bootable disk image."""
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in (template.small(), image.newest()):
            tar.add(path, path.name)


def _add(tar: tarfile.TarFile, path: Path) -> None:
    """Add a file that others may be writing right now: what is read is what is declared."""
    try:
        data = path.read_bytes()
        entry = tar.gettarinfo(path, str(path.relative_to(REPOSITORY)))
    except FileNotFoundError:
        return
    entry.size, entry.uid, entry.gid = len(data), 0, 0
    tar.addfile(entry, io.BytesIO(data))
