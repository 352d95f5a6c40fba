"""The user's terminal on a guest's serial port: a small client for the port's unix socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

from pvetools.config import guest as config
from pvetools.guest.qemu import place, running
from pvetools.system import log
from pvetools.system.errors import ParamErrors, PveError, Refused

_CHUNK = 65536


def escape_byte(text: str) -> bytes:
    """The key that leaves the terminal: ``^O`` is Ctrl-O; ``none`` is no key at all.

    Raises:
        ParamErrors: not such a key.
    """
    if text == "none":
        return b""
    if len(text) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        return bytes([ord(text[1].upper()) - 64])
    if len(text) == 1 and text.isascii():
        return text.encode()
    raise ParamErrors({"escape": f"'{text}' is not a key, expected ^A to ^Z, one character, or none"})


def open_terminal(vmid: int, interface: str = "", escape: str = "^O") -> None:
    """Connect the terminal to a serial port until the escape key is pressed or the guest stops.

    Raises:
        Refused: no such serial port. PveError: the guest does not run.
    """
    key = escape_byte(escape)
    section = config.load("qemu", vmid).current
    name = _interface({name: value for name, value in section.items() if name.startswith("serial")}, vmid, interface)
    if not running.running_pid(vmid):
        raise PveError(f"VM {vmid} not running")
    hint = f" (press {_spoken(escape)} to exit)" if key else ""
    with _connected(place.serial_socket(vmid, int(name.removeprefix("serial")))) as port:
        log.emit(f"starting serial terminal on interface {name}{hint}")
        _talk(port, key)


def _spoken(escape: str) -> str:
    return f"Ctrl+{escape[1].upper()}" if escape.startswith("^") and len(escape) == 2 else f"'{escape}'"


def _interface(ports: dict[str, str], vmid: int, wanted: str) -> str:
    sockets = sorted(name for name, value in ports.items() if value == "socket")
    if wanted and wanted not in sockets:
        raise Refused(f"VM {vmid} has no serial port with a socket at {wanted}")
    if not sockets:
        raise Refused(f"unable to find a serial interface; add one with: qm set {vmid} --serial0 socket")
    if not wanted and len(sockets) > 1:
        raise Refused(f"VM {vmid} has several serial ports, choose one with --iface: {', '.join(sockets)}")
    return wanted or sockets[0]


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as port:
        try:
            port.connect(str(path))
        except OSError as error:
            raise PveError(f"can't connect to serial port '{path}': {error.strerror}") from None
        yield port


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Put a terminal into raw mode; other inputs stay as they are."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _talk(port: socket.socket, escape: bytes) -> None:
    """Copy both ways until the escape key, the end of the input, or the end of the guest."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    with _raw(keyboard):
        while True:
            ready, _, _ = select.select([keyboard, port], [], [])
            if port in ready:
                data = port.recv(_CHUNK)
                if not data:
                    return
                _write_all(screen, data)
            if keyboard in ready:
                data = os.read(keyboard, _CHUNK)
                before, found, _ = data.partition(escape) if escape else (data, b"", b"")
                port.sendall(before)
                if found or not data:
                    return


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
