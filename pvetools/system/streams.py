"""Plumbing of the archive engines: pipes, plain files as sources and targets, and a speed limit.

A *source* is a disk that is read, a *target* one that is written. Both work with tickets, so that several requests
can be under way at once; a plain file simply finishes each request when it begins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, ClassVar, Protocol

from pvetools.system.errors import PveError

MIB = 1 << 20
PIPE_SIZE = MIB
STALL = 900.0  # seconds without any progress of a peer, after which it counts as dead
_IOV = 256  # pieces a system call; the kernel takes 1024, a full pipe never needs that many

Wait = Callable[[int, int], int]
"""Wait until a descriptor is ready for some ``poll`` events and return those that came."""


class Source(Protocol):
    """A disk to be archived."""

    @property
    def size(self) -> int:
        """Bytes; need not be a multiple of anything."""

    def extents(self) -> Iterable[tuple[int, bool]]:
        """Consecutive stretches from offset 0 on: length in bytes, and whether they are known to be zero."""

    def begin_read(self, offset: int, buffer: memoryview) -> int:
        """Start filling the buffer; it must stay untouched until the ticket returned is finished."""

    def finish_read(self, ticket: int, wait: Wait) -> None:
        """Block until the buffer is full; raises PveError when it cannot be filled."""


class Target(Protocol):
    """A disk to be restored."""

    @property
    def capacity(self) -> int:
        """Bytes that fit; the device to be written must not be larger."""

    @property
    def known_zero(self) -> bool:
        """Whether it reads as zeros everywhere, so that zeros need not be written."""

    def begin_write(self, offset: int, data: memoryview) -> int:
        """Start writing at most 1 MiB; the data must stay untouched until the ticket returned is finished."""

    def begin_zero(self, offset: int, length: int) -> int:
        """Start writing zeros."""

    def finish_write(self, ticket: int) -> None:
        """Block until the request is done; raises PveError when it failed."""

    def complete(self) -> None:
        """All data was written: make it durable."""


def poll_one(fd: int, events: int) -> int:
    """The plain ``Wait``.

    Raises:
        PveError: nothing happened for ``STALL`` seconds.
    """
    poll = select.poll()
    poll.register(fd, events)
    ready = poll.poll(STALL * 1000)
    if not ready:
        raise PveError(f"no data moved for {STALL:.0f} seconds")
    return ready[0][1]


def reader_gone(fd: int) -> bool:
    """Whether nobody reads a pipe any more; False for other files."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def widen_pipe(fd: int) -> None:
    """Give a pipe a large buffer where the system allows it; other files are left alone."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


@contextlib.contextmanager
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Both ends of a pipe, closed at the end whatever happens."""
    outlet, inlet = os.pipe()
    with os.fdopen(outlet, "rb", 0) as reader, os.fdopen(inlet, "wb", 0) as writer:
        yield reader, writer


def read_full(fd: int, buffer: memoryview) -> int:
    """Fill the buffer from a stream; fewer bytes than asked for mean that the stream ended."""
    done = 0
    while done < len(buffer):
        count = os.readv(fd, [buffer[done:]])
        if not count:
            break
        done += count
    return done


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Memory:
    """A stretch of memory for bulk data, and its slices, each of which is made once.

    The Python binding of libnbd 1.14 never lets go of a buffer that it was given for a request. So memory is kept for
    the next user, and the number of different slices has to be small, or the process would grow with the data.
    """

    _idle: ClassVar[dict[int, list[Memory]]] = {}

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size)
        self._whole = memoryview(self.map)
        self._slices: dict[tuple[int, int], memoryview] = {}

    def slice(self, at: int, length: int) -> memoryview:
        """View of a part; for parts that go to a source or a target."""
        key = at, length
        if key not in self._slices:
            self._slices[key] = self._whole[at : at + length]
        return self._slices[key]

    def view(self, at: int, length: int) -> memoryview:
        """View of a part; for parts that stay in this process."""
        return self._whole[at : at + length]

    @classmethod
    @contextlib.contextmanager
    def borrow(cls, size: int) -> Iterator[Memory]:
        """Memory of that size, with unknown content. After an error it is not used again: requests may be under way."""
        idle = cls._idle.setdefault(size, [])
        memory = idle.pop() if idle else cls(size)
        yield memory
        idle.append(memory)


class Throttle:
    """A speed limit in bytes a second; 0 means none."""

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._free_at = time.monotonic()

    def pay(self, count: int) -> None:
        """Account for bytes that are about to move, sleeping as long as the limit demands."""
        if not self._limit or not count:
            return
        now = time.monotonic()
        # A second of idle time may be made up for, not more: a stalled job must not burst afterwards.
        self._free_at = max(self._free_at, now - 1) + count / self._limit
        if self._free_at > now:
            time.sleep(self._free_at - now)


