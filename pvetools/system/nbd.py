"""Disks behind NBD servers: images of stopped guests, the exports of a running backup job, restore targets.

This is the only module that talks to libnbd. One connection carries several requests at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pvetools.system.errors import MissingTool, PveError
from pvetools.system.streams import MIB, Wait, poll_one

if TYPE_CHECKING:
    from pvetools.system.run import Process

CONNECT_TIMEOUT = 30.0  # seconds until a server must answer
CLOSE_TIMEOUT = 300.0  # seconds in which a server must have written what it still holds
END_TIMEOUT = 5.0  # seconds for a server that hung up to say why
_STATUS_WINDOW = 1 << 30  # bytes asked about at once; the protocol counts them in 32 bits
_CLOSED_WITHIN = 10.0  # seconds that a server has to answer what it was asked before
_HUNG_UP = select.POLLERR | select.POLLHUP | select.POLLIN
# With these qemu-nbd keeps the memory of its request buffers instead of returning it to the kernel after each one; it
# spends most of its time in page faults otherwise.
_KEEP_MEMORY = {
    "MALLOC_TOP_PAD_": str(64 * MIB),
    "MALLOC_TRIM_THRESHOLD_": str(1024 * MIB),
    "MALLOC_MMAP_THRESHOLD_": str(1024 * MIB),
}


def _libnbd() -> Any:
    """The binding, imported when it is needed.

    Raises:
        MissingTool: it is not installed.
    """
    try:
        import nbd
    except ImportError:
        raise MissingTool("libnbd for Python", "python3-libnbd") from None
    return nbd


class Export:
    """One connection to one export: a source and a target of the archive engines.

    Args:
        path: the server's unix socket.
        name: name of the export.
        label: what error messages call the disk.
        known_zero: as a target it reads as zeros everywhere.
        alive: called while the server does not answer yet; raises when it never will.

    Raises:
        PveError: the server does not answer in time, or refuses the export.
        MissingTool: libnbd is not installed.
    """

    def __init__(
        self,
        path: Path,
        name: str = "",
        *,
        label: str = "",
        known_zero: bool = False,
        alive: Callable[[], None] | None = None,
    ) -> None:
        self._nbd = _libnbd()
        self._label = label or name or str(path)
        self.known_zero = known_zero
        self._handle = self._nbd.NBD()
        self._handle.add_meta_context(self._nbd.CONTEXT_BASE_ALLOCATION)
        self._handle.set_export_name(name)
        self._handle.set_pread_initialize(False)
        with _connect(path, self._label, alive) as link, self._errors():
            self._handle.aio_connect_socket(link.detach())
        while self._handle.aio_is_connecting():
            self.turn(_wait_to_connect)
        if not self._handle.aio_is_ready():
            raise PveError(f"the NBD server of '{self._label}' refuses export '{name}'")
        self.size: int = self._handle.get_size()

    @property
    def capacity(self) -> int:
        return self.size

    def close(self) -> None:
        """Disconnect; the server of an image ends with that. One that can't answer is left: it may wait for us."""
        with contextlib.suppress(self._nbd.Error, OSError):
            connection = self._handle.aio_get_fd()
            self._handle.aio_disconnect()
            deadline = time.monotonic() + _CLOSED_WITHIN
            while not (self._handle.aio_is_closed() or self._handle.aio_is_dead()):
                if (left := deadline - time.monotonic()) <= 0:
                    with socket.socket(fileno=os.dup(connection)) as link:
                        link.shutdown(socket.SHUT_RDWR)
                    return
                self._handle.poll(int(left * 1000) + 1)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._nbd.Error as error:
            raise PveError(f"NBD server of '{self._label}': {error}") from error

    def turn(self, wait: Wait) -> None:
        """Let the connection make one step, if ``wait`` says that it is ready for one."""
        with self._errors():
            direction = self._handle.aio_get_direction()
            reads = direction & self._nbd.AIO_DIRECTION_READ
            events = (select.POLLIN if reads else 0) | (
                select.POLLOUT if direction & self._nbd.AIO_DIRECTION_WRITE else 0
            )
            ready = wait(self._handle.aio_get_fd(), events)
            if ready & _HUNG_UP and reads:
                self._handle.aio_notify_read()
            elif ready:
                self._handle.aio_notify_write()

    def _finish(self, ticket: int, wait: Wait) -> None:
        while True:
            with self._errors():
                if self._handle.aio_command_completed(ticket):
                    return
            self.turn(wait)

    # --- source ---

    def extents(self) -> Iterator[tuple[int, bool]]:
        """Data and zeros as the server tells them; one data extent when it cannot."""
        if not self._handle.can_meta_context(self._nbd.CONTEXT_BASE_ALLOCATION):
            yield self.size, False
            return
        at = 0
        while at < self.size:
            for length, flags in self._block_status(at):
                yield length, bool(flags & self._nbd.STATE_ZERO)
                at += length

    def _block_status(self, at: int) -> list[tuple[int, int]]:
        """Lengths and flags from one offset on; at least one."""
        found: list[int] = []

        def take(context: str, offset: int, entries: list[int], error: object) -> int:
            if context == self._nbd.CONTEXT_BASE_ALLOCATION:
                found.extend(entries)
            return 0

        with self._errors():
            ticket = self._handle.aio_block_status(min(_STATUS_WINDOW, self.size - at), at, take)
        self._finish(ticket, poll_one)
        pairs = [(length, flags) for length, flags in zip(found[::2], found[1::2], strict=True) if length]
        if not pairs:
            raise PveError(f"NBD server of '{self._label}' tells nothing about offset {at}")
        return pairs

    def begin_read(self, offset: int, buffer: memoryview) -> int:
        with self._errors():
            ticket: int = self._handle.aio_pread(self._nbd.Buffer.from_buffer(buffer), offset)
        return ticket

    def finish_read(self, ticket: int, wait: Wait) -> None:
        self._finish(ticket, wait)

    # --- target ---

    def begin_write(self, offset: int, data: memoryview) -> int:
        with self._errors():
            ticket: int = self._handle.aio_pwrite(self._nbd.Buffer.from_buffer(data), offset)
        return ticket

    def begin_zero(self, offset: int, length: int) -> int:
        with self._errors():
            ticket: int = self._handle.aio_zero(length, offset)
        return ticket

    def finish_write(self, ticket: int) -> None:
        self._finish(ticket, poll_one)

    def complete(self) -> None:
        """Have the server write everything to stable storage."""
        with self._errors():
            if self._handle.can_flush():
                self._finish(self._handle.aio_flush(), poll_one)


