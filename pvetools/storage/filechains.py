"""Snapshots of qcow2 files as files beside them, for storages with the option ``snapshot-as-volume-chain``.

``vm-100-disk-0.qcow2`` holds what was written since the newest snapshot and lies on
``snap-NEW-vm-100-disk-0.qcow2``, which lies on the next older one, and so on. Names and layout are those of Proxmox VE.
Whatever is interrupted leaves a volume that reads as before or as after.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pvetools.storage import images
from pvetools.storage.driver import Snapshot
from pvetools.system import files, run
from pvetools.system.errors import NotFound, PveError

_START = r"snap-(?:[a-zA-Z]|__)[\w-]*?"
_LAYER = re.compile(rf"{_START}-(?:vm|base)-\d+-[^/]+\.qcow2", re.ASCII)
# As Proxmox VE makes them: small writes take no whole cluster from the image below.
_FORM = "extended_l2=on,cluster_size=128k"


def is_layer(name: str) -> bool:
    """Whether a file name is that of a snapshot."""
    return bool(_LAYER.fullmatch(name))


def layer(image: Path, snapshot: str) -> Path:
    """The file of a snapshot."""
    return image.with_name(f"snap-{snapshot}-{image.name}")


def _coming(image: Path) -> Path:
    """An image that is to take a volume's place, before it does."""
    return image.with_name(f".{image.name}.new")


def _chain(image: Path) -> list[Path]:
    """A volume's image and the files of its snapshots, the newest first.

    Raises:
        PveError: one is missing or damaged. FileNotFoundError: the image is missing.
    """
    chain, backing = [image], images.inspect(image, "qcow2").backing
    while below := _layer_of(image, Path(backing)):
        if below in chain:
            raise PveError(f"'{image}' lies on '{below}' in a circle")
        try:
            backing = images.inspect(below, "qcow2").backing
        except FileNotFoundError:
            raise PveError(f"'{chain[-1]}' lies on '{below}', which is missing") from None
        chain.append(below)
    return chain


def _layer_of(image: Path, backing: Path) -> Path | None:
    """The snapshot of an image that the header of one of its files means."""
    if not _is_own(image, backing.name) or backing.parent not in (Path(), image.parent):
        return None
    return image.with_name(backing.name)


def _is_own(image: Path, name: str) -> bool:
    """Whether a file name is that of a snapshot of an image, not of a longer one such as ``vm-100-vm-100-disk-0``."""
    if not is_layer(name) or not re.fullmatch(rf"{_START}-{re.escape(image.name)}", name, re.ASCII):
        return False
    words = name.removesuffix(f"-{image.name}").split("-")
    longer = (f"{'-'.join(words[start:])}-{image.name}" for start in range(2, len(words)))
    return not any(not is_layer(other) and os.path.lexists(image.with_name(other)) for other in longer)


def backing(image: Path) -> str:
    """What an image lies on below all its snapshots, in the words of its header: the base of a linked clone."""
    return images.inspect(_chain(image)[-1], "qcow2").backing


def snapshots(image: Path) -> list[Snapshot]:
    """All snapshots, the oldest first."""
    start, end = len("snap-"), len(image.name) + 1
    return [Snapshot(path.name[start:-end], int(path.stat().st_mtime)) for path in _chain(image)[:0:-1]]


def keep(image: Path, snapshot: str) -> None:
    """Make the present state a snapshot: the image becomes the snapshot's file, an empty one takes its place."""
    kept = layer(image, snapshot)
    for path in _layers(image):
        if path.samefile(image):
            path.unlink()  # from an interrupted attempt, whatever name that one was to have
    with _replacing(image, kept.name, images.inspect(image, "qcow2").size):
        os.utime(image)
        try:
            kept.hardlink_to(image)
        except FileExistsError:
            raise PveError(f"'{kept}' exists already, but does not belong to '{image}'") from None
        except OSError:  # a server without links
            image.rename(kept)


def back(image: Path, snapshot: str) -> None:
    """Give an image the state of its newest snapshot: an empty one on it takes its place."""
    kept = layer(image, snapshot)
    with _replacing(image, kept.name, images.inspect(kept, "qcow2").size):
        pass


@contextlib.contextmanager
def _replacing(image: Path, below: str, size: int) -> Iterator[None]:
    """Make an empty image on another file, which takes an image's place when the block is through."""
    coming = _coming(image)
    coming.unlink(missing_ok=True)
    with contextlib.ExitStack() as undo:
        undo.callback(coming.unlink, missing_ok=True)
        # -u: the file below has its name only later
        run.run(
            [
                "qemu-img",
                "create",
                "-q",
                "-u",
                "-f",
                "qcow2",
                "-o",
                _FORM,
                "-F",
                "qcow2",
                "-b",
                below,
                coming,
                str(size),
            ]
        )
        coming.chmod(image.stat().st_mode & 0o777)
        yield
        undo.pop_all()
        coming.rename(image)
        files.sync_folder(image.parent)


def recover(image: Path) -> None:
    """Bring back an image that is missing because ``keep`` was interrupted on a server without links."""
    coming = _coming(image)
    if not os.path.lexists(image) and coming.exists():
        below = image.with_name(images.inspect(coming, "qcow2").backing)
        if is_layer(below.name) and below.exists():
            coming.rename(image)
            files.sync_folder(image.parent)


def forget(image: Path, snapshot: str) -> None:
    """Remove a snapshot; what only it holds goes into the file above it.

    Raises:
        NotFound: there is none.
    """
    chain, gone = _chain(image), layer(image, snapshot)
    if gone not in chain[1:]:
        raise NotFound(f"'{image}' has no snapshot '{snapshot}'")
    above, below = chain[chain.index(gone) - 1], images.inspect(gone, "qcow2").backing
    before = above.stat()
    run.run(["qemu-img", "rebase", "-q", "-f", "qcow2", *_on(above, gone, below), above])
    if above != image:
        os.utime(above, ns=(before.st_atime_ns, before.st_mtime_ns))  # its time is that of a snapshot
    files.remove(gone)


def _on(above: Path, gone: Path, below: str) -> list[str]:
    """The words that name the new place of the file above."""
    if not below:
        return ["-b", ""]
    form = "qcow2" if is_layer(Path(below).name) else Path(below).suffix.removeprefix(".")
    return ["-F", form, "-b", below]


def remove_layers(image: Path) -> None:
    """Remove the files of all snapshots; the image goes last, so that what is left of an interrupted removal can go."""
    for path in [*_layers(image), _coming(image)]:
        path.unlink(missing_ok=True)


def _layers(image: Path) -> list[Path]:
    """All files with the name of a snapshot of an image, whether it lies on them or not."""
    return [path for path in image.parent.iterdir() if _is_own(image, path.name)] if image.parent.is_dir() else []
