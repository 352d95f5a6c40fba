"""Keys and passwords of storage servers, as libvirt gets them when a guest starts.

A key never stands in the domain's definition or on a command line: the definition names a secret, which libvirt keeps
in its memory and gives to QEMU encrypted. It is there only while the guest is started.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pvetools.guest.qemu.element import Element
from pvetools.system.errors import PveError


class Secret(NamedTuple):
    """A key or password that libvirt has to know while the guest starts.

    Args:
        uuid: name of it in the domain's definition.
        kind: libvirt's kind of use, ``ceph`` or ``iscsi``.
        purpose: what it is for; no other secret has the same.
        user: user name at the server.
        file: where it is kept.
    """

    uuid: str
    kind: str
    purpose: str
    user: str
    file: Path

    def definition(self) -> str:
        """Libvirt's definition: never on a disk, and nobody can read it back."""
        top = Element("secret", ephemeral="yes", private="yes")
        top.add("uuid", self.uuid)
        usage = top.add("usage", type=self.kind)
        usage.add("name" if self.kind == "ceph" else "target", self.purpose)
        return top.serialise()

    def value(self) -> bytes:
        """What is kept in the file, as libvirt wants it.

        Raises:
            PveError: the file is not there, or does not hold it.
        """
        try:
            text = self.file.read_text("utf-8", "surrogateescape")
        except OSError as error:
            raise PveError(f"can't read '{self.file}' with the key of user '{self.user}': {error.strerror}") from None
        return _READERS[self.kind](self, text)


def _ceph_key(secret: Secret, text: str) -> bytes:
    from pvetools.storage import ceph

    key = ceph.key_of(secret.user, text)
    if key is None:
        raise PveError(f"keyring '{secret.file}' holds no key of user 'client.{secret.user}'")
    return base64.b64decode(key)


def _password(_secret: Secret, text: str) -> bytes:
    return text.rstrip("\n").encode("utf-8", "surrogateescape")


_READERS: dict[str, Callable[[Secret, str], bytes]] = {"ceph": _ceph_key, "iscsi": _password}
