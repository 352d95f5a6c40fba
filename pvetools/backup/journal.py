"""What a running backup has to give back. The record outlives a killed process, and the next job cleans up after it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pvetools.system import files, paths, task


@dataclass
class Journal:
    """The record of one guest's backup.

    ``paths`` are temporary files and folders. ``job`` says that the running VM has a backup job, ``frozen`` that its
    file systems are frozen, ``suspended`` that the guest was suspended, ``stopped`` that it was stopped.
    """

    vmid: int
    kind: str
    owner: str = ""
    pid: int = 0
    start: int = 0
    paths: list[str] = field(default_factory=list)
    job: bool = False
    frozen: bool = False
    suspended: bool = False
    stopped: bool = False

    @property
    def file(self) -> Path:
        return _folder() / f"{self.vmid}.json"

    @property
    def unfinished(self) -> bool:
        """Whether there is anything to give back. A stopped guest is not started: it may be meant to be off."""
        return bool(self.paths) or self.job or self.frozen or self.suspended

    @property
    def dead(self) -> bool:
        """Whether the process that wrote it has ended."""
        return task.process_start(self.pid) != self.start

    def note(self, **changes: object) -> None:
        """Record what is about to be done, before it is done."""
        for name, value in changes.items():
            setattr(self, name, value)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(self.file, json.dumps(asdict(self)))

    def note_path(self, path: Path) -> None:
        """Record a temporary file or folder."""
        self.note(paths=[*self.paths, str(path)])

    def remove_paths(self) -> None:
        """Remove the temporary files and folders."""
        for name in self.paths:
            path = Path(name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        self.paths = []

    def close(self) -> None:
        """Everything was given back."""
        files.remove(self.file)


def _folder() -> Path:
    return paths.state_dir() / "vzdump"


def begin(vmid: int, kind: str, owner: str) -> Journal:
    """Start the record of a guest's backup by this process."""
    pid = os.getpid()
    journal = Journal(vmid, kind, owner, pid, task.process_start(pid))
    journal.note()
    return journal


def left_behind() -> Iterator[Journal]:
    """Records of processes that were killed."""
    for path in sorted(_folder().glob("*.json")):
        try:
            journal = Journal(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if journal.dead:
            yield journal


def remove_half_written() -> None:
    """Remove records that killed processes did not finish writing."""
    for path in _folder().glob(".*.json.tmp.*"):
        if not task.process_start(int(path.suffix[1:])):
            files.remove(path)


def owner_of(vmid: int) -> str:
    """Who left the lock of a guest behind; empty when nothing is known."""
    return next((journal.owner for journal in left_behind() if journal.vmid == vmid), "")
