"""Backend ``zfs``: volumes in a ZFS pool of a server, which offers them by iSCSI; QEMU reaches them itself."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pvetools.storage import iscsi, lio, san
from pvetools.storage.driver import Capabilities, Network, Source, Space
from pvetools.storage.lio import Lun
from pvetools.storage.zfs import Caller, Row, check_dataset
from pvetools.storage.zfsvolumes import ZfsStorage
from pvetools.system import lock, paths, run
from pvetools.system.errors import PveError, Refused, RunError

DEVICES = "/dev/zvol"
_RAW = frozenset({"raw"})
_SOCKET_ROOM = 80  # names of sockets are short
_UNREACHABLE = 255
# until the link leads to this volume: one to the volume that had its name before may still be there
_WAIT = """\
PATH=$PATH:/lib/udev:/usr/lib/udev
tries=0
until [ -b "$1" ] && { ! command -v zvol_id >/dev/null || [ "$(zvol_id "$1")" = "$2" ]; }; do
    tries=$((tries + 1))
    [ $tries -le 300 ] || exit 1
    sleep 0.1
done
"""


class ZfsOverIscsi(ZfsStorage):
    """One storage of type ``zfs``."""

    info = Capabilities(
        files=False,
        alloc=_RAW,
        resize=_RAW,
        online_resize=_RAW,
        snapshot=_RAW,
        rollback_to_newest=True,
        base=_RAW,
    )

    def caller(self) -> Caller:
        return _Server(self._portal.host, self._key)

    @property
    def _portal(self) -> san.Portal:
        return san.portal(self.definition.options.portal or "", iscsi.PORT)

    @property
    def _key(self) -> Path:
        """The key that root of the server takes, where Proxmox VE has it."""
        return paths.etc_pve() / "priv/zfs" / f"{self._portal.host}_id_rsa"

    @cached_property
    def _target(self) -> lio.Target:
        options = self.definition.options
        name = san.check_target(options.target or "", "the name of an iSCSI target")
        return lio.Target(name, lio.group_number(options.lio_tpg or ""), self.pool.call)

    def activate(self) -> None:
        self._check_options()
        if not self._key.is_file():
            raise PveError(f"unable to activate storage '{self.id}' - there is no ssh key '{self._key}'")
        check_dataset(self.pool.dataset)
        san.reach(self._portal)

    def status(self) -> Space:
        self._target.luns()
        return super().status()

    def _check_options(self) -> None:
        options = self.definition.options
        if options.iscsiprovider != "LIO":
            raise Refused(
                f"storage '{self.id}': iSCSI provider '{options.iscsiprovider}' is not served by this version, "
                f"only: LIO"
            )
        for key in ("comstar_hg", "comstar_tg"):
            if options.given.get(key):
                raise Refused(f"storage '{self.id}': option '{key}' has no effect with the iSCSI provider LIO")
        if not options.lio_tpg:
            raise PveError(f"storage '{self.id}': the iSCSI provider LIO needs the option 'lio_tpg', such as tpg1")

    # Places.

    def device(self, own: str, snapshot: str = "") -> Path:
        name = own + (f"@{snapshot}" if snapshot else "")
        return Path(str(self._portal), self.definition.options.target or "", name)

    def _server_device(self, own: str) -> str:
        return f"{self.definition.options.zfs_base_path or DEVICES}/{self.pool.of(own)}"

    def _kept(self, own: str) -> Lun | None:
        """What the server has for a volume; others may name the same device in other ways."""
        volume, luns = self.pool.of(own), self._target.luns()
        base = self.definition.options.zfs_base_path or DEVICES
        # a device whose root is not known counts only where no other one is meant beyond doubt
        return next(
            (lun for sure in (True, False) for lun in luns if _is_of(lun.device, volume, base, sure=sure)), None
        )

    def _lun(self, own: str) -> Lun | None:
        """The volume as it is offered."""
        kept = self._kept(own)
        return kept if kept and kept.offered else None

    def source(self, name: str) -> Source:
        own = self.row(name).name
        lun = self._lun(own)
        if lun is None:  # the server has started anew without it, or something ended halfway
            with lock.storage_lock(self.id):
                lun = self._offer(own)
        initiator = iscsi.initiator()
        opened = {
            "driver": "iscsi", "transport": "tcp", "portal": str(self._portal), "target": self._target.name,
            "lun": lun.number,
        }  # fmt: skip
        opened |= {"initiator-name": initiator} if initiator else {}
        network = Network("iscsi", f"{self._target.name}/{lun.number}", (self._portal,), initiator=initiator)
        url = "json:" + json.dumps({"file": opened}, separators=(",", ":"))
        return Source("network", self.device(own), "raw", url, network)

    # Offering.

    def _offer(self, own: str) -> Lun:
        """Offer a volume, unless that is done already."""
        device = self._server_device(own)
        try:
            self.pool.call(["sh", "-c", _WAIT, "sh", device, self.pool.of(own)])
        except RunError:
            raise PveError(f"device '{device}' of volume '{self.id}:{own}' did not appear on the server") from None
        kept = self._kept(own)
        if kept and kept.offered:
            return kept
        if kept:
            return self._target.offer(kept.store, kept.device)
        return self._target.offer(f"{self.pool.dataset.replace('/', '-')}-{own}", device)

    def shown(self, own: str) -> None:
        self._offer(own)

    def hidden(self, own: str) -> None:
        if kept := self._kept(own):
            self._target.withdraw(kept)

    def user_of(self, row: Row) -> str:
        """What a target's initiators do with one of its LUNs nobody tells; the programs of this host can be seen."""
        lun = self._lun(row.name)
        return _program_with(self._target.name, lun.number) if lun else ""


