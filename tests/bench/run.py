"""``make bench``: prints one line a figure (name, ours, peer, ratio, goal, ok or short).

Modules of this package that have a ``FIGURES`` list of functions take part; each function gets a scratch folder and
gives one or more ``Figure``. Names of figures (or parts of them) on the command line choose.
"""

import importlib
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tests.bench


class Figure(NamedTuple):
    """One measured thing: seconds (or bytes) of ours and of the peer; ``goal`` is the highest good ratio ours/peer."""

    name: str
    ours: float
    peer: float
    goal: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return self.ours / self.peer if self.peer else float("inf")

    def line(self) -> str:
        verdict = "ok" if self.ratio <= self.goal else "short"
        return (
            f"{self.name:<44} {self.ours:>9.3f} {self.unit:<3} {self.peer:>9.3f} {self.unit:<3} "
            f"{self.ratio:>7.2f} {self.goal:>6.2f}  {verdict}"
        )


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def command(argv: Sequence[str], **more: object) -> Callable[[], object]:
    """An action that runs a program to its end, output thrown away; it must succeed."""
    return lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)


def paired(ours: Callable[[], object], peer: Callable[[], object], rounds: int = 11) -> tuple[float, float]:
    """Medians of both, measured alternately so that a busy moment hits both."""
    pairs = [(timed(ours), timed(peer)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def figures() -> Iterator[tuple[str, Callable[[Path], object]]]:
    for module in sorted(m.name for m in pkgutil.iter_modules(tests.bench.__path__) if m.name != "run"):
        for function in getattr(importlib.import_module(f"tests.bench.{module}"), "FIGURES", []):
            yield f"{module}.{function.__name__}", function


def main(wanted: list[str]) -> None:
    print(f"{'figure':<44} {'ours':>13} {'peer':>13} {'ratio':>7} {'goal':>6}")
    for name, function in figures():
        if wanted and not any(part in name for part in wanted):
            continue
        with tempfile.TemporaryDirectory(prefix="pvetools-bench-") as scratch:
            result = function(Path(scratch))
        for figure in [result] if isinstance(result, Figure) else result:
            print(figure.line(), flush=True)


if __name__ == "__main__":  # through the module that the benches import: its Figure is another class than this one's
    importlib.import_module("tests.bench.run").main(sys.argv[1:])