def _wait_to_connect(fd: int, events: int) -> int:
    poll = select.poll()
    poll.register(fd, events)
    ready = poll.poll(CONNECT_TIMEOUT * 1000)
    if not ready:
        raise PveError(f"the NBD server did not answer within {CONNECT_TIMEOUT:.0f} seconds")
    return ready[0][1]


def _connect(path: Path, label: str, alive: Callable[[], None] | None) -> socket.socket:
    """Connect to a socket that a server is about to make."""
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(str(path))
        except OSError as error:
            link.close()
            if alive is None or time.monotonic() > deadline:
                raise PveError(f"cannot reach the NBD server of '{label}' at '{path}': {error.strerror}") from error
            alive()
            time.sleep(0.005)  # nothing announces that a server began to listen
        else:
            return link


@contextlib.contextmanager
def image(
    path: Path | str, form: str, *, read_only: bool = True, known_zero: bool = False, options: Sequence[str] = ()
) -> Iterator[Export]:
    """An image that no guest is using, served by a qemu-nbd of our own that ends with the block.

    It also ends when this process is killed.

    Args:
        path: image or block device; as a text, what else qemu-nbd opens (``rbd:...``).
        form: ``raw``, ``qcow2``, ...
        read_only: for backup; otherwise it may be written.
        known_zero: as a restore target it is empty, so zeros need not be written.
        options: words that qemu-nbd needs besides to open it.

    Raises:
        PveError: no such image, it is in use, or what was written could not be stored.
    """
    words = ["-r" if read_only else "--discard=unmap", *options]
    with _server(path, form, words) as (server, link, errors):
        export = _connected(server, link, path, errors, known_zero=known_zero)
        yield export
        export.close()


@contextlib.contextmanager
def served(path: Path | str, form: str, options: Sequence[str] = ()) -> Iterator[str]:
    """The same for another program, which gets the URL and may open it once, also for writing.

    A program that is killed while it has an image open at a storage's server itself seems to go on for a while there;
    this server lets go of it.

    Raises:
        As ``image``.
    """
    with _server(path, form, ["--discard=unmap", *options]) as (server, link, errors):
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while not link.exists():
            _check(server, path, errors)
            if time.monotonic() > deadline:
                raise PveError(f"the NBD server of '{path}' did not begin within {CONNECT_TIMEOUT:.0f} seconds")
            time.sleep(0.005)
        yield f"nbd+unix:///?socket={link}"


@contextlib.contextmanager
def _server(path: Path | str, form: str, words: Sequence[str]) -> Iterator[tuple[Process, Path, IO[bytes]]]:
    """A qemu-nbd with its socket and what it says; it ends after its client, or with the block."""
    import tempfile

    from pvetools.system.run import DEVNULL, end_group, popen

    if isinstance(path, Path) and not path.exists():
        raise PveError(f"no such image '{path}'")
    with tempfile.TemporaryDirectory(prefix="pvetools-nbd-") as folder, tempfile.TemporaryFile() as errors:
        link = Path(folder) / "nbd"
        place = path.absolute() if isinstance(path, Path) else path
        argv = ["qemu-nbd", *words, "-f", form, "-k", link, place]
        server = popen(argv, stdout=DEVNULL, stderr=errors, env=_KEEP_MEMORY, tied=True)
        try:
            yield server, link, errors
            _await_end(server, path, errors)
        finally:
            if server.poll() is None:
                end_group(server)  # a server elsewhere would believe for a while that a killed client is still there


def _connected(server: Process, link: Path, path: Path | str, errors: IO[bytes], *, known_zero: bool) -> Export:
    """The export of a server that was just started; one that refuses the image hangs up, and then says why and ends."""
    try:
        return Export(link, label=str(path), known_zero=known_zero, alive=lambda: _check(server, path, errors))
    except PveError:
        deadline = time.monotonic() + END_TIMEOUT
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        _check(server, path, errors)
        raise


def _check(server: Process, path: Path | str, errors: IO[bytes]) -> None:
    """Raise what the server had to say when it ended."""
    code = server.poll()
    if code is None:
        return
    from pvetools.system.compress import last_words

    words = last_words(errors) or f"qemu-nbd ended with status {code}"
    if "Unknown protocol" in words or "Unknown driver" in words:
        words += "; install it with: apt install qemu-block-extra"
    raise PveError(f"cannot serve '{path}': {words}")


def _await_end(server: Process, path: Path | str, errors: IO[bytes]) -> None:
    """Wait for the server to store what it holds and to end well."""
    deadline = time.monotonic() + CLOSE_TIMEOUT
    while server.poll() is None:
        if time.monotonic() > deadline:
            raise PveError(f"the server of '{path}' did not end within {CLOSE_TIMEOUT:.0f} seconds")
        time.sleep(0.002)
    if server.returncode:
        _check(server, path, errors)
