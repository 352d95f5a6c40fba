"""Images of RBD that the kernel shows as block devices: which there are, mapping and unmapping."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import blockdev
from pvetools.storage.ceph import Cluster
from pvetools.system import lock, paths
from pvetools.system.errors import PveError, RunError

_BUS = Path("/sys/bus/rbd/devices")
_GROWN_WITHIN = 10.0  # seconds until the kernel has heard of a new size
_MAPPED_WITHIN = 60.0  # seconds that another command may take for it
_BUSY = 16  # exit status of `rbd unmap`


class Image(NamedTuple):
    """An image in a cluster."""

    pool: str
    namespace: str
    name: str

    @property
    def spec(self) -> str:
        """As Ceph's tools write it."""
        return "/".join(part for part in self if part)


def link(image: Image) -> Path:
    """The link that udev makes for a mapped image."""
    return Path("/dev/rbd", image.spec)


def mapped(pool: str, namespace: str) -> list[str]:
    """Names of the images of a pool, of whichever cluster, that the kernel has."""
    entries = [*_BUS.glob("*")]
    places = {entry: (_read(entry, "pool"), _read(entry, "pool_ns")) for entry in entries}
    return [_read(entry, "name") for entry, place in places.items() if place == (pool, namespace)]


def find(cluster: Cluster, image: Image) -> Path | None:
    """The device of an image that is mapped; None for one that is not."""
    found = [entry for entry in _BUS.glob("*") if _is(entry, image)]
    if not found:
        return None
    fsid = cluster.fsid()  # two clusters may have the same names
    for entry in found:
        if _read(entry, "cluster_fsid") == fsid:
            device = Path(f"/dev/rbd{entry.name}")
            place = link(image)
            return place if os.path.realpath(place) == str(device) else device
    return None


def _is(entry: Path, image: Image) -> bool:
    told = (_read(entry, "pool"), _read(entry, "pool_ns"), _read(entry, "name"), _read(entry, "current_snap"))
    return told == (*image, "-")


def _read(entry: Path, attribute: str) -> str:
    try:
        return (entry / attribute).read_text().strip()
    except OSError:
        return ""  # unmapped meanwhile


def map_(cluster: Cluster, image: Image) -> Path:
    """Have an image as a block device.

    Raises:
        PveError: the kernel or the cluster refuses.
    """
    with _locked(image):
        found = find(cluster, image)
        if found is None:
            cluster.run("rbd", "device", "map", *_udev(), image.spec)
            found = find(cluster, image)
    if found is None:
        raise PveError(f"storage '{cluster.storage}': image '{image.spec}' was mapped, but the kernel shows no device")
    blockdev.wait_for(found)
    return found


def _locked(image: Image) -> contextlib.AbstractContextManager[None]:
    """Between looking for a device and making one nobody else may do the same: the kernel would make two."""
    name = f"krbd-{image.spec.replace('/', ':')}.lock"
    return lock.locked(paths.lock_dir() / name, _MAPPED_WITHIN, what=f"image '{image.spec}'")


def _udev() -> list[str]:
    """Without udev nobody tells that the device has come."""
    return [] if Path("/run/udev/control").exists() else ["--options", "noudev"]


def unmap(cluster: Cluster, image: Image) -> str:
    """Give up the devices of an image; gives who uses one, in words, when that is not possible.

    There may be more than one: other programs map as well.

    Raises:
        RunError: the kernel refuses for another reason.
    """
    with _locked(image):
        gone = ""  # one that still shows is on its way
        while (found := find(cluster, image)) and (device := os.path.realpath(found)) != gone:
            try:
                cluster.run("rbd", "device", "unmap", *_udev(), device)
            except RunError as error:
                if error.code != _BUSY:
                    raise
                return blockdev.user_of(found) or "this host's kernel"
            gone = device
        if gone:
            _await_no_link(image)
    return ""


def _await_no_link(image: Image) -> None:
    """Wait for udev to remove its link."""
    with contextlib.suppress(OSError):
        deadline = time.monotonic() + _GROWN_WITHIN
        while link(image).is_symlink() and time.monotonic() < deadline:
            time.sleep(0.01)


def await_size(cluster: Cluster, image: Image, size: int) -> None:
    """Wait until the kernel shows a mapped image with its new size."""
    found = find(cluster, image)
    deadline = time.monotonic() + _GROWN_WITHIN
    while found and blockdev.size(found) < size and time.monotonic() < deadline:
        time.sleep(0.02)
