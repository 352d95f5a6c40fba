"""Backend ``lvm``: a volume group, local, or shared by several nodes that reach the same LUN.

A new volume shows zeros: volumes are overwritten when they are removed, by the device itself where it can. Where it can
that, they are also when they are made, whoever had the space before.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from pvetools.storage import blockdev
from pvetools.storage.definition import NOT_SERVED
from pvetools.storage.driver import Capabilities, Space, Wish
from pvetools.storage.flat import Record
from pvetools.storage.volumegroups import GroupStorage, Logical, group, kib
from pvetools.system import lock, log
from pvetools.system.errors import PveError, Refused
from pvetools.system.units import MIB

_NAME = re.compile(r"vm-[1-9]\d{0,9}-[a-zA-Z0-9][a-zA-Z0-9_.+-]{0,99}", re.ASCII)
_TAG = re.compile(r"pve-vm-\d+", re.ASCII)
_KINDS = "-oCrRmM"  # ordinary ones, also cached, mirrored or snapshotted by hand; nothing thin
_RATE = re.compile(r"-?(\d+)([kmgt]?)", re.ASCII | re.IGNORECASE)


def rate(text: str) -> int:
    """Bytes per second of ``saferemove_throughput``, such as ``-10485760`` or ``10m``; 0: no limit.

    Raises:
        PveError: it is none.
    """
    match = _RATE.fullmatch(text)
    if not match:
        raise PveError(f"invalid saferemove_throughput '{text}', expected bytes per second such as 10485760 or 10m")
    return int(match[1]) << 10 * " kmgt".index(match[2].lower() or " ")


class VolumeGroup(GroupStorage):
    """One storage of type ``lvm``."""

    info = Capabilities(
        files=False,
        alloc=frozenset({"raw"}),
        resize=frozenset({"raw"}),
        online_resize=frozenset({"raw"}),
        io_uring="direct",
    )

    def mine(self, found: Logical) -> bool:
        tagged = not self.definition.options.tagged_only or any(_TAG.fullmatch(tag) for tag in found.tags)
        return tagged and found.kind in _KINDS and bool(_NAME.fullmatch(found.name))

    def record(self, found: Logical) -> Record:
        return Record(found.name, found.size, used=found.size, ctime=found.ctime)

    def status(self) -> Space:
        found = group(self.vg)
        return Space(found.size, found.size - found.free, found.free)

    # Making.

    def alloc(self, wish: Wish) -> str:
        for option in NOT_SERVED:
            if self.definition.options.given.get(option):
                raise Refused(f"storage '{self.id}': option '{option}' has no effect in this version")
        self.finish_removals(slow=False)
        with contextlib.ExitStack() as undo:
            with lock.storage_lock(self.id):
                own = self.choose_name(wish)
                self.create(
                    "lvcreate", "-aly", "-Wy", "-Zy", "--setautoactivation", "n", "-L", kib(wish.size), "-n", own,
                    "--addtag", f"pve-vm-{wish.vmid}", self.vg, size=wish.size,
                )  # fmt: skip
                undo.callback(self.lvm, "lvremove", "-f", own, check=False)
            blockdev.wait_for(self.device(own))
            blockdev.zero_fast(self.device(own))
            undo.pop_all()
        self._let_go(own)
        return own

    def _let_go(self, own: str) -> None:
        """A shared volume is active only where a guest uses it."""
        if self.definition.shared:
            self.lvm("lvchange", "-aln", own, check=False)

    def grown(self, before: Logical) -> None:
        path = self.device(before.name)
        if not before.active:
            self.reach(before.name)
        blockdev.zero_fast(path, before.size)
        if not before.active:
            self._let_go(before.name)

    # Removing.

    def free(self, name: str) -> None:
        self.parse(name)
        self.finish_removals(slow=True)
        with contextlib.ExitStack() as held:
            with lock.storage_lock(self.id):
                found = self.idle(name)
                if found.kind == "o":
                    raise Refused(
                        f"volume '{self.id}:{name}' has LVM snapshots that were made by hand, remove them first"
                    )
                doomed = self.doom(found)
                held.enter_context(self._to_wipe(doomed))
            self._remove(doomed, held)

    @contextlib.contextmanager
    def _to_wipe(self, doomed: str) -> Iterator[bool]:
        """Hold a volume that is being removed; False: another process is at it. The caller holds the storage's lock."""
        with blockdev.claimed(self.reach(doomed)) as alone:
            yield alone

    def _remove(self, doomed: str, held: contextlib.ExitStack) -> None:
        """Overwrite a volume that this process holds, outside of the storage's lock, and remove it."""
        try:
            self._wipe(doomed)
        except PveError as error:
            raise PveError(
                f"storage '{self.id}': the removed volume is not overwritten and stays as '{doomed}'; the next command "
                f"that makes or removes a volume tries it again: {error}"
            ) from None
        with lock.storage_lock(self.id):
            held.close()
            self.lvm("lvremove", "-f", doomed)

    def _wipe(self, doomed: str) -> None:
        options, path = self.definition.options, self.device(doomed)
        if self._quick(doomed):
            return
        blockdev.overwrite(
            path,
            step=options.saferemove_stepsize * MIB,
            per_second=rate(options.saferemove_throughput or "0") if options.saferemove else 0,
            report=lambda done, whole: log.progress("wipe", done, whole),
        )

    def _quick(self, doomed: str) -> bool:
        """Have the device itself make zeros of a volume, if that is enough and it can."""
        return not self.definition.options.saferemove and blockdev.zero_fast(self.device(doomed))

    def finish_removals(self, *, slow: bool) -> None:
        """Bring removals to their end that were interrupted, by a signal or a power cut.

        Args:
            slow: also where that may take hours.
        """
        for found in self.remnants:
            with contextlib.ExitStack() as held:
                with lock.storage_lock(self.id):
                    if found.name not in self.taken() or not held.enter_context(self._to_wipe(found.name)):
                        continue  # another process has done it, or is at it
                if not slow and not self._quick(found.name):
                    log.warn(
                        f"storage '{self.id}': the removal of '{found.name}' was interrupted; it goes on when the next "
                        "volume is removed"
                    )
                    continue
                log.emit(f"storage '{self.id}': going on with the interrupted removal of '{found.name}'")
                self._remove(found.name, held)
        self.remnants = []
