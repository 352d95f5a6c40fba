"""File systems that answer slowly or not at all, for real: a small FUSE server that lets everybody wait.

Whoever asks one that never answers waits inside the kernel, where not even SIGKILL reaches it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
import time
from pathlib import Path

_IN = struct.Struct("<IIQQIIII")
_LOOKUP, _GETATTR, _STATFS, _INIT = 1, 3, 17, 26
_ATTR = struct.pack("<QII6Q10I", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
_SPACE = struct.pack("<5Q4I24x", 1 << 20, 1 << 19, 1 << 19, 1000, 1000, 4096, 255, 4096, 0)
_ENOENT, _FORCE_AND_DETACH = 2, 3


class Slow:
    """An empty file system of 4 GiB whose ``statfs`` takes some seconds; None: for ever.

    ``names``: looking for a name in it takes for ever, too.
    """

    def __init__(self, point: Path, seconds: float | None, *, names: bool = False) -> None:
        self.point, self.seconds, self.names = point, seconds, names
        self.asked = threading.Event()
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        point.mkdir(parents=True, exist_ok=True)
        self.libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0".encode()
        if self.libc.mount(b"slow", os.fsencode(point), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "can't mount a FUSE file system", str(point))
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it away; whoever still waits gets an error."""
        if self.device >= 0:
            self.libc.umount2(os.fsencode(self.point), _FORCE_AND_DETACH)
            os.close(self.device)
            self.device = -1

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, 1 << 18)
            except OSError:
                return
            _, operation, number, *_ = _IN.unpack_from(request)
            if operation == _STATFS:
                threading.Thread(target=self._answer_late, args=(number,), daemon=True).start()
            elif operation == _LOOKUP and self.names:
                self.asked.set()
            elif operation == _INIT:
                self._reply(number, struct.pack("<IIIIHHI", 7, 12, 0, 0, 12, 9, 4096))
            elif operation == _GETATTR:
                self._reply(number, _ATTR)
            else:
                self._reply(number, b"", _ENOENT)

    def _answer_late(self, number: int) -> None:
        self.asked.set()
        if self.seconds is not None:
            time.sleep(self.seconds)
            self._reply(number, _SPACE)

    def _reply(self, number: int, data: bytes, error: int = 0) -> None:
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(self.device, struct.pack("<IiQ", 16 + len(data), -error, number) + data)
