"""Asking programs to end."""

import signal
import subprocess
import time


def ask_to_end(process: subprocess.Popen, number: int = signal.SIGTERM, timeout: float = 60) -> int:
    """Send a signal until the process has ended; gives its exit status.

    A signal that comes just as Python enters a blocking call is noticed with the next one only.
    """
    deadline = time.monotonic() + timeout
    while True:
        process.send_signal(number)
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise
