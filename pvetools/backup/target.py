"""Where archives go: the dump folder of a storage, or a plain directory. Nothing here ever overwrites an archive."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pvetools.backup import joblog, names, retention
from pvetools.backup.retention import Backup
from pvetools.system import compress, files
from pvetools.system.errors import Exists, PveError, Refused


@dataclass(frozen=True, slots=True)
class Target:
    """A folder with archives; ``storage`` is empty for a plain directory."""

    folder: Path
    storage: str = ""

    def label(self, filename: str) -> str:
        """How messages and listings name an archive: its volume id, or its path."""
        return f"{self.storage}:backup/{filename}" if self.storage else str(self.folder / filename)

    def backups(self, kind: str, vmid: int) -> list[Backup]:
        """A guest's archives with standard names."""
        found: list[Backup] = []
        for path in self.folder.glob(f"vzdump-{kind}-{vmid}-*"):
            try:
                info = names.parse(path.name)
            except PveError:
                continue  # logs, notes, marks
            if info.standard and info.ctime is not None:
                guarded = (self.folder / info.protected).exists()
                found.append(Backup(self.label(path.name), info.ctime, vmid, guarded, kind))
        return found

    def remove(self, filename: str) -> None:
        """Remove an archive with its log and notes.

        Raises:
            Refused: it is protected. PveError: it cannot be removed.
        """
        info = names.parse(filename)
        if (self.folder / info.protected).exists():
            raise Refused(f"can't remove '{self.label(filename)}': it is protected")
        try:
            files.remove(self.folder / filename)
        except OSError as error:
            raise PveError(f"can't remove '{self.label(filename)}': {error.strerror}") from error
        for name in names.companions(filename):
            try:
                files.remove(self.folder / name)
            except OSError as error:
                joblog.warn(f"can't remove '{self.folder / name}': {error.strerror}")

    def prune(self, kind: str, vmid: int, keep: Mapping[str, int]) -> int:
        """Remove what the limits do not keep; gives the number of archives removed.

        Raises:
            PveError: one of them could not be removed.
        """
        removed = 0
        for backup in retention.prune(self.backups(kind, vmid), keep):
            if backup.mark != "remove":
                continue
            said = "removing backup" if self.storage else "delete old backup"
            joblog.info(f"{said} '{backup.volid}'")
            self.remove(backup.volid.rpartition("/")[2])
            removed += 1
        return removed

    def check_room(self, kind: str, vmid: int, keep: Mapping[str, int]) -> None:
        """Refuse a further backup where old ones are not removed although limits are set.

        Raises:
            PveError: the guest has as many unprotected backups as may be kept.
        """
        most = sum(count for option, count in keep.items() if option != "keep-all")
        have = sum(not backup.protected for backup in self.backups(kind, vmid))
        if most and have >= most:
            raise PveError(
                f"There is a max backup limit of {most} enforced by the target storage or the vzdump parameters. "
                f"Either increase the limit or delete old backup(s)"
            )

    def check_protected(self, kind: str, vmid: int, most: int | None) -> None:
        """Refuse a further protected backup beyond the storage's limit (None and -1: unlimited).

        Raises:
            PveError: the limit is reached.
        """
        have = sum(backup.protected for backup in self.backups(kind, vmid))
        if most is not None and most >= 0 and have >= most:
            raise PveError(f"number of protected backups for guest {vmid} would exceed the storage's limit ({most})")

    def write_notes(self, filename: str, text: str) -> None:
        """Store the notes beside an archive; empty ones remove the file."""
        path = self.folder / f"{filename}.notes"
        if text:
            files.write_atomic(path, text, 0o644)
        else:
            files.remove(path)

    def protect(self, filename: str) -> None:
        """Mark an archive as protected."""
        files.write_atomic(self.folder / names.parse(filename).protected, "", 0o644)

    def free_start(self, kind: str, vmid: int) -> float:
        """A start time whose names are not used yet; waits for the next second where this one has a backup already."""
        while True:
            started = time.time()
            if not any(self.folder.glob(f"{names.stem(kind, vmid, started)}.*")):
                return started
            time.sleep(1 - started % 1)

    @contextlib.contextmanager
    def writing(self, filename: str, argv: list[str]) -> Iterator[int]:
        """A descriptor whose (compressed) bytes become the archive when the block ends well, and vanish otherwise.

        Raises:
            Exists: an archive of that name came into being meanwhile.
        """
        growing = self.folder / names.temporary_name(filename)
        growing.unlink(missing_ok=True)
        with compress.writing(growing, argv) as fd:
            yield fd
        try:
            _rename_new(growing, self.folder / filename)
        except BaseException:
            growing.unlink(missing_ok=True)
            raise


def _rename_new(source: Path, target: Path) -> None:
    """Rename without replacing anything."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise Exists(f"archive '{target}' exists already") from None
    except OSError:  # file systems without hard links
        if target.exists():
            raise Exists(f"archive '{target}' exists already") from None
        source.rename(target)
    else:
        source.unlink()
    files.sync_folder(target.parent)
