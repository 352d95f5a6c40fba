"""Volumes as streams: to files, pipes and other storages, in the formats that Proxmox VE's tools write and read.

A format with ``+size`` is the size of the disk in bytes (eight bytes, the lowest first) and then its data: the disk's
content (``raw``), the image file with its snapshots (``qcow2``, ``vmdk``), or the files of a folder (``tar``). ``zfs``
and ``btrfs`` are the storages' own streams of snapshots, which can be incremental.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from pvetools.schema import formats
from pvetools.storage import images, inuse, names, volumes
from pvetools.storage.convert import Image, convert
from pvetools.storage.driver import Driver, Source, Stream, Streaming, Wish
from pvetools.storage.streaming import Meter, feed, stream
from pvetools.system import files, log, run, task
from pvetools.system.errors import Exists, PveError, Refused, RunError
from pvetools.system.streams import FileSource, read_full, widen_pipe, write_all

HEADER = struct.Struct("<Q")
_MOST = 1 << 62  # bytes; a header beyond that is none
_NO_SPACE = 1 << 16  # bytes that may be left on a storage that is full
_SECTOR = 512  # bytes; what qemu-img counts in
_ONLY_LEAKS = 3  # of qemu-img: an image takes more space than it needs, as after a power cut
_WHOLE_IMAGES = ("qcow2+size", "vmdk+size")
_TAR_END = 1024  # bytes at the end of every archive, which are zeros
# sparse files, owners by number, ACLs, and the extended attributes that matter
_TAR = (
    "--one-file-system", "-p", "--sparse", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=user.*",
    "--xattrs-include=security.capability", "--warning=no-file-ignored", "--warning=no-xattr-write",
)  # fmt: skip


class State(NamedTuple):
    """Which state of a volume is moved.

    Args:
        snapshot: the one at a snapshot; empty: what the volume holds now.
        base: an older snapshot that the other side has: only what has changed since is moved.
        with_snapshots: snapshots go along.
        snapshots: those that go along, oldest first; default: all up to ``snapshot``, after ``base``.
    """

    snapshot: str = ""
    base: str = ""
    with_snapshots: bool = False
    snapshots: tuple[str, ...] = ()


NOW = State()


# Which formats go.


def _goes(form: str, state: State) -> bool:
    """Whether a format can hold such a state."""
    if not form.endswith("+size"):
        return bool(state.snapshot)
    chosen = state.snapshot or state.base or state.snapshots
    return not chosen and state.with_snapshots == (form in _WHOLE_IMAGES)


def exports(volid: str, state: State = NOW) -> tuple[str, ...]:
    """Formats in which a volume's state can be written, the best first.

    Raises:
        PveError: malformed. NotFound: no such storage.
    """
    driver, name = volumes.located(volid)
    return tuple(form for form in driver.info.exports(driver.parse(name).format) if _goes(form, state))


def imports(volid: str, state: State = NOW) -> tuple[str, ...]:
    """Formats from which a volume of that name can be made.

    Raises:
        PveError: malformed. NotFound: no such storage.
    """
    driver, name = volumes.located(volid)
    return tuple(form for form in driver.info.imports(driver.parse(name).format) if _goes(form, state))


def common_format(source: str, target: str, state: State = NOW) -> str:
    """The best format in which a volume can become another one.

    Raises:
        Refused: there is none. PveError, NotFound: malformed names, no such storage.
    """
    offered, taken = exports(source, state), imports(target, state)
    for form in offered:
        if form in taken:
            return form
    raise Refused(
        f"can't transfer volume '{source}' to '{target}': the first can be written as {', '.join(offered) or 'nothing'}"
        f"{_said(state)}, the second be read from {', '.join(taken) or 'nothing'}"
    )


def _said(state: State) -> str:
    words = [f"at snapshot '{state.snapshot}'"] if state.snapshot else []
    words += [f"since snapshot '{state.base}'"] if state.base else []
    words += [" ".join(["with snapshots", ", ".join(state.snapshots)]).rstrip()] if state.with_snapshots else []
    return f" ({' '.join(words)})" if words else ""


def check_export(volid: str, form: str, state: State = NOW) -> None:
    """Refuse what a volume can't be exported as, or one that is not there, before anything is opened.

    Raises:
        As ``export``.
    """
    driver, name = volumes.ready(volid)
    source, parsed = driver.source(name), driver.parse(name)
    if parsed.format not in (*names.IMAGE_FORMATS, "subvol"):
        raise Refused(f"volume '{volid}' is no disk image or folder, only those can be exported")
    if parsed.content == "import" and source.kind == "file":
        images.check_foreign(source.path, parsed.format)
    _check_format(form, exports(volid, state), "exported", volid, state)


def sources(volid: str) -> list[Path]:
    """Files, devices and folders that a volume's content lies in.

    Raises:
        As ``export``.
    """
    driver, name = volumes.ready(volid)
    source = driver.source(name)
    if source.kind != "file" or source.format == "raw":
        return [source.path]
    info = images.inspect(source.path, source.format)
    if not info.backing and not info.external:
        return [source.path]
    argv = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", "-f", source.format, str(source.path)]
    return [Path(found) for image in json.loads(run.run(argv).stdout) for found in _files_of(image)]


def _files_of(image: Mapping[str, Any]) -> Iterator[str]:
    """The files of one image, as ``qemu-img info`` describes it."""
    special = image.get("format-specific", {}).get("data", {})
    yield image["filename"]
    yield from (extent["filename"] for extent in special.get("extents", ()))
    if "data-file" in special:
        yield special["data-file"]


def check_import(volid: str, form: str, state: State = NOW, *, rename: bool = False) -> None:
    """Refuse what can't be imported before a stream is awaited.

    Raises:
        As ``import_``.
    """
    driver, name = volumes.ready(volid)
    parsed = driver.parse(name)
    if parsed.content != "images" or parsed.vmid is None:
        raise Refused(f"volume '{volid}' is no disk image or folder of a guest, only those can be imported")
    try:
        formats.vmid.parse(str(parsed.vmid))
    except ValueError as error:
        raise Refused(f"volume '{volid}': guest id: {error}") from None
    _check_format(form, imports(volid, state), "imported", volid, state)
    if not rename and not state.base and volumes.exists(volid):
        raise Exists(f"volume '{volid}' already exists")


def _check_format(form: str, offered: Sequence[str], verb: str, volid: str, state: State) -> None:
    if form not in offered:
        others = f", only: {', '.join(offered)}" if offered else ""
        raise Refused(f"volume '{volid}'{_said(state)} can't be {verb} in format '{form}'{others}")


# Export.


def export(volid: str, form: str, out: int, state: State = NOW, *, replace_content: bool = False) -> None:
    """Write a volume to a descriptor.

    Args:
        volid: the volume.
        form: format of the stream.
        out: the descriptor.
        state: which state.
        replace_content: what the descriptor's file holds goes, once nothing hinders the export any more.

    Raises:
        NotFound: no such volume or snapshot. Refused: the storage or the state does not go with that format.
        PveError: the descriptor takes no more. As ``volumes.usable``.
    """
    check_export(volid, form, state)
    widen_pipe(out)
    with _told("written"):
        _write(volid, form, out, state, partial(_empty, out) if replace_content else lambda: None)


def _empty(out: int) -> None:
    found = os.fstat(out)
    if stat.S_ISREG(found.st_mode) and found.st_size:  # ext4 writes at once what comes after a truncation
        os.ftruncate(out, 0)


@contextlib.contextmanager
def _told(verb: str) -> Iterator[None]:
    """Say it of the stream when the system has no name for the file that failed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename:
            raise
        raise PveError(f"the stream can't be {verb}: {error.strerror}") from error


