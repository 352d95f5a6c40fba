"""Raw data between a stream and a disk: a file, or an image that only QEMU can open (qcow2, vmdk, RBD and the like)."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pvetools.storage.streaming import Meter
from pvetools.system.errors import PveError
from pvetools.system.streams import MIB, FileSource, Memory, Output, write_all

if TYPE_CHECKING:
    from pvetools.system.nbd import Export

_BLOCKS = 8  # under way at once
_PIECE = 64 << 10  # zeros of this size are not written
_ZEROS = bytes(MIB)
# Bytes. Some processors copy three times slower to a place that is a few bytes further in its page than what is
# copied is in its own; behind the header of a stream that is so with a buffer at the start of a page.
_ASIDE = 2048


def drain(image: Export, out: int) -> None:
    """Write all of an image to a descriptor."""
    meter = Meter(image.size)
    zeros = memoryview(_ZEROS)
    with Memory.borrow(_ASIDE + _BLOCKS * MIB) as memory, Output(out).non_blocking() as output:
        under_way: deque[tuple[int, memoryview]] = deque()
        used = sent = 0

        def send(mark: int) -> None:
            nonlocal sent
            ticket, view = under_way.popleft()
            if ticket >= 0:
                image.finish_read(ticket, output.wait)
            sent += len(view)
            output.put([view], mark)
            meter.at(sent)

        for offset, length, zero in _blocks(image):
            if len(under_way) == _BLOCKS:
                send(used - _BLOCKS + 1)
            if zero:
                under_way.append((-1, zeros[:length]))
            else:
                while output.released < used - _BLOCKS + 1:  # its last content has not left yet
                    output.step()
                view = memory.slice(_ASIDE + used % _BLOCKS * MIB, length)
                under_way.append((image.begin_read(offset, view), view))
            used += 1
        while under_way:
            send(used - len(under_way) + 1)
        output.drain()


def copy_out(disk: FileSource, out: int, head: bytes) -> None:
    """Write some bytes, and then a file or device, to a descriptor.

    Raises:
        PveError: it can't be read.
    """
    meter, done = Meter(disk.size), 0
    write_all(out, head)
    with Memory.borrow(_ASIDE + MIB) as memory:
        while done < disk.size:
            whole = MIB - (len(head) + done) % MIB  # a file is cached best when it is written in aligned pieces
            piece = memory.view(_ASIDE, min(whole, disk.size - done))
            disk.begin_read(done, piece)
            write_all(out, piece)
            done += len(piece)
            meter.at(done)


def _blocks(image: Export) -> Iterator[tuple[int, int, bool]]:
    """Offset and length of blocks of at most 1 MiB, and whether they are known to be zero."""
    at = 0
    for length, zero in image.extents():
        end = at + length
        while at < end:
            count = min(MIB, end - at)
            yield at, count, zero
            at += count


def fill(stream: int, image: Export, size: int) -> None:
    """Write so many bytes of a stream into an image that reads as zeros everywhere.

    Raises:
        PveError: the stream ended too early, or the image is too small.
    """
    if image.size < size:
        raise PveError(f"the volume has {image.size} bytes, the stream has {size}")
    meter = Meter(size)
    with Memory.borrow(_BLOCKS * MIB) as memory:
        under_way: deque[list[int]] = deque()
        for number, offset in enumerate(range(0, size, MIB)):
            if len(under_way) == _BLOCKS - 1:
                _finish(image, under_way.popleft())
            length = min(MIB, size - offset)
            at = number % _BLOCKS * MIB
            check_complete(offset + _read(stream, memory.view(at, length), image), offset + length, size)
            runs = _data(bytes(memory.view(at, length)))
            under_way.append([image.begin_write(offset + start, memory.slice(at + start, end - start))
                              for start, end in runs])  # fmt: skip
            meter.at(offset + length)
        while under_way:
            _finish(image, under_way.popleft())
        image.complete()


def _read(stream: int, buffer: memoryview, image: Export) -> int:
    """Fill the buffer from a stream, as far as that goes, while what was begun at the image goes on."""
    done = 0
    while done < len(buffer):
        _await(stream, image)
        count = os.readv(stream, [buffer[done:]])
        if not count:
            break
        done += count
    return done


def _await(stream: int, image: Export) -> None:
    """Let an image's connection make steps until a stream has something to read, however long that takes."""
    come = False

    def wait(connection: int, events: int) -> int:
        nonlocal come
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        poll.register(connection, events)
        ready = dict(poll.poll())
        come = stream in ready
        return ready.get(connection, 0)

    while not come:
        image.turn(wait)


def _finish(image: Export, tickets: list[int]) -> None:
    for ticket in tickets:
        image.finish_write(ticket)


def _data(block: bytes) -> list[tuple[int, int]]:
    """Start and end of the parts of a block that are not zero."""
    if block == _ZEROS[: len(block)]:
        return []
    runs: list[tuple[int, int]] = []
    for start in range(0, len(block), _PIECE):
        piece = block[start : start + _PIECE]
        if piece == _ZEROS[: len(piece)]:
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], start + len(piece)
        else:
            runs.append((start, start + len(piece)))
    return runs


def check_complete(done: int, wanted: int, size: int) -> None:
    """Raise what a stream that ended too early says."""
    if done < wanted:
        raise PveError(f"the stream ended after {done} of {size} bytes")


def check_end(stream: int) -> None:
    """Refuse a stream that goes on behind its data."""
    if os.read(stream, 1):
        raise PveError("the stream has more data than its header says")
