"""Backend ``lvm``: a volume group, local, or shared by several nodes that reach the same LUN.

Volumes are overwritten with zeros when they are removed, by the device itself where it can. Where it can that, they are
also when they are made, whoever had the space before; elsewhere a new volume may show what others have left there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from pvetools.storage import blockdev
from pvetools.storage.definition import Definition
from pvetools.storage.driver import Capabilities, Space, Wish
from pvetools.storage.volumechains import SUFFIX, ChainStorage, make, needed
from pvetools.storage.volumegroups import Logical, group, kib
from pvetools.system import log
from pvetools.system.errors import PveError, Refused
from pvetools.system.units import MIB

_NAME = re.compile(r"vm-[1-9]\d{0,9}-[a-zA-Z0-9][a-zA-Z0-9_.+-]{0,99}", re.ASCII)
_RAW, _CHAINS = frozenset({"raw"}), frozenset({"qcow2"})
_PLAIN = Capabilities(files=False, alloc=_RAW, resize=_RAW, online_resize=_RAW, io_uring="never")
_WITH_CHAINS = _PLAIN._replace(alloc=_RAW | _CHAINS, resize=_RAW | _CHAINS, snapshot=_CHAINS, rollback_to_newest=True)
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


class VolumeGroup(ChainStorage):
    """One storage of type ``lvm``."""

    info = _PLAIN

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        if definition.options.snapshot_as_volume_chain:
            self.info = _WITH_CHAINS

    def mine(self, found: Logical) -> bool:
        tagged = not self.definition.options.tagged_only or any(_TAG.fullmatch(tag) for tag in found.tags)
        # without chains, a qcow2 image on a volume is not what a guest would see as its disk
        readable = "qcow2" in self.info.alloc or not found.name.endswith(SUFFIX)
        return tagged and readable and found.kind in _KINDS and bool(_NAME.fullmatch(found.name))

    def status(self) -> Space:
        found = group(self.vg)
        return Space(found.size, found.size - found.free, found.free)

    def blank(self, found: Logical) -> bool:
        return blockdev.can_zero_fast(self.device(found.name))

    # Making.

    def alloc(self, wish: Wish) -> str:
        self.finish_removals(slow=False)
        with contextlib.ExitStack() as undo:
            with self.locked():
                own = self.choose_name(wish)
                size = needed(wish.size) if wish.format == "qcow2" else wish.size
                words = ["-L", kib(size), "-n", own, "--addtag", f"pve-vm-{wish.vmid}", self.vg]
                self.create("lvcreate", *self.NEW, *words, size=wish.size)
                undo.callback(self.lvm, "lvremove", "-f", own, check=False)
            path = self.device(own)
            blockdev.wait_for(path)
            if wish.format == "qcow2":
                make(path, wish.size)
            else:
                blockdev.zero_fast(path)
            undo.pop_all()
        self.let_go(own)
        return own

    def resize(self, name: str, size: int) -> None:
        if self.parse(name).format == "qcow2":
            self.grow_image(name, size)
        else:
            super().resize(name, size)

    def grown(self, before: Logical) -> None:
        path = self.device(before.name)
        if not before.active:
            self.reach(before.name)
        blockdev.zero_fast(path, before.size)
        if not before.active:
            self.let_go(before.name)

    # Removing.

    def free(self, name: str) -> None:
        self.parse(name)
        self.finish_removals(slow=True)
        with contextlib.ExitStack() as rest, self.changing(name), self.locked():
            found = self.logical(name)
            if found.kind == "o":
                raise Refused(f"volume '{self.id}:{name}' has LVM snapshots that were made by hand, remove them first")
            # the volume goes last: what is left of its snapshots can be removed with it
            rest.enter_context(self.discard(name, [*self.layers(found.name, self.rows()), found]))

    @contextlib.contextmanager
    def discard(self, name: str, rows: Sequence[Logical]) -> Iterator[None]:
        with contextlib.ExitStack() as all_, contextlib.ExitStack() as undo:
            doomed: list[tuple[str, contextlib.ExitStack]] = []
            for row in rows:
                self.unused(name, row)
            for row in rows:
                own, held = self.doom(row), all_.enter_context(contextlib.ExitStack())
                undo.callback(self.rename, own, row.name)
                # who opened it before it got its new name is seen now
                if not held.enter_context(self._to_wipe(own)) or not blockdev.is_ours(self.device(own)):
                    raise self.in_use(name, "somebody who opened it right now")
                doomed.append((own, held))
            undo.pop_all()
            yield
            self._remove_each(doomed)

    def _remove_each(self, doomed: Sequence[tuple[str, contextlib.ExitStack]]) -> None:
        """Remove what is doomed; one that can't be removed hinders no other."""
        failed: list[PveError] = []
        for own, held in doomed:
            try:
                self._remove(own, held)
            except PveError as error:
                failed.append(error)
        for other in failed[1:]:
            log.warn(str(other))
        if failed:
            raise failed[0]

    @contextlib.contextmanager
    def _to_wipe(self, doomed: str) -> Iterator[bool]:
        """Hold a volume that is being removed; False: another process is at it. The caller holds the group's lock."""
        path = self.device(doomed)
        if not blockdev.is_device(path):
            self.reach(doomed)
        with blockdev.claimed(path) as alone:
            yield alone

    def _remove(self, doomed: str, held: contextlib.ExitStack) -> None:
        """Overwrite a volume that this process holds, outside of the group's lock, and remove it."""
        try:
            self._wipe(doomed)
        except PveError as error:
            raise PveError(
                f"storage '{self.id}': the removed volume is not overwritten and stays as '{doomed}'; the next command "
                f"that makes or removes a volume tries it again: {error}"
            ) from None
        with self.locked():
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
            try:
                self._finish_removal(found, slow=slow)
            except PveError as error:  # others can be removed, and new ones made, nevertheless
                log.warn(str(error))
        self.remnants = []

    def _finish_removal(self, found: Logical, *, slow: bool) -> None:
        with contextlib.ExitStack() as held:
            with self.locked():
                if found.name not in self.taken() or not held.enter_context(self._to_wipe(found.name)):
                    return  # another process has done it, or is at it
            if not slow and not self._quick(found.name):
                log.warn(
                    f"storage '{self.id}': the removal of '{found.name}' was interrupted; it goes on when the next "
                    "volume is removed"
                )
                return
            log.emit(f"storage '{self.id}': going on with the interrupted removal of '{found.name}'")
            self._remove(found.name, held)
