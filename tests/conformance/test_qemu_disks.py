"""Disks are opened as Proxmox VE opens them: cache, aio, discard and zeros of each disk in the public command lines.

The storages of those command lines are our real backends here, so what each of them advises is compared as well.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pvetools.config import guest
from pvetools.guest.qemu import domain
from pvetools.guest.qemu.place import Source
from pvetools.options.qemu import QemuOptions
from pvetools.options.storage import StorageOptions
from pvetools.schema.core import NestedErrors
from pvetools.storage import registry
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Network
from pvetools.system.errors import Refused
from tests.conformance.loader import FOLDER
from tests.unit.qemu import places

CASES = sorted((FOLDER / "qemu-cmdline").glob("*.cmd"))
# what a disk of a server is opened with
NETWORK = {"rbd": "rbd", "zfs": "iscsi"}
AT_LEAST = 60


def environment() -> dict[str, Any]:
    text = (FOLDER / "qemu-cmdline/environment.json").read_text()
    return dict(json.loads(text)["storage"])


def hinted(name: str, given: dict[str, Any]) -> Source:
    """A volume of a storage with the advice of its backend."""
    kept = {key: str(value) for key, value in given.items() if key not in ("content", "type", "fsid", "bwlimit")}
    options = StorageOptions.read({**kept, "storage": name, "type": given["type"]})
    info = registry.driver(Definition(name, given["type"], options)).info
    protocol = "" if given.get("krbd") else NETWORK.get(given["type"], "")
    network = Network(protocol, "pool/image", (("192.0.2.1", 3300),)) if protocol else None
    return Source("/path", "raw", not info.files and not network, network, info.cache, info.io_uring)


class Volumes(places.Volumes):
    """Volumes of the storages of the public command lines."""

    def __missing__(self, volid: str) -> Source:
        known = environment()
        name = volid.partition(":")[0]
        if name == "local" or name not in known:
            return super().__missing__(volid)
        return hinted(name, known[name])


def expected(path: Path) -> dict[str, dict[str, object]]:
    """Disk -> how it is opened."""
    found: dict[str, dict[str, object]] = {}
    for word in shlex.split(path.read_text().replace("\\\n", " ")):
        if not word.startswith('{"'):
            continue
        node = json.loads(word)
        match = re.fullmatch(r"drive-((?:scsi|virtio|sata|ide)\d+)", str(node.get("node-name")))
        if match and not node.get("read-only"):
            image = node["file"]
            while "filename" not in image and isinstance(image.get("file"), dict):
                image = image["file"]
            found[match[1]] = {
                "direct": image["cache"]["direct"], "aio": image.get("aio"), "discard": node["discard"],
                "zeroes": node["detect-zeroes"],
            }  # fmt: skip
    return found


def ours(xml: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for disk in ElementTree.fromstring(xml).iterfind("devices/disk"):
        driver, alias = disk.find("driver"), disk.find("alias")
        assert driver is not None
        assert alias is not None
        found[alias.get("name", "").removeprefix("ua-")] = {
            "direct": driver.get("cache") in ("none", "directsync"), "aio": driver.get("io"),
            "discard": driver.get("discard"), "zeroes": driver.get("detect_zeroes"),
        }  # fmt: skip
    return found


def compared(path: Path) -> dict[str, tuple[object, object]]:
    """Disks that both have, opened both ways; none when we refuse the configuration."""
    config = path.with_suffix(".conf")
    section = {
        key: value for key, value in guest.parse("qemu", 100, config.read_text(), config).current.items() if value
    }
    try:
        made = domain.define(QemuOptions.read(section), places.place(vmid=8006, sources=Volumes()))
    except (Refused, NestedErrors):
        return {}
    there, here = expected(path), ours(made.xml)
    return {name: (there[name], here[name]) for name in there.keys() & here.keys()}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_disk_is_opened_as_by_proxmox_ve(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    for name, (there, here) in compared(path).items():
        assert here == there, name


@pytest.mark.skipif(not CASES, reason="no public cases")
def test_enough_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    assert sum(len(compared(path)) for path in CASES) >= min(AT_LEAST, len(CASES) // 3)
