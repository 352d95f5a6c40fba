"""Backend ``iscsidirect``: LUNs of an iSCSI target that QEMU reaches itself, without the kernel's initiator (libiscsi).

Volumes are named ``lunN``.  With the option ``username`` and a password the target is logged in to by CHAP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pvetools.storage import iscsi, san, secrets
from pvetools.storage.driver import Network, Source
from pvetools.storage.flat import Record
from pvetools.storage.san import Portal
from pvetools.system import files
from pvetools.system.errors import NotFound, PveError, RunError
from pvetools.system.run import run

_TARGET = re.compile(r"Target:(\S+) Portal:")
_LUN = re.compile(r"Lun:(\d+)\s+Type:DIRECT_ACCESS\b")
_INITIATOR = re.compile(r"^InitiatorName=(\S+)", re.MULTILINE)
_NO_LUN = "LOGICAL_UNIT_NOT_SUPPORTED"


class IscsiDirect(san.ForeignStorage):
    """One storage of type ``iscsidirect``."""

    names = re.compile(r"lun(\d{1,5})", re.ASCII)
    example = "lunN"

    @property
    def portal(self) -> Portal:
        return san.portal(str(self.definition.options.portal), iscsi.PORT)

    @property
    def target(self) -> str:
        example = "the name of an iSCSI target, such as iqn.2003-01.org.linux-iscsi:disks"
        return san.check_target(str(self.definition.options.target), example)

    @property
    def _secret(self) -> Path:
        return secrets.path(self.id, self.definition.type, "password")

    def _initiator(self) -> str:
        """This host's name as targets know it; QEMU has one of its own where the host has none."""
        match = _INITIATOR.search(files.read_text(Path("/etc/iscsi/initiatorname.iscsi")) or "")
        return match[1] if match else ""

    def _ask(self, tool: str, *words: str) -> str:
        """Run one of libiscsi's tools; it finds name and password in its environment, where only root can read them.

        Raises:
            RunError: it failed.
        """
        environment = {}
        user = self.definition.options.username
        if user:
            environment = {"LIBISCSI_CHAP_USERNAME": user, "LIBISCSI_CHAP_PASSWORD": self._password()}
        initiator = self._initiator()
        named = [f"--initiator-name={initiator}"] if initiator else []
        return run([tool, *named, *words], env=environment, timeout=san.TOOL_PATIENCE).stdout

    def _password(self) -> str:
        text = files.read_text(self._secret)
        if text is None:
            raise PveError(
                f"storage '{self.id}' has a username but no password: set it with: pvesm set {self.id} --password"
            )
        return text

    def activate(self) -> None:
        _ = self.target
        san.reach(self.portal)

    def _numbers(self) -> list[int]:
        """LUNs of the target that are disks."""
        try:
            said = self._ask("iscsi-ls", "--show-luns", f"iscsi://{self.portal}")
        except RunError as error:
            raise PveError(
                f"storage '{self.id}': portal '{self.portal}' gives no list of LUNs: {error.stderr}"
            ) from None
        found: dict[str, set[int]] = {}  # a target is listed once for each of its portals
        numbers: set[int] = set()
        for line in said.splitlines():
            if match := _TARGET.match(line):
                numbers = found.setdefault(match[1], set())
            elif match := _LUN.match(line):
                numbers.add(int(match[1]))
        if self.target not in found:
            raise PveError(f"storage '{self.id}': portal '{self.portal}' does not offer the target '{self.target}'")
        return sorted(found[self.target])

    def _size(self, number: int) -> int:
        """Bytes of a LUN.

        Raises:
            NotFound: there is no such LUN. PveError: the target cannot be reached.
        """
        try:
            return int(self._ask("iscsi-readcapacity16", "-s", f"iscsi://{self.portal}/{self.target}/{number}"))
        except RunError as error:
            if _NO_LUN in error.stderr:
                raise NotFound(f"volume '{self.id}:lun{number}' does not exist") from None
            raise PveError(f"storage '{self.id}': can't log in to '{self.target}': {error.stderr}") from None

    def records(self) -> Iterator[Record]:
        for number in self._numbers():
            yield Record(f"lun{number}", self._size(number))

    def require(self, name: str) -> Record:
        own = self.parse(name).name
        return Record(own, self._size(int(own.removeprefix("lun"))))

    def device(self, own: str, snapshot: str = "") -> Path:
        return Path(f"iscsi://{self.portal}/{self.target}/{own.removeprefix('lun')}")

    def source(self, name: str) -> Source:
        number = int(self.require(name).name.removeprefix("lun"))
        user, initiator = self.definition.options.username or "", self._initiator()
        opened: dict[str, object] = {
            "driver": "iscsi", "transport": "tcp", "portal": str(self.portal), "target": self.target, "lun": number,
        }  # fmt: skip
        options: tuple[str, ...] = ()
        if initiator:
            opened["initiator-name"] = initiator
        if user:
            opened |= {"user": user, "password-secret": f"iscsi-{self.id}"}
            options = ("--object", f"secret,id=iscsi-{self.id},file={self._secret}")
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
