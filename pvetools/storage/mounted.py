"""Storages in a directory that is mounted from a server."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from pvetools.storage import mounts
from pvetools.storage.chained import ChainedStorage
from pvetools.storage.mounts import Wanted
from pvetools.system import paths
from pvetools.system.errors import PveError


class MountedStorage(ChainedStorage, ABC):
    """Base of these backends; each says what is to be mounted and how its server is asked for a sign of life."""

    @abstractmethod
    def reach(self) -> None:
        """Find out within seconds whether the server answers, without touching the mount.

        Raises:
            PveError: it does not.
        """

    def check(self) -> None:
        """Refuse what can't be mounted as it is defined; what is mounted already can be unmounted nevertheless.

        Raises:
            PveError: the definition cannot be served.
        """

    @abstractmethod
    def wanted(self, point: Path) -> Wanted:
        """What is to be mounted at a place, if ``check`` has nothing against it."""

    @property
    def words(self) -> list[str]:
        """The mount options of the definition."""
        return [word for word in (self.definition.options.options or "").split(",") if word]

    def option(self, *names: str) -> str:
        """The value of a mount option under one of its names; empty when it is not given."""
        for word in reversed(self.words):
            key, _, value = word.partition("=")
            if key in names:
                return value
        return ""

    @property
    def creates(self) -> bool:
        """Whether the mount point is made when it is missing."""
        options = self.definition.options
        return bool(options.given.get("create-base-path", options.mkdir))

    @property
    def host(self) -> str:
        """The server as it stands in the source of a mount."""
        server = self.definition.options.server or ""
        return f"[{server}]" if ":" in server else server

    def attach(self) -> None:
        self.check()
        wanted = self.wanted(Path(self.base))
        self._ask()
        mounts.attach(self.id, wanted)

    def _ask(self) -> None:
        try:
            self.reach()
        except PveError as error:
            raise PveError(f"storage '{self.id}': {error}") from None

    def deactivate(self) -> None:
        try:
            mounts.detach(self.id, self.wanted(Path(self.base)))
        finally:
            self._clear_trial()

    @property
    def _trial(self) -> Path:
        """Where nobody looks."""
        return paths.run_dir() / f"verify-{self.id}"

    def _clear_trial(self) -> None:
        """Remove the mount of a trial, also of one that was killed."""
        mounts.clear(self.id, self._trial)
        mounts.drop(self._trial)

    def verify(self) -> None:
        """Mount it a second time."""
        self._clear_trial()
        self.check()
        self._ask()
        try:
            mounts.attach(self.id, self.wanted(self._trial)._replace(create=True))
            os.statvfs(self._trial)
        finally:
            self._clear_trial()
