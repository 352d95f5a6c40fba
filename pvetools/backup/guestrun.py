"""The backup of one guest: the frame that virtual machines and containers have in common."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from pvetools.backup import joblog, journal, names, notes, progress, retention
from pvetools.backup.hooks import Hooks
from pvetools.backup.journal import Journal
from pvetools.backup.mail import Result
from pvetools.backup.options import Settings
from pvetools.backup.signals import Shield
from pvetools.backup.target import Target
from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig
from pvetools.system import compress, files, paths
from pvetools.system.errors import Interrupted, Locked, NotFound, PveError

LABEL = {"qemu": "VM", "lxc": "CT"}
TOOL = {"qemu": "qm", "lxc": "pct"}
UNKNOWN = ""


class ModeFailure(PveError):
    """Snapshot mode is not possible for this guest; suspend mode may be."""


class Job(NamedTuple):
    """What all guests of a job share. ``target`` is None for an archive on standard output."""

    settings: Settings
    target: Target | None
    hooks: Hooks
    owner: str
    max_protected: int | None = None


class Engine(Protocol):
    """What differs between the kinds of guests."""

    def name(self, current: GuestConfig) -> str:
        """The guest's own name; may be empty."""

    def is_running(self, vmid: int) -> bool:
        """Whether the guest runs (paused counts)."""

    def needs_local_work(self, folder: Path) -> str:
        """Why the work folder must not lie beside the archives; empty when it may."""

    def prepare(self, run: Run) -> None:
        """Choose volumes and tell about it; raises ModeFailure when the mode is not possible."""

    def archive(self, run: Run) -> None:
        """Bring the guest into the state that the mode asks for, and write the archive."""

    def restore_state(self, run: Run) -> None:
        """Bring the guest back into its former state where that is not done yet; called in every case."""

    def clean_up(self, left: Journal) -> None:
        """Undo in the guest what a killed backup left behind."""


class Run:
    """One guest's backup under way.

    ``mode`` is the effective one; ``work`` an empty folder of its own; ``stopped_at`` the moment since which the
    guest is away (monotonic), None while it is there.
    """

    def __init__(self, job: Job, vmid: int, kind: str, engine: Engine | None) -> None:
        self.job, self.vmid, self.kind, self.engine = job, vmid, kind, engine
        self.hooks = job.hooks
        self.mode = job.settings.options.mode
        self.running = False
        self.stopped_at: float | None = None
        self.filename = self.stem = ""
        self.work = Path()
        self.config = GuestConfig(kind, vmid, Path())
        self.journal = Journal(vmid, kind)
        self.result = Result(vmid, log=paths.vzdump_log_dir() / f"{kind or 'unknown'}-{vmid}.log")

    @property
    def settings(self) -> Settings:
        return self.job.settings

    def hook(self, phase: str) -> None:
        """Call the hook script for a phase of this guest."""
        self.hooks.call(phase, self.mode, self.vmid)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Finish the block even when a signal arrives; the job ends after this guest then."""
        shield = Shield()
        with shield.up():
            yield
        self.result.interrupted |= shield.pending

    # -- for the engines -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def output(self) -> Iterator[int]:
        """A descriptor for the archive's bytes; what is written becomes the archive when the block ends well."""
        options, target = self.settings.options, self.job.target
        argv = compress.compressor(options.compress, zstd=options.zstd, pigz=options.pigz)
        if target is None:
            joblog.info("sending archive to stdout")
            with _written("standard output"), compress.compressing(1, argv) as fd:
                yield fd
            return
        joblog.info(f"creating vzdump archive '{target.folder / self.filename}'")
        self.journal.note_path(target.folder / names.temporary_name(self.filename))
        with _written(f"archive '{target.label(self.filename)}'"), target.writing(self.filename, argv) as fd:
            yield fd
        self.result.size = (target.folder / self.filename).stat().st_size
        self.result.filename = str(target.folder / self.filename)
        joblog.info(f"archive file size: {progress.archive_size(self.result.size)}")

    def went_away(self) -> None:
        """The guest stops to serve from now on."""
        self.stopped_at = time.monotonic()

    def seconds_away(self) -> str:
        """How long it was away: ``5``, or ``<1``."""
        seconds = 0 if self.stopped_at is None else round(time.monotonic() - self.stopped_at)
        return str(seconds) if seconds else "<1"

    def back_online(self) -> None:
        """The guest serves again: tell how long it was away."""
        joblog.info(f"guest is online again after {self.seconds_away()} seconds")
        self.stopped_at = None


@contextlib.contextmanager
def _written(what: str) -> Iterator[None]:
    """Name what could not be written."""
    try:
        yield
    except OSError as error:
        raise PveError(f"cannot write {what}: {error.strerror or error}") from error


