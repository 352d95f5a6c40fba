"""Where images and templates are kept between runs, and how they get there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


class NotAvailable(RuntimeError):
    """An asset is not in the cache and cannot be made here."""


def directory() -> Path:
    """PVETOOLS_TEST_CACHE, XDG_CACHE_HOME/pvetools-tests or /var/cache/pvetools-tests."""
    named = os.environ.get("PVETOOLS_TEST_CACHE")
    if named:
        return Path(named)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return Path(xdg, "pvetools-tests") if xdg else Path("/var/cache/pvetools-tests")


def key(*parts: str | bytes) -> str:
    """A short name for the content that an asset is made from."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:12]


def obtain(name: str, build: Callable[[Path, Path], None]) -> Path:
    """The cached file `name`, built at need by `build(target, workspace)`.

    Names are KIND_TAG_REST.  One process builds at a time.  The file appears under its name only when
    it is complete, and files of the same kind with other tags are removed then.
    """
    place = directory()
    target = place / name
    if target.exists():
        return target
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / ".lock"):
        if target.exists():
            return target
        workspace = Path(tempfile.mkdtemp(prefix=".build-", dir=place))
        try:
            half = workspace / "result"
            build(half, workspace)
            half.rename(target)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
        _forget_older(target)
    return target


def _forget_older(target: Path) -> None:
    kind, tag, _ = target.name.split("_", 2)
    for other in target.parent.glob(f"{kind}_*"):
        if not other.name.startswith(f"{kind}_{tag}_"):
            other.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path):
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str | Path], *, timeout: float = 600, cwd: Path | None = None) -> str:
    """Run a tool; its standard output, or RuntimeError with what it said."""
    argv = [str(word) for word in command]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, cwd=cwd, check=False)
    except FileNotFoundError:
        raise NotAvailable(f"the tool {argv[0]} is not installed") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