class Output:
    """Bytes queued for a pipe, written whenever there is room while other things are waited for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: deque[memoryview] = deque()
        self._marks: deque[tuple[int, int]] = deque()
        self._queued = self._written = 0
        self.released = 0  # highest mark whose data has left

    @contextlib.contextmanager
    def non_blocking(self) -> Iterator[Output]:
        """Writes must never block while requests are under way; the descriptor's mode is restored afterwards."""
        widen_pipe(self._fd)
        blocking = os.get_blocking(self._fd)
        os.set_blocking(self._fd, False)
        try:
            yield self
        finally:
            os.set_blocking(self._fd, blocking)

    def put(self, pieces: Iterable[memoryview], mark: int) -> None:
        """Queue pieces; once they are written ``released`` becomes ``mark``. Blocks while a lot is queued."""
        for piece in pieces:
            self._queue.append(piece)
            self._queued += len(piece)
        self._marks.append((self._queued, mark))
        self._pump()
        while len(self._marks) > _IOV:
            self.step()

    def _pump(self) -> None:
        """Write as much as goes without blocking."""
        while self._queue:
            try:
                count = os.writev(self._fd, list(islice(self._queue, _IOV)))
            except BlockingIOError:
                return
            self._written += count
            while self._queue and count >= len(self._queue[0]):
                count -= len(self._queue.popleft())
            if count:
                self._queue[0] = self._queue[0][count:]
            while self._marks and self._marks[0][0] <= self._written:
                self.released = self._marks.popleft()[1]

    def step(self) -> None:
        """Block until some of the queue could be written."""
        poll_one(self._fd, select.POLLOUT)
        self._pump()

    def drain(self) -> None:
        """Block until everything is written."""
        while self._queue:
            self.step()

    def wait(self, fd: int, events: int) -> int:
        """Wait for another descriptor, writing meanwhile.

        Raises:
            PveError: the other side did nothing for ``STALL`` seconds.
        """
        deadline = time.monotonic() + STALL
        while True:
            poll = select.poll()
            poll.register(fd, events)
            if self._queue:
                poll.register(self._fd, select.POLLOUT)
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if self._fd in ready:
                self._pump()
            if fd in ready:
                return ready[fd]
            if time.monotonic() >= deadline:
                raise PveError(f"no data came for {STALL:.0f} seconds")


def file_size(fd: int) -> int:
    """Bytes of a regular file or a block device."""
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    return os.fstat(fd).st_size


class FileSource:
    """A raw image or block device; holes are found without reading."""

    def __init__(self, fd: int, name: str = "") -> None:
        self._fd, self._name = fd, name or f"descriptor {fd}"
        self._size = file_size(fd)

    @property
    def size(self) -> int:
        return self._size

    def extents(self) -> Iterator[tuple[int, bool]]:
        """Data and holes as the file system tells them; one data extent where it cannot."""
        at = 0
        while at < self._size:
            data = self._seek(at, os.SEEK_DATA)
            if data > at:
                yield data - at, True
            if data >= self._size:
                return
            at = max(self._seek(data, os.SEEK_HOLE), data + 1)
            yield at - data, False

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return min(os.lseek(self._fd, offset, whence), self._size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self._size
            return offset if whence == os.SEEK_DATA else self._size

    def begin_read(self, offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise PveError(f"cannot read '{self._name}' at {offset + done}: {error.strerror}") from error
            if not count:
                raise PveError(f"'{self._name}' became shorter while it was read: no data at {offset + done}")
            done += count
        return 0

    def finish_read(self, ticket: int, wait: Wait) -> None:
        """Nothing is under way."""


class FileTarget:
    """A raw image or a block device that is written in place."""

    _zeros = memoryview(bytes(MIB))

    def __init__(self, fd: int, *, name: str = "", known_zero: bool = False) -> None:
        self._fd, self._name = fd, name or f"descriptor {fd}"
        self.known_zero = known_zero
        self.capacity = file_size(fd)

    def begin_write(self, offset: int, data: memoryview) -> int:
        while data:
            try:
                count = os.pwrite(self._fd, data, offset)
            except OSError as error:
                raise PveError(f"cannot write '{self._name}' at {offset}: {error.strerror}") from error
            data, offset = data[count:], offset + count
        return 0

    def begin_zero(self, offset: int, length: int) -> int:
        while length:
            count = min(length, MIB)
            self.begin_write(offset, self._zeros[:count])
            offset, length = offset + count, length - count
        return 0

    def finish_write(self, ticket: int) -> None:
        """Nothing is under way."""

    def complete(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise PveError(f"cannot write '{self._name}': {error.strerror}") from error