def back_up(job: Job, vmid: int, kind: str, engine: Engine | None) -> Result:
    """Back up one guest; a failure is told, cleaned up and returned, so that the job can go on.

    Args:
        job: what all guests share.
        vmid: the guest.
        kind: ``qemu`` or ``lxc``; empty for a guest that does not exist, which fails visibly.
        engine: what its kind supplies.
    """
    run = Run(job, vmid, kind, engine)
    result, began = run.result, time.monotonic()
    log = joblog.GuestLog(run.result.log or Path(os.devnull))
    with log.recording():
        joblog.info(f"Starting Backup of VM {vmid}" + (f" ({kind})" if kind else ""))
        log.console(f"Backup started at {_now()}")
        try:
            _set_up(run)
            _work(run)
            result.state = "ok"
        except KeyboardInterrupt:
            result.state, result.reason, result.interrupted = "err", str(Interrupted()), True
        except (PveError, OSError) as error:
            result.state, result.reason = "err", str(error)
        with run.undisturbed():
            result.seconds = time.monotonic() - began
            _tell_outcome(run, log)
    with run.undisturbed():
        _copy_log(run)
        run.hooks.try_call("log-end", run.mode, vmid)
    return result


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _tell_outcome(run: Run, log: joblog.GuestLog) -> None:
    result = run.result
    if result.state == "ok":
        joblog.info(f"Finished Backup of VM {run.vmid} ({progress.duration(result.seconds)})")
        log.console(f"Backup finished at {_now()}")
        return
    joblog.error(f"Backup of VM {run.vmid} failed - {result.reason}")
    log.console(f"Failed at {_now()}")
    run.hooks.try_call("backup-abort", run.mode, run.vmid)


def _copy_log(run: Run) -> None:
    """The log stays beside the archive, also when there is none."""
    target, log = run.job.target, run.result.log
    if target and run.stem and log:
        try:
            shutil.copyfile(log, target.folder / f"{run.stem}.log")
        except OSError as error:
            joblog.warn(f"can't write '{target.folder / run.stem}.log': {error.strerror}")


# -- before ------------------------------------------------------------------------------------------------------------


def _set_up(run: Run) -> None:
    """Find out about the guest, and choose names; nothing is changed yet."""
    job, target = run.job, run.job.target
    if run.engine is None:
        raise NotFound(f"unable to find VM '{run.vmid}'")
    started = target.free_start(run.kind, run.vmid) if target else time.time()
    extension = compress.extension(run.settings.options.compress)
    run.stem = names.stem(run.kind, run.vmid, started)
    run.filename = names.archive_name(run.kind, run.vmid, started, extension)
    run.config = config.load(run.kind, run.vmid)
    run.result.name = run.engine.name(run.config)
    run.hooks = run.hooks.with_variables(
        VMTYPE=run.kind,
        HOSTNAME=run.result.name,
        TARGET=str(target.folder / run.filename) if target else "-",
        LOGFILE=str(target.folder / f"{run.stem}.log") if target else str(run.result.log),
    )
    _look(run, run.engine)
    if target:
        _check_limits(job, target, run)


def _look(run: Run, engine: Engine) -> None:
    """Find out whether the guest runs, and in which mode it is saved then."""
    run.running = engine.is_running(run.vmid)
    run.mode = run.job.settings.options.mode if run.running else "stop"


def _check_limits(job: Job, target: Target, run: Run) -> None:
    settings = job.settings
    if not settings.remove:
        target.check_room(run.kind, run.vmid, settings.keep)
    if settings.options.protected and target.storage:
        target.check_protected(run.kind, run.vmid, job.max_protected)


def _check_lock(run: Run) -> None:
    """Refuse a locked guest; a killed backup is named as the one who left the lock."""
    try:
        config.check_lock(run.config)
    except Locked as error:
        owner = journal.owner_of(run.vmid) if run.config.lock == "backup" else ""
        if not owner:
            raise
        tool = TOOL[run.kind]
        raise Locked(
            f"{LABEL[run.kind]} is locked (backup) by the task '{owner}', which was killed; "
            f"look at the guest, then run '{tool} unlock {run.vmid}'"
        ) from error


def _make_work_folder(run: Run, engine: Engine) -> Path:
    options, target = run.settings.options, run.job.target
    local = paths.temp_dir() / f"vzdumptmp{os.getpid()}_{run.vmid}"
    if options.tmpdir:
        folder = Path(options.tmpdir) / local.name
    elif target is None:
        folder = local
    elif reason := engine.needs_local_work(target.folder):
        joblog.info(f"{reason} - using {local} for temporary files")
        folder = local
    else:
        folder = target.folder / f"{run.stem}.tmp"
    run.journal.note_path(folder)
    folder.mkdir(mode=0o700, parents=True)
    return folder


# -- the backup itself -------------------------------------------------------------------------------------------------


