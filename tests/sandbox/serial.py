"""Talk to the shell on a guest's serial port through its unix socket, with a time-out on every wait."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from types import TracebackType

from tests.sandbox.image import MARKER


class TimedOut(AssertionError):
    """The guest did not say what was waited for; the message ends with what it did say."""


class CommandFailed(AssertionError):
    """A command in the guest ended with a status other than 0."""


class Serial:
    """A connection to a guest's serial port.

    `with Serial(path) as port: port.wait_ready(); port.run("uname -r")`
    """

    def __init__(self, path: str | Path, timeout: float = 60.0) -> None:
        """Connect, waiting up to `timeout` seconds for the socket to be there."""
        self.path = Path(path)
        self.log = ""
        self._seen = 0
        self._number = 0
        deadline = time.monotonic() + timeout
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(self.path))
            except OSError as error:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise TimedOut(f"no serial port at {self.path} after {timeout:.0f} s: {error.strerror}") from None
                time.sleep(0.05)
            else:
                return

    def __enter__(self) -> Serial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, text: str) -> None:
        self._socket.settimeout(10)
        self._socket.sendall(text.encode())

    def wait_for(self, text: str, timeout: float = 60.0) -> str:
        """Read until `text` comes; returns what came before it since the last wait."""
        return self._wait(re.compile(re.escape(text)), timeout, text)[0]

    def _wait(self, pattern: re.Pattern[str], timeout: float, words: str) -> tuple[str, re.Match[str]]:
        deadline = time.monotonic() + timeout
        while True:
            found = pattern.search(self.log, self._seen)
            if found:
                before = self.log[self._seen : found.start()]
                self._seen = found.end()
                return before, found
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(min(left, 1.0)):
                state = f"within {timeout:.0f} s" if left <= 0 else "before the port was closed"
                raise TimedOut(f"the guest did not say {words!r} {state}; it said: {self.log[self._seen :][-2000:]!r}")

    def _read(self, timeout: float) -> bool:
        """Take what is there; False when the other side has closed."""
        self._socket.settimeout(max(timeout, 0.01))
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            return True
        except OSError:
            return False
        self.log += data.decode(errors="replace")
        return bool(data)

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until the guest's shell answers, also when its greeting was missed."""
        deadline = time.monotonic() + timeout
        while True:
            self.send('\necho "pvetools-"answers\n')
            try:
                self._wait(re.compile(r"pvetools-answers\r?\n"), min(2.0, timeout), "pvetools-answers")
            except TimedOut:
                if time.monotonic() > deadline:
                    raise TimedOut(f"no shell on {self.path} within {timeout:.0f} s: {self.log[-2000:]!r}") from None
            else:
                return

    def wait_booted(self, timeout: float = 120.0) -> None:
        """Wait for the greeting of a guest that is starting now."""
        self.wait_for(MARKER, timeout)

    def run(self, command: str, timeout: float = 60.0, *, check: bool = True) -> str:
        """Run a shell command in the guest and return its output, stripped.

        Raises CommandFailed when its status is not 0 and `check` is set.
        """
        self._number += 1
        # The quotes keep the marks out of the echo of the command line.
        mark = f"mark{self._number}"
        self.send(f'echo "["{mark}; {command}; echo "]"{mark} $?\n')
        self._wait(re.compile(rf"\[{mark}\r?\n"), timeout, f"[{mark}")
        output, found = self._wait(re.compile(rf"\]{mark} (\d+)\r?\n"), timeout, f"]{mark} (the end of {command!r})")
        text = output.replace("\r", "").strip()
        if check and found[1] != "0":
            raise CommandFailed(f"{command!r} in the guest: status {found[1]}: {text}")
        return text
