"""Backend ``cifs``: a share of an SMB server, versions 2 and 3."""

from __future__ import annotations

import re
from pathlib import Path

from pvetools.storage import secrets, servers
from pvetools.storage.mounted import MountedStorage
from pvetools.storage.mounts import Wanted
from pvetools.system.errors import PveError, Refused

# Mount options that say who logs in: the storage has options of its own for that, with the password in a file.
_LOGIN = frozenset({"cred", "credentials", "pass", "password", "password2", "user", "username", "guest"})


class Cifs(MountedStorage):
    """One storage of type ``cifs``."""

    info = MountedStorage.info._replace(
        alloc=frozenset({"raw", "qcow2", "vmdk"}),  # folders would lose owners and modes
        io_uring="never",
    )

    def check(self) -> None:
        options = self.definition.options
        self._check_signs("share", options.share or "", r"[^/\\,\0-\x1f][^\\,\0-\x1f]*")
        if options.username:
            self._check_signs("username", options.username, r"[^,\0-\x1f]+")
            self._check_signs("domain", options.domain or "", r"[^,\0-\x1f]*")
        for word in self.words:
            if (key := word.partition("=")[0]) in _LOGIN:
                raise Refused(
                    f"storage '{self.id}': mount option '{key}' can't be served: there are the storage's own options "
                    "username and password"
                )

    def wanted(self, point: Path) -> Wanted:
        options = self.definition.options
        version = [] if options.smbversion == "default" else [f"vers={options.smbversion}"]
        source = f"//{self.host}/{options.share}{options.subdir or ''}"
        # nobrl: as mandatory locks at the server, QEMU's locks would keep QEMU itself from writing
        words = ("soft", "nobrl", *self._login(), *version, *self.words)
        return Wanted(point, source, "cifs", words, self.creates)

    def _login(self) -> list[str]:
        """The words that say who logs in; the password stands in a file."""
        options = self.definition.options
        if not options.username:
            return ["guest", "username=guest"]
        words = [f"username={options.username}", f"credentials={self._secret}"]
        return [*words, f"domain={options.domain}"] if options.domain else words

    @property
    def _secret(self) -> Path:
        return secrets.path(self.id, "cifs", "password")

    def _check_signs(self, option: str, value: str, pattern: str) -> None:
        """Whether a value can stand in a mount command without meaning something else there."""
        if not re.fullmatch(pattern, value):
            raise PveError(
                f"storage '{self.id}': value '{value}' of option '{option}' has signs that a mount can't have"
            )

    def reach(self) -> None:
        user = self.definition.options.username
        if user and not self._secret.exists():
            raise PveError(f"user '{user}' has no password (option password)")
        port = self.option("port")
        servers.smb(self.definition.options.server or "", int(port) if port.isdecimal() else 0)