def _is_of(device: str, volume: str, base: str, *, sure: bool) -> bool:
    """Whether a device is that of a ZFS volume.

    Args:
        device: its path on the server.
        volume: POOL/.../NAME.
        base: where the devices of volumes are said to be.
        sure: by its whole path below a root that is known; otherwise by its end, below roots that are not: where they
            are known, another pool may have a dataset of the same name.
    """
    roots = sorted({base.rstrip("/"), DEVICES, "/dev"}, key=len, reverse=True)
    root = next((root for root in roots if device.startswith(f"{root}/")), "")
    if sure:
        return bool(root) and device.removeprefix(root).lstrip("/") == volume
    return not root and device.endswith(f"/{volume}")


@dataclass(frozen=True, slots=True)
class _Server:
    """Runs programs on a server as its root; one connection serves for a while."""

    host: str
    key: Path

    def __call__(self, argv: Sequence[str]) -> str:
        try:
            return run.run([*self._words(), shlex.join(argv)]).stdout
        except RunError as error:
            if error.code == _UNREACHABLE:
                raise PveError(f"can't reach root@{self.host} by ssh: {error.stderr or 'no message'}") from None
            raise RunError(argv, error.code, error.stderr) from None

    def _words(self) -> list[str]:
        options = [
            "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=10", "LogLevel=ERROR", "IdentitiesOnly=yes",
            f"IdentityFile={self.key}",
        ]  # fmt: skip
        control = paths.run_dir() / f"ssh-{self.host}"
        if len(str(control)) < _SOCKET_ROOM and "%" not in str(control):
            control.parent.mkdir(parents=True, exist_ok=True)
            options += ["ControlMaster=auto", "ControlPersist=60", f"ControlPath={control}"]
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", *words, "--", f"root@{self.host}"]


def _program_with(target: str, number: int) -> str:
    """A program of this host that was started with a LUN, in words; empty when there is none."""
    url = re.compile(rf"{re.escape(target)}/{number}(?!\d)")
    described = re.compile(rf'"lun":"?{number}(?!\d)')
    for file in Path("/proc").glob("[1-9]*/cmdline"):
        try:
            words = file.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue  # it has ended meanwhile
        for word in words:
            if target in word and (url.search(word) or (f'"{target}"' in word and described.search(word))):
                name = Path(words[0]).name
                return (
                    f"a running QEMU (process {file.parts[2]})"
                    if "qemu" in name
                    else f"process {file.parts[2]} ({name})"
                )
    return ""
