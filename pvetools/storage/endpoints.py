"""Where a stream of a volume comes from or goes to: a file, standard input and output, a connection."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import re
import socket
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pvetools.system import run
from pvetools.system.errors import PveError, Refused

_PORTS = range(60000, 60051)  # those that firewalls of a cluster leave open
_PATIENCE = 30.0  # seconds for the other side to connect
_TCP = re.compile(r"tcp://([^/]+)(/\d+)?")

Announce = Callable[[str], None]


@contextlib.contextmanager
def output(name: str, apart_from: Collection[Path] = ()) -> Iterator[int]:
    """A descriptor to write to: ``-`` or a file, which still has its content. A new one goes again when the block fails
    before anything is written.

    Args:
        name: ``-`` or a path.
        apart_from: files, devices and folders that are read meanwhile: it must be none of them, nor lie in one.

    Raises:
        PveError: it can't be opened, or it is a terminal. Refused: it is what is read.
    """
    if name == "-":
        if os.isatty(1):
            raise PveError("the stream of a volume is not for a terminal: give a file, or a pipe on standard output")
        _check_apart(1, "standard output", apart_from)
        yield 1
        return
    place = Path(os.path.realpath(name))
    if any(other.is_dir() and place.is_relative_to(os.path.realpath(other)) for other in apart_from):
        raise Refused(f"'{name}' lies in the volume itself: it would be a part of what is read")
    is_new = not os.path.lexists(name)
    with _file(name, os.O_WRONLY | os.O_CREAT) as fd:
        try:
            _check_apart(fd, f"'{name}'", apart_from)
            yield fd
        except BaseException:
            if is_new and not os.fstat(fd).st_size:
                place.unlink(missing_ok=True)
            raise


def _check_apart(fd: int, name: str, others: Collection[Path]) -> None:
    for other in others:
        _check_not(fd, name, other)


def _check_not(fd: int, name: str, other: Path) -> None:
    try:
        found, read = os.fstat(fd), other.stat()
    except OSError:
        return  # it is in no reach of the kernel
    same_device = stat.S_ISBLK(found.st_mode) and (stat.S_IFMT(read.st_mode), read.st_rdev) == (
        stat.S_IFMT(found.st_mode), found.st_rdev
    )  # fmt: skip
    if same_device or os.path.samestat(found, read):
        raise Refused(f"{name} is the volume itself: it would be overwritten while it is read")


@contextlib.contextmanager
def source(name: str, announce: Announce) -> Iterator[int]:
    """A descriptor to read from: ``-``, a file, or one connection that is awaited.

    Args:
        name: ``-``, a path, ``tcp://ADDRESS`` or ``tcp://NETWORK/BITS`` (our address in there), ``unix://PATH``.
        announce: gets the lines that tell the other side where to connect.

    Raises:
        PveError: it can't be opened, or nobody connected in time.
    """
    if name == "-":
        yield 0
    elif match := _TCP.fullmatch(name):
        address = _local_address(name.removeprefix("tcp://")) if match[2] else match[1]
        with _accepted(_listening(address, announce), name) as link:
            yield link.fileno()
    elif name == "unix://":
        raise PveError(f"'{name}' names no path to listen at")
    elif name.startswith("unix://"):
        with _at_path(name.removeprefix("unix://"), announce) as listener, _accepted(listener, name) as link:
            yield link.fileno()
    else:
        with _file(name, os.O_RDONLY) as fd:
            yield fd


@contextlib.contextmanager
def _file(name: str, flags: int) -> Iterator[int]:
    try:
        fd = os.open(name, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise PveError(f"can't open '{name}': {error.strerror or error}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _local_address(network: str) -> str:
    """Our only address in a network.

    Raises:
        PveError: malformed; none or several.
    """
    try:
        wanted = ipaddress.ip_network(network, strict=False)
    except ValueError:
        raise PveError(f"'{network}' is not a network such as 10.0.0.0/24") from None
    rows = json.loads(run.run(["ip", "-json", "address", "show"]).stdout)
    addresses = [info["local"] for row in rows for info in row.get("addr_info", ()) if "local" in info]
    found = [address for address in addresses if ipaddress.ip_address(address) in wanted]
    if len(found) != 1:
        raise PveError(f"this host has {len(found) or 'no'} addresses in network '{network}', one is needed")
    return str(found[0])


def _listening(address: str, announce: Announce) -> socket.socket:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError:
        raise PveError(f"'{address}' is not an IP address") from None
    for port in _PORTS:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(1)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise PveError(f"can't listen at '{address}': {error.strerror}") from None
        else:
            announce(address)
            announce(str(port))
            return listener
    raise PveError(f"all ports from {_PORTS[0]} to {_PORTS[-1]} at '{address}' are in use")


@contextlib.contextmanager
def _at_path(path: str, announce: Announce) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(path)
            listener.listen(1)
        except OSError as error:
            raise PveError(f"can't listen at '{path}': {error.strerror or error}") from None
        try:
            announce("ready")
            yield listener
        finally:
            Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def _accepted(listener: socket.socket, name: str) -> Iterator[socket.socket]:
    """The one connection that comes."""
    with listener:
        listener.settimeout(_PATIENCE)
        try:
            link, _ = listener.accept()
        except TimeoutError:
            raise PveError(f"nobody connected to '{name}' within {_PATIENCE:.0f} seconds") from None
    with link:
        link.setblocking(True)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host that fails says nothing
        yield link