def _write(volid: str, form: str, out: int, state: State, begin: Callable[[], None]) -> None:
    driver, name = volumes.ready(volid)
    source = driver.source(name)
    if form in _WHOLE_IMAGES:
        size = _size_of_whole(volid, source)
        begin()
        _copy_out(source.path, out, size)
    elif form == "tar+size":
        head = HEADER.pack(driver.volume(name).size)
        begin()
        write_all(out, head)
        stream(["tar", *_TAR, "-C", source.path, "-cf", "-", "."], stdout=out)
    elif form == "raw+size":
        _export_raw(source, out, begin)
    else:
        what = _own_stream(driver, name, state)
        begin()
        cast(Streaming, driver).send(name, what, out)


def _export_raw(source: Source, out: int, begin: Callable[[], None]) -> None:
    if source.format == "raw" and source.kind != "network":
        begin()
        _copy_out(source.path, out)
        return
    from pvetools.storage import pump
    from pvetools.system import nbd

    place = source.path if source.kind != "network" else source.image
    with nbd.image(place, source.format, options=source.options) as image:
        begin()
        write_all(out, HEADER.pack(image.size))
        pump.drain(image, out)


def _copy_out(path: Path, out: int, size: int | None = None) -> None:
    """Write a file or device behind the size of the disk that it holds; default: its own."""
    from pvetools.storage import pump

    with files.open_regular(path) as file:
        content = FileSource(file.fileno(), str(path))
        pump.copy_out(content, out, HEADER.pack(content.size if size is None else size))


def _size_of_whole(volid: str, source: Source) -> int:
    """The size of a disk that lies in one file."""
    info = images.inspect(source.path, source.format)
    if info.backing or info.external:
        raise Refused(f"volume '{volid}' can't be exported as one file: its data lies in other files as well")
    return info.size


