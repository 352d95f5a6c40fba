"""Backend ``iscsidirect``: LUNs of an iSCSI target that QEMU reaches itself, without the kernel's initiator (libiscsi).

Volumes are named ``lunN``.  With the option ``username`` and a password the target is logged in to by CHAP.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from pvetools.storage import iscsi, iscsi_client, san, secrets
from pvetools.storage.driver import Network, Source
from pvetools.storage.flat import Record
from pvetools.storage.san import Portal
from pvetools.system import files
from pvetools.system.errors import NotFound, PveError

# what QEMU calls itself on a host that has no name for targets
_NAMELESS = "iqn.2008-11.org.linux-kvm"


class IscsiDirect(san.ForeignStorage):
    """One storage of type ``iscsidirect``."""

    names = re.compile(r"lun(0|[1-9]\d{0,4})", re.ASCII)
    example = "lunN"

    @property
    def portal(self) -> Portal:
        return san.portal(str(self.definition.options.portal), iscsi.PORT)

    @property
    def target(self) -> str:
        example = "the name of an iSCSI target, such as iqn.2003-01.org.linux-iscsi:disks"
        return san.check_target(self.definition.options.target or "", example)

    @property
    def _secret(self) -> Path:
        return secrets.path(self.id, self.definition.type, "password")

    def _password(self) -> str:
        text = files.read_text(self._secret)
        if text is None:
            user = self.definition.options.username
            raise PveError(f"there is no password for user '{user}', set it with: pvesm set {self.id} --password")
        return text

    @contextlib.contextmanager
    def _session(self) -> Iterator[iscsi_client.Session]:
        """Be logged in to the target. PveError: it does not answer, or lets nobody in."""
        try:
            user = self.definition.options.username or ""
            password = self._password() if user else ""
            initiator = iscsi.initiator() or _NAMELESS
            login = iscsi_client.Login(self.portal, self.target, initiator, user, password)
            with iscsi_client.session(login) as session:
                yield session
        except NotFound:
            raise
        except PveError as error:
            raise PveError(f"storage '{self.id}': {error}") from None

    def activate(self) -> None:
        with self._session():
            pass

    def records(self) -> Iterator[Record]:
        with self._session() as session:
            found = [*session.disks()]
        for number, size in found:
            yield Record(f"lun{number}", size)

    def require(self, name: str) -> Record:
        own = self.parse(name).name
        try:
            with self._session() as session:
                return Record(own, session.size(int(own.removeprefix("lun"))))
        except NotFound:
            raise NotFound(f"volume '{self.id}:{name}' does not exist") from None

    def device(self, own: str, snapshot: str = "") -> Path:
        return Path(f"iscsi://{self.portal}/{self.target}/{own.removeprefix('lun')}")

    def source(self, name: str) -> Source:
        number = int(self.require(name).name.removeprefix("lun"))
        user, initiator = self.definition.options.username or "", iscsi.initiator()
        opened: dict[str, object] = {
            "driver": "iscsi", "transport": "tcp", "portal": str(self.portal), "target": self.target, "lun": number,
        }  # fmt: skip
        options: tuple[str, ...] = ()
        if initiator:
            opened["initiator-name"] = initiator
        if user:
            opened |= {"user": user, "password-secret": f"iscsi-{self.id}"}
            options = (f"--object=secret,id=iscsi-{self.id},file={self._secret}",)
        secret = self._secret if user else None
        network = Network(
            "iscsi",
            f"{self.target}/{number}",
            ((self.portal.host, self.portal.port),),
            user,
            secret,
            initiator=initiator,
        )
        url = "json:" + json.dumps({"file": opened}, separators=(",", ":"))
        return Source("network", self.device(name), "raw", url, network, options)
