"""Restore of a container from a tar archive.

New volumes are made and filled first. A container that is to be replaced keeps its own until the new data are
complete, as long as the storages have room for both.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pvetools.backup import extract, signals
from pvetools.backup.restore_qemu import STDIN, gives_room
from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig, Section
from pvetools.guest.common import edit, rescan
from pvetools.guest.common.kind import Making, used_volumes
from pvetools.guest.lxc import hosting, idmap, kind, mounts, tar
from pvetools.guest.lxc.idmap import IdMap
from pvetools.guest.lxc.kind import LXC
from pvetools.network import mac
from pvetools.options.lxc import LxcNic, LxcOptions, MountPoint, Rootfs
from pvetools.storage import volumes
from pvetools.system import compress, files, lock, log, paths, run, task
from pvetools.system.errors import Exists, ParamErrors, Refused
from pvetools.system.streams import MIB, read_full
from pvetools.system.units import GIB

DEFAULT_STORAGE = "local"
# Never taken from the archive: they are decided anew.
_OWN = re.compile(r"rootfs|(?:mp|unused)[0-9]+|parent|snapshots|unprivileged|template|lock")
_DEFAULTS = {"memory": "512", "swap": "512"}


class Request(NamedTuple):
    """What is to be restored.

    ``options`` are those that the user gave; they replace those of the archive. ``bwlimit`` in KiB a second (None:
    the storages' limits).
    """

    archive: str
    vmid: int
    options: LxcOptions = LxcOptions()
    storage: str = DEFAULT_STORAGE
    force: bool = False
    unique: bool = False
    start: bool = False
    bwlimit: int | None = None
    ignore_errors: bool = False


class Plan(NamedTuple):
    """The container to be: its options without volumes, raw lines, volumes to make, mounts of the host's own."""

    section: Section
    volumes: Mapping[str, Rootfs]
    host_mounts: Mapping[str, str]
    firewall: str


def restore(request: Request) -> None:
    """Restore a container.

    Raises:
        Exists: the id is in use and not to be replaced. Refused, Locked: it cannot be replaced now.
        ParamErrors: options that do not fit together.
        PveError: the archive is foreign or damaged, a storage cannot take the volumes; nothing was changed then.
    """
    replaced = _check_target(request)
    with _opened(request) as (text, rules, stream):
        archived = config.parse("lxc", request.vmid, text)
        for warning in config.verify(archived, strict=False):
            log.warn(warning)
        plan = make_plan(request, archived, rules)
        with stream as fd:
            _Restore(request, plan, replaced).run(fd)
    rescan.rescan(LXC, [request.vmid])
    if request.start:
        from pvetools.guest.lxc import lifecycle

        lifecycle.start(request.vmid)


def _check_target(request: Request) -> bool:
    """Whether an existing container is replaced.

    Raises:
        Exists, Refused, Locked: it must not be.
    """
    vmid = request.vmid
    found = config.kind_of(vmid)
    if found is None:
        config.check_unused(vmid)
        return False
    if found != "lxc":
        raise Exists(f"unable to restore CT {vmid}: guest {vmid} is a virtual machine")
    if not request.force:
        raise Exists(f"unable to restore CT {vmid} - CT {vmid} already exists; replace it with --force")
    current = config.load("lxc", vmid)
    config.check_lock(current)
    _require_stopped(vmid)
    if config.is_on(current.current, "protection"):
        raise Refused(f"unable to restore CT {vmid} - protection mode enabled")
    return True


def _require_stopped(vmid: int) -> None:
    if LXC.is_running(vmid):
        raise Refused(f"unable to restore CT {vmid} - CT is running; stop it with: pct stop {vmid}")


# -- the archive -------------------------------------------------------------------------------------------------------

Stream = contextlib.AbstractContextManager[int]


@contextlib.contextmanager
def _opened(request: Request) -> Iterator[tuple[str, str, Stream]]:
    """Configuration and firewall rules of the archive, and its whole uncompressed stream, not yet begun."""
    if request.archive == STDIN:
        if request.options.rootfs is None:
            raise ParamErrors({"rootfs": "must be given when the archive comes from standard input"})
        with tempfile.TemporaryFile() as start:
            yield *_peek(start.fileno()), _replayed(start.fileno())
        return
    path = extract.locate(request.archive)
    info = extract.checked_info(path, "lxc")
    with compress.reading(path, info.compression, to_end=False) as fd:
        text, rules = tar.read_configs(fd)
    log.emit(f"restoring container archive '{path}'")
    yield text, rules, compress.reading(path, info.compression)


def _peek(start: int) -> tuple[str, str]:
    """The configurations at the beginning of standard input, whose first part is kept in a file."""
    buffer = memoryview(bytearray(MIB))
    got = read_full(0, buffer)
    os.pwrite(start, buffer[:got], 0)
    return tar.read_configs(start)


@contextlib.contextmanager
def _replayed(start: int) -> Iterator[int]:
    """What was read already, and then the rest of standard input."""
    process = run.popen(["cat", f"/dev/fd/{start}", "-"], stdin=0, stdout=run.PIPE, pass_fds=[start])
    with process:
        try:
            yield process.stdout.fileno() if process.stdout else -1
        except BaseException:
            process.kill()
            raise


# -- planning ----------------------------------------------------------------------------------------------------------


def make_plan(request: Request, archived: GuestConfig, firewall: str) -> Plan:
    """Put together what the archive says and what the user says.

    Raises:
        ParamErrors: a root is missing, a size is missing, options that do not fit together.
    """
    given = {key: text for key, text in request.options.texts().items() if LxcOptions.find(key)}
    texts = {key: text for key, text in archived.current.items() if not _OWN.fullmatch(key)}
    texts |= {key: text for key, text in given.items() if not _OWN.fullmatch(key)}
    texts = {"hostname": f"CT{request.vmid}", **_DEFAULTS, **texts}
    unprivileged = given.get("unprivileged") or archived.current.get("unprivileged", "0")
    if unprivileged == "1" or "unprivileged" in {**given, **archived.current}:
        texts["unprivileged"] = unprivileged
    if config.is_on(archived.current, "template"):
        log.warn("the backup is that of a template; it is restored as an ordinary container")
    for key in [key for key in texts if re.fullmatch(r"net[0-9]+", key)]:
        texts[key] = _nic(texts[key], unique=request.unique)
    wanted = _given_volumes(request) if _names_volumes(request.options) else _archived_volumes(request, archived)
    own = {key: value for key, value in wanted.items() if not value.volume.startswith("/")}
    host = {key: value.format() for key, value in wanted.items() if key not in own}
    section = Section(texts, archived.lxc)
    errors = LXC.rules({**section, **{key: value.format() for key, value in wanted.items()}})
    if errors:
        raise ParamErrors(errors)
    return Plan(section, own, host, firewall)


def _nic(text: str, *, unique: bool) -> str:
    nic = LxcNic.parse(text)
    return nic.replaced(hwaddr=mac.generate()).format() if unique or not nic.hwaddr else nic.format()


def _names_volumes(options: LxcOptions) -> bool:
    return options.rootfs is not None or bool(options.mp)


def _given_volumes(request: Request) -> dict[str, Rootfs]:
    """Exactly the volumes that the user asks for; all data go into these."""
    options = request.options
    if options.rootfs is None:
        raise ParamErrors({"rootfs": "must be given when a mount point is given: only the given volumes are made"})
    found: dict[str, Rootfs] = {"rootfs": options.rootfs, **{f"mp{n}": point for n, point in options.mp.items()}}
    return {key: _placed(value, request.storage) for key, value in found.items()}


def _placed(value: Rootfs, storage: str) -> Rootfs:
    """A plain number stands for as many GiB on the chosen storage."""
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", value.volume):
        return value.replaced(volume=f"{storage}:{value.volume}")
    return value


def _archived_volumes(request: Request, archived: GuestConfig) -> dict[str, Rootfs]:
    """All volumes of the archived container, made anew with their sizes on one storage."""
    found: dict[str, Rootfs] = {}
    errors: dict[str, str] = {}
    for key, text in sorted(archived.current.items()):
        if key != "rootfs" and not re.fullmatch(r"mp[0-9]+", key):
            continue
        value = Rootfs.parse(text) if key == "rootfs" else MountPoint.parse(text)
        if value.volume.startswith("/"):
            found[key] = value
        elif value.size is None:
            errors[key] = f"the archive does not say how large '{value.volume}' is; give --rootfs and mount points"
        else:
            found[key] = value.replaced(volume=f"{request.storage}:{_gibibytes(value.size)}", size=None)
    if "rootfs" not in found and not errors:
        errors["rootfs"] = "the archive has no rootfs; give one"
    if errors:
        raise ParamErrors(errors)
    return found


def _gibibytes(size: int) -> str:
    """Bytes as an exact decimal number of GiB."""
    return f"{size / GIB:.30f}".rstrip("0").rstrip(".")


# -- doing it ----------------------------------------------------------------------------------------------------------


class _Restore:
    """One restore under way."""

    def __init__(self, request: Request, plan: Plan, replaced: bool) -> None:
        self.request, self.plan, self.replaced = request, plan, replaced
        self.ids: IdMap = idmap.of(plan.section, plan.section.lxc)
        self.made: dict[str, str] = {}

    def run(self, stream: int) -> None:
        """Make and fill the volumes, then write the configuration."""
        vmid = self.request.vmid
        idmap.check_host(self.ids)
        mounts.check_reachable(vmid, self.ids)
        with signals.undo_stack() as undo:
            if self.replaced:
                with task.uninterrupted():
                    config.set_lock("lxc", vmid, "create")
                    undo.callback(config.clear_lock, "lxc", vmid, "create")
                _require_stopped(vmid)  # it may have been starting when it was looked at first
                if self._needs_room():
                    log.warn("no room for the old and the new volumes at the same time: the old ones are removed first")
                    self._free_old()
            else:
                with lock.guest_lock(vmid), task.uninterrupted():
                    config.create("lxc", vmid, {**self.plan.section, "lock": "create"}, self.plan.section.lxc)
                    undo.callback(self._forget_new)
                    undo.callback(hosting.forget, vmid)
            self._make_volumes(undo)
            self._fill(stream)
            with signals.Shield().up():  # from here on there is no way back, only forward
                old = self._take_over()
                undo.pop_all()
                edit.free_replaced(LXC, vmid, old)

    def _forget_new(self) -> None:
        vmid = self.request.vmid
        with lock.guest_lock(vmid):
            config.remove("lxc", vmid)

    # -- volumes ---------------------------------------------------------------------------------------------------

    def _needs_room(self) -> bool:
        """Whether the new volumes, even when full, fit only where the old ones were."""
        needed: dict[str, float] = {}
        for value in self.plan.volumes.values():
            storage, _, size = value.volume.partition(":")
            if re.fullmatch(r"[0-9.]+", size):
                needed[storage] = needed.get(storage, 0) + float(size) * GIB
        return gives_room(needed, _to_free(self.request.vmid, config.load("lxc", self.request.vmid)))

    def _free_old(self) -> None:
        vmid = self.request.vmid
        with lock.guest_lock(vmid):
            current = config.load("lxc", vmid)
            old = _to_free(vmid, current)
            for section in (current.current, current.pending):
                for key in [key for key, volid in LXC.volumes(section).items() if volid in old]:
                    del section[key]
            current.snapshots.clear()
            current.current.pop("parent", None)
            config.save(current)
        edit.free_replaced(LXC, vmid, old)

    def _make_volumes(self, undo: contextlib.ExitStack) -> None:
        vmid = self.request.vmid
        for key, value in sorted(self.plan.volumes.items()):
            text = LXC.make_volume(Making(vmid, key, value, self.plan.section, undo))
            self.made[key] = text
            log.emit(f"new volume ID is '{kind.volumes_of({key: text})[key]}'")
            if not self.replaced:
                with lock.guest_lock(vmid):
                    draft = config.load("lxc", vmid)
                    draft.current[key] = text
                    config.save(draft)

    def _fill(self, stream: int) -> None:
        """Unpack into the new volumes as the container's root."""
        vmid, request = self.request.vmid, self.request
        options = hosting.options(vmid, {**self.plan.section, **self.made})
        used = {text.partition(":")[0] for text in kind.volumes_of(self.made).values()}
        limit = volumes.bwlimit("restore", used, request.bwlimit) * 1024
        with mounts.mounted(vmid, options, self.ids, writable=True) as root:
            argv = tar.extract_command(root, self.ids)
            # The two files are about the backup, not part of the container.
            argv += [f"--exclude={tar.CONFIG}", f"--exclude={tar.FIREWALL}"]
            log.emit("extracting archive")
            tar.extract(
                stream, argv, devices=not self.ids.entries, limit=limit, ignore_errors=request.ignore_errors,
                log=log.emit,
            )  # fmt: skip

    # -- configuration ---------------------------------------------------------------------------------------------

    def _take_over(self) -> set[str]:
        """Write the configuration; gives the volumes of the replaced container that are to be freed."""
        vmid, plan = self.request.vmid, self.plan
        fresh = Section({**plan.section, **self.made, **plan.host_mounts}, plan.section.lxc)
        with lock.guest_lock(vmid):
            current = config.load("lxc", vmid)
            old = _to_free(vmid, current) - {*LXC.volumes(fresh).values()} if self.replaced else set()
            for key, volid in sorted(LXC.volumes(current.current).items()):
                if key.startswith("unused"):
                    edit.add_unused(fresh, volid)
            current.current, current.pending = fresh, Section()
            current.snapshots, current.special, current.unknown, current.problems = {}, {}, {}, []
            if plan.firewall:
                paths.firewall_config(vmid).parent.mkdir(parents=True, exist_ok=True)
                files.write_atomic(paths.firewall_config(vmid), plan.firewall)
            config.save(current)  # last: with it there is no way back
        return old


def _to_free(vmid: int, current: GuestConfig) -> set[str]:
    """Volumes of the container that is replaced, without those that it did not use."""
    named = used_volumes(LXC, (current.current, current.pending, *current.snapshots.values()))
    unused = {volid for key, volid in LXC.volumes(current.current).items() if key.startswith("unused")}
    return {volid for volid in named - unused if edit.owns(vmid, volid)}