def _own_stream(driver: Driver, name: str, state: State) -> Stream:
    """What a storage's own stream is to hold; snapshots that are not there are refused."""
    for snapshot in (state.snapshot, state.base, *state.snapshots):
        if snapshot:
            names.check_snapshot(snapshot)
    there = [found.name for found in driver.snapshots(name)]
    for snapshot in (state.snapshot, state.base, *state.snapshots):
        if snapshot and snapshot not in there:
            raise PveError(f"volume '{driver.definition.id}:{name}' has no snapshot '{snapshot}'")
    end, start = there.index(state.snapshot), there.index(state.base) + 1 if state.base else 0
    if start > end:
        raise PveError(f"snapshot '{state.base}' is not older than '{state.snapshot}', so it can't be the base")
    between = (state.snapshots or there[start:end]) if state.with_snapshots else ()
    return Stream(state.snapshot, state.base, tuple(found for found in between if found != state.snapshot))


# Import.


def import_(volid: str, form: str, source: int, state: State = NOW, *, rename: bool = False) -> str:
    """Make a volume from what a descriptor gives; what came by halves is removed again.

    Args:
        volid: the wanted volume id.
        form: format of the stream.
        source: descriptor.
        state: what the stream is said to hold.
        rename: take the next free name when the wanted one is used.

    Returns:
        The new volume's id.

    Raises:
        Exists: the name is used. Refused: the storage or the state does not go with that format. PveError: the stream
        is damaged or ended too early, the storage is full. As ``volumes.usable``.
    """
    check_import(volid, form, state, rename=rename)
    widen_pipe(source)
    with _told("read"):
        return _make(volid, form, source, state, rename=rename)


def _make(volid: str, form: str, source: int, state: State, *, rename: bool) -> str:
    driver, name = volumes.ready(volid)
    if not form.endswith("+size"):
        what = Stream(state.snapshot, state.base, state.snapshots)
        received = cast(Streaming, driver).receive(name, what, source, rename=rename)
        while os.read(source, 65536):
            pass  # the sender still has its end to write: a pipe that is closed now would kill it
        return f"{driver.definition.id}:{received}"
    size = read_header(source)
    with contextlib.ExitStack() as undo:
        made, target = _made(volid, size, undo, rename=rename)
        with _full_told(driver):
            _FILLERS[form](target, source, size)
        undo.pop_all()
    return made


def read_header(source: int) -> int:
    """The size of the disk whose stream follows."""
    head = bytearray(HEADER.size)
    if read_full(source, memoryview(head)) < HEADER.size:
        raise PveError("the stream ended before the size of the volume")
    (size,) = HEADER.unpack(head)
    if size > _MOST:
        raise PveError(f"the stream does not begin with the size of a volume: {size} bytes are too many")
    return int(size)


def _made(volid: str, size: int, undo: contextlib.ExitStack, *, rename: bool) -> tuple[str, Source]:
    """Make a volume to be filled, which goes again when that fails; gives its id, and how to reach it."""
    driver, name = volumes.ready(volid)
    parsed = driver.parse(name)
    if parsed.format == "subvol" and size and not driver.info.limits_folders:
        log.warn(f"volume '{volid}' gets no limit of its size: its storage can't limit folders")
        size = 0
    with task.uninterrupted():
        own = _alloc(driver, Wish(parsed.vmid or 0, size, parsed.format, parsed.name), rename=rename)
        undo.callback(volumes.discard, f"{driver.definition.id}:{own}")
    return f"{driver.definition.id}:{own}", driver.source(own)


def _alloc(driver: Driver, wish: Wish, *, rename: bool) -> str:
    try:
        return driver.alloc(wish)
    except Exists:
        if not rename:
            raise
    made = driver.alloc(replace(wish, name=""))
    log.emit(f"volume '{wish.name}' exists already, importing as '{made}'")
    return made


@contextlib.contextmanager
def _full_told(driver: Driver) -> Iterator[None]:
    """Say so when a storage has no space left: not every program does."""
    try:
        yield
    except PveError as error:
        silent = isinstance(error, RunError) and driver.status().avail < _NO_SPACE
        if silent or "No space left on device" in str(error):
            raise PveError(f"storage '{driver.definition.id}' is full: {error}") from error
        raise


