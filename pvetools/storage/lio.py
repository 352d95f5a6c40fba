"""LIO, the SCSI target of Linux, on a server: which devices a target offers, offering one and taking it back.

What is offered is read from the kernel. Changes are made by the library that ``targetcli`` is made of, and kept for the
server's next start in the same file: the program itself takes seconds, and hardly tells errors by its exit status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from pvetools.storage.zfs import Caller
from pvetools.system.errors import PveError, RunError

_KERNEL = "/sys/kernel/config/target"
_GROUP = re.compile(r"(?:tpg)?([1-9]\d{0,4})", re.ASCII)
# a line for each LUN and one for each backstore: folder of the LUN, the backstore's name, its device; nothing but words
# of the shell, as there may be thousands
_LIST = """\
cd "$1/iscsi/$2/lun" || exit 3
home=$PWD
for link in lun_*/*; do
    [ -L "$link" ] || continue
    device=
    IFS= read -r device < "$link/udev_path"
    cd -P "$link" || continue
    printf '%s\\t%s\\t%s\\n' "${link%/*}" "${PWD##*/}" "$device"
    cd "$home"
done
for path in "$1"/core/iblock_*/*/udev_path; do
    [ -e "$path" ] || continue
    device=
    IFS= read -r device < "$path"
    store=${path%/*}
    printf -- '-\\t%s\\t%s\\n' "${store##*/}" "$device"
done
"""
_LINE = re.compile(r"(?:-|lun_(\d{1,9}))\t([^\t]+)\t([^\t]*)", re.ASCII)
_HIDDEN = -1
_NO_TARGET = 3
# what targetcli would do for "/backstores/block create", "/iscsi/TARGET/tpgN/luns create" and "saveconfig", at once
_CHANGE = """\
import contextlib, fcntl, sys
try:
    import rtslib_fb as rtslib
except ImportError:
    import rtslib
action, target, group, store, device = sys.argv[1:]
taken = open("/var/run/targetcli.lock", "w")
fcntl.flock(taken, fcntl.LOCK_EX)

def offer():
    portals = rtslib.TPG(rtslib.Target(rtslib.FabricModule("iscsi"), target, "lookup"), int(group), "lookup")
    try:
        kept = rtslib.BlockStorageObject(store)
    except rtslib.RTSLibNotInCFS:
        kept = rtslib.BlockStorageObject(store, device)
    if kept.udev_path != device:
        sys.exit(f"its name there would be {store!r}, which device {kept.udev_path!r} has already")
    with contextlib.suppress(rtslib.RTSLibError):  # for devices that take space back
        kept.set_attribute("emulate_tpu", 1)
    initiators = [*portals.node_acls]
    taken = {lun.lun for lun in portals.luns} | {lun.mapped_lun for one in initiators for lun in one.mapped_luns}
    number = next(number for number in range(65536) if number not in taken)  # the same for all initiators
    rtslib.LUN(portals, number, kept)
    for one in initiators:
        rtslib.MappedLUN(one, number, number)

def withdraw():
    kept = rtslib.BlockStorageObject(store)
    if kept.udev_path != device:
        sys.exit(f"{store!r} is now the name of device {kept.udev_path!r}")
    kept.delete()

try:
    offer() if action == "offer" else withdraw()
    rtslib.RTSRoot().save_to_file()
except rtslib.RTSLibError as error:
    sys.exit(str(error))
"""


class Lun(NamedTuple):
    """A device of a server; one that the target does not offer has no number (-1), only a backstore."""

    number: int
    store: str
    device: str

    @property
    def offered(self) -> bool:
        return self.number != _HIDDEN


def group_number(text: str) -> int:
    """Number of a target portal group.

    Raises:
        PveError: it is none.
    """
    match = _GROUP.fullmatch(text)
    if not match:
        raise PveError(f"value '{text}' of option 'lio_tpg' does not look like a target portal group, such as tpg1")
    return int(match[1])


def parse_luns(text: str) -> list[Lun]:
    """The lines that the server's list has; a backstore counts only where no LUN has it."""
    found: dict[tuple[str, str], Lun] = {}
    for match in map(_LINE.fullmatch, text.splitlines()):
        if match:  # a server's shell may have a greeting
            number = int(match[1]) if match[1] else _HIDDEN
            found.setdefault((match[2], match[3]), Lun(number, match[2], match[3]))
    return [*found.values()]


@dataclass(frozen=True, slots=True)
class Target:
    """One portal group of a target on a server."""

    name: str
    group: int
    call: Caller

    def luns(self) -> list[Lun]:
        """What it offers now, and what the server only keeps.

        Raises:
            PveError: there is no such target. RunError: the server does not do it.
        """
        try:
            return parse_luns(self.call(["sh", "-c", _LIST, "sh", _KERNEL, f"{self.name}/tpgt_{self.group}"]))
        except RunError as error:
            if error.code == _NO_TARGET:
                raise PveError(f"the server has no target '{self.name}' with portal group tpg{self.group}") from None
            raise

    def offer(self, store: str, device: str) -> Lun:
        """Offer a device under the next free number.

        Raises:
            PveError: the server does not do it.
        """
        said = self._change("offer", store, device)
        lun = next((lun for lun in self.luns() if (lun.store, lun.device) == (store, device)), None)
        if lun and lun.offered:
            return lun
        if lun:
            self.withdraw(lun)
        raise PveError(f"target '{self.name}' does not offer device '{device}': {said}")

    def withdraw(self, lun: Lun) -> None:
        """Offer a device no longer, and let go of it.

        Raises:
            PveError: the server does not do it.
        """
        said = self._change("withdraw", lun.store, lun.device)
        if any((other.store, other.device) == (lun.store, lun.device) for other in self.luns()):
            raise PveError(f"the server does not let go of device '{lun.device}': {said}")

    def _change(self, action: str, store: str, device: str) -> str:
        """What the server says about a change that it refuses."""
        try:
            self.call(["python3", "-c", _CHANGE, action, self.name, str(self.group), store, device])
        except RunError as error:
            return error.stderr
        return "it does not say why"