def _work(run: Run) -> None:
    engine = run.engine
    if engine is None:
        return
    label = LABEL[run.kind]
    joblog.info(f"status = {'running' if run.running else 'stopped'}")
    if run.result.name:
        joblog.info(f"{label} Name: {run.result.name}")
    _check_lock(run)
    run.journal = journal.begin(run.vmid, run.kind, run.job.owner)
    try:
        run.config = config.set_lock(run.kind, run.vmid, "backup")
        if engine.is_running(run.vmid) != run.running:  # it was started or stopped before the lock was there
            _look(run, engine)
            joblog.info(f"status = {'running' if run.running else 'stopped'}")
        run.work = _make_work_folder(run, engine)
        _prepare(run, engine)
        engine.archive(run)
        _complete(run)
    finally:
        with run.undisturbed():
            _give_back(run, engine)


def _prepare(run: Run, engine: Engine) -> None:
    """Choose volumes; a guest that cannot be backed up in snapshot mode is suspended instead."""
    try:
        engine.prepare(run)
    except ModeFailure as error:
        joblog.info(str(error))
        joblog.info("trying 'suspend' mode instead")
        run.mode = "suspend"
        engine.prepare(run)
    options = run.settings.options
    joblog.info(f"backup mode: {run.mode}")
    if options.bwlimit:
        joblog.info(f"bandwidth limit: {options.bwlimit} KiB/s")
    joblog.info(f"ionice priority: {options.ionice}")


def _complete(run: Run) -> None:
    """What is done about a finished archive: notes, protection, pruning, the hook."""
    settings, target = run.settings, run.job.target
    if target and target.storage and settings.options.notes_template:
        joblog.info("adding notes to backup")
        try:
            target.write_notes(run.filename, notes.render(settings.options.notes_template, _note_values(run)))
        except (PveError, OSError, ValueError) as error:
            joblog.warn(f"unable to add notes - {error}")
    if target and target.storage and settings.options.protected:
        joblog.info("marking backup as protected")
        target.protect(run.filename)
    if target and settings.remove:
        joblog.info(f"prune older backups with retention: {retention.describe(settings.keep)}")
        count = target.prune(run.kind, run.vmid, settings.keep)
        joblog.info(f"pruned {count} backup(s) not covered by keep-retention policy")
    run.hook("backup-end")


def _note_values(run: Run) -> dict[str, str]:
    cluster = re.search(r"^\s*cluster_name:\s*(\S+)", files.read_text(paths.etc_pve() / "corosync.conf") or "", re.M)
    return {
        "cluster": cluster[1] if cluster else "standalone node",
        "guestname": run.result.name or f"VM {run.vmid}",
        "node": paths.node(),
        "vmid": str(run.vmid),
    }


# -- afterwards --------------------------------------------------------------------------------------------------------


def _give_back(run: Run, engine: Engine) -> None:
    """Bring the guest back into its state, unlock it, remove everything temporary.

    The lock goes last: as long as it is there, a killed backup is noticed. The record stays for the next job where
    something could not be given back.

    Raises:
        PveError: the guest did not come back; that must not pass for a good backup.
    """
    try:
        engine.restore_state(run)
    except (PveError, OSError) as error:
        raise PveError(f"can't bring the guest back into its former state: {error}") from error
    finally:
        run.journal.remove_paths()
        _attempt("can't remove the lock", lambda: config.clear_lock(run.kind, run.vmid, "backup"))
        if not run.journal.unfinished:
            run.journal.close()


def _attempt(what: str, action: Callable[[], object]) -> None:
    """A step of cleaning up: its failure is told, and the next steps follow."""
    try:
        action()
    except (PveError, OSError) as error:
        joblog.warn(f"{what}: {error}")


def clean_up_after_killed(engines: Callable[[str], Engine], vmid: int | None = None) -> None:
    """Undo what killed backups on this host left behind, as far as it is not the guests' lock.

    Args:
        engines: gives what a kind of guest supplies.
        vmid: only that guest.
    """
    journal.remove_half_written()
    for left in journal.left_behind():
        if vmid not in (None, left.vmid):
            continue
        engine = engines(left.kind)
        if (not left.unfinished or _clean_up(left, engine)) and _lock_of(left.kind, left.vmid) != "backup":
            if left.stopped and not engine.is_running(left.vmid):
                tool = TOOL[left.kind]
                joblog.warn(f"guest {left.vmid} was stopped for the backup; start it with: {tool} start {left.vmid}")
            left.close()


def _clean_up(left: Journal, engine: Engine) -> bool:
    """Undo what one killed backup left behind; False when that did not work and is to be tried again."""
    joblog.info(f"cleaning up after the killed backup of guest {left.vmid} ({left.owner})")
    try:
        engine.clean_up(left)
    except (PveError, OSError) as error:
        joblog.warn(f"can't clean up in the guest: {error}")
        return False
    left.remove_paths()
    left.note(job=False, frozen=False, suspended=False)
    return True


def _lock_of(kind: str, vmid: int) -> str:
    try:
        return config.load(kind, vmid).lock
    except NotFound:
        return UNKNOWN