def _fill_raw(target: Source, source: int, size: int) -> None:
    from pvetools.storage import pump

    if target.format == "raw" and target.kind != "network":
        limits = ["iflag=fullblock,count_bytes", f"count={size}", "bs=64K"]
        kept = "conv=sparse,notrunc,fsync" if target.blank else "conv=notrunc,fsync"
        meter = Meter(size)
        with inuse.filling(target.path):
            said = stream(["dd", f"of={target.path}", *limits, kept], stdin=source, meter=meter)
        found = re.search(r"^(\d+) bytes?\b", said, re.MULTILINE)
        pump.check_complete(int(found[1]) if found else 0, size, size)
        meter.at(size)
    elif size % _SECTOR == 0 and _opens_again(source):
        _fill_from_file(target, source, size)
    else:
        from pvetools.system import nbd

        place = target.path if target.kind != "network" else target.image
        with nbd.image(place, target.format, read_only=False, known_zero=True, options=target.options) as image:
            pump.fill(source, image, size)
    pump.check_end(source)


def _opens_again(source: int) -> bool:
    """Whether another program can open the file that is read: no pipe, and on a share root may have no right to."""
    return stat.S_ISREG(os.fstat(source).st_mode) and os.access(f"/proc/self/fd/{source}", os.R_OK)


def _fill_from_file(target: Source, source: int, size: int) -> None:
    from pvetools.storage import pump

    start = os.lseek(source, 0, os.SEEK_CUR)
    pump.check_complete(os.fstat(source).st_size - start, size, size)
    place = {"driver": "file", "filename": "/proc/self/fd/0"}
    content = json.dumps({"driver": "raw", "offset": start, "size": size, "file": place})
    convert(Image(f"json:{content}", "raw", size), target, stdin=source)
    os.lseek(source, start + size, os.SEEK_SET)


def _fill_image(target: Source, source: int, size: int) -> None:
    meter = Meter(size)
    with inuse.filling(target.path):
        stream(["dd", f"of={target.path}", "iflag=fullblock", "bs=64K", "conv=sparse,fsync"], stdin=source, meter=meter)
    info = images.check_foreign(target.path, target.format)
    if info.size != size:
        raise PveError(f"the image in the stream has {info.size} bytes, its header says {size}")
    argv = ["qemu-img", "check", "-q", "-f", target.format, str(target.path)]  # finds what is cut off
    done = run.run(argv, check=False)
    if done.code not in (0, _ONLY_LEAKS):
        raise RunError(argv, done.code, done.stderr)
    meter.at(size)


def _fill_folder(target: Source, source: int, _size: int) -> None:
    # tar itself takes a stream that ends between two files for a whole one
    with inuse.filling(target.path):
        end = feed(["tar", *_TAR, "-C", target.path, "-xf", "-"], source, _TAR_END)
    if any(end):
        raise PveError("the stream ended before the end of its archive")


_FILLERS: dict[str, Callable[[Source, int, int], None]] = {
    "raw+size": _fill_raw, "qcow2+size": _fill_image, "vmdk+size": _fill_image, "tar+size": _fill_folder,
}  # fmt: skip


# From storage to storage.


def copy(source: str, target: str, state: State = NOW, *, rename: bool = False) -> str:
    """Make a volume that holds what another one holds; gives its volume id.

    Raises:
        As ``export`` and ``import_``; Refused: no format goes with both.
    """
    form = common_format(source, target, state)
    check_import(target, form, state, rename=rename)
    log.emit(f"copying volume '{source}' to '{target}' in format '{form}'")
    if form == "raw+size":
        return _copy_disk(source, target, rename=rename)
    with contextlib.ExitStack() as undo:
        with _exported(source, form, state) as outlet:
            made = import_(target, form, outlet, state, rename=rename)
            if not state.base:
                undo.callback(volumes.discard, made)  # its source may say at its end that something is missing
        undo.pop_all()
    return made


def _copy_disk(volid: str, target: str, *, rename: bool) -> str:
    driver, name = volumes.ready(volid)
    source, size = driver.source(name), driver.volume(name).size
    with contextlib.ExitStack() as undo:
        made, into = _made(target, size, undo, rename=rename)
        with _full_told(volumes.ready(made)[0]):
            convert(Image(source.image, source.format, size, source.options), into)
        undo.pop_all()
    return made


@contextlib.contextmanager
def _exported(volid: str, form: str, state: State) -> Iterator[int]:
    """A descriptor to read a volume's stream from, which is written meanwhile."""
    failed: list[BaseException] = []

    def write(out: int) -> None:
        try:
            export(volid, form, out, state)
        except BaseException as error:  # raised again by the other thread
            failed.append(error)
        finally:
            os.close(out)

    outlet, inlet = os.pipe()
    writer = threading.Thread(target=write, args=(inlet,))
    writer.start()
    try:
        yield outlet
    except PveError as error:
        raise (failed[0] if failed else error) from None  # the stream ends early when its writer has failed
    finally:
        os.close(outlet)
        writer.join()
    if failed:
        raise failed[0]
