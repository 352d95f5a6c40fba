"""Backup of a virtual machine: its disks are read at one moment in time while it goes on running.

A running machine has a backup job (libvirt, pull mode): QEMU exports its disks as they were when the job began, and
saves old blocks into scratch files before the guest overwrites them. A stopped machine's images are read directly.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pvetools.backup import joblog, vma, vmconf
from pvetools.backup.guestrun import Run
from pvetools.backup.journal import Journal
from pvetools.backup.progress import Progress
from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig, Section
from pvetools.guest.qemu import buses, host, hypervisor, lifecycle
from pvetools.guest.qemu.lifecycle import StartOptions
from pvetools.options.backup import Fleecing
from pvetools.options.qemu import Agent, QemuOptions
from pvetools.system import files, nbd, paths
from pvetools.system.errors import PveError
from pvetools.system.streams import Source
from pvetools.system.units import format_size

_LOOK_EVERY = 2.0  # seconds
_GONE_WITHIN = 1.0  # seconds in which a process ends after its sockets were closed
_BUSES = ("ide", "sata", "scsi", "virtio")


class Chosen(NamedTuple):
    """A disk that goes into the archive. ``volid`` may be an absolute path.

    ``place`` and ``options`` are what QEMU's tools open.
    """

    key: str
    volid: str
    storage: str
    format: str
    place: Path | str
    size: int
    options: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        return vmconf.device_name(self.key)

    @property
    def map_line(self) -> vmconf.MapLine:
        form = self.format if self.storage else ""
        return vmconf.MapLine(self.key, self.device, self.storage, form)


def drives(section: Section) -> dict[str, Any]:
    """Disks of a configuration by key, in the order of their names, without CD-ROM drives."""
    found: dict[str, Any] = {}
    for key in sorted(section):
        row = QemuOptions.find(key)
        if row is None or row[0].name not in (*_BUSES, "efidisk0", "tpmstate0"):
            continue
        drive = row[0].kind.parse(section[key])
        if getattr(drive, "media", "disk") != "cdrom" and drive.file not in ("none", "cdrom"):
            found[key] = drive
    return found


def why_not(key: str, drive: Any, section: Section) -> str:
    """Reason to leave a disk out; empty for none."""
    if getattr(drive, "backup", None) is False:
        return "backup=no"
    if key == "efidisk0" and section.get("bios") != "ovmf":
        return "efidisk but no OVMF BIOS"
    return ""


def choose(section: Section) -> tuple[list[Chosen], list[str]]:
    """Disks to archive, and what to tell about all of them.

    Raises:
        NotFound: a disk's volume does not exist.
    """
    chosen: list[Chosen] = []
    said: list[str] = []
    for key, drive in drives(section).items():
        reason = why_not(key, drive, section)
        if reason:
            said.append(f"exclude disk '{key}' '{drive.file}' ({reason})")
            continue
        disk = _resolved(key, drive)
        said.append(f"include disk '{key}' '{drive.file}' {format_size(drive.size or disk.size)}")
        chosen.append(disk)
    return chosen, said


class QemuEngine:
    """What virtual machines supply to the frame of a backup."""

    def __init__(self) -> None:
        self._chosen: list[Chosen] = []
        self._resume = False

    def name(self, current: GuestConfig) -> str:
        """The machine's name; may be empty."""
        return current.current.get("name", "")

    def is_running(self, vmid: int) -> bool:
        """Whether the machine runs (paused counts)."""
        return vmid in hypervisor.running_pids()

    def needs_local_work(self, folder: Path) -> str:
        """Machines need the folder for scratch files only: it may lie anywhere."""
        return ""

    # -- choosing --------------------------------------------------------------------------------------------------

    def prepare(self, run: Run) -> None:
        """Choose the disks and tell which."""
        self._chosen, said = choose(run.config.current)
        for line in said:
            joblog.info(line)

    # -- archiving -------------------------------------------------------------------------------------------------

    def archive(self, run: Run) -> None:
        """Bring the machine into the state that the mode asks for, start the job, let it go on, write the archive."""
        run.hook("backup-start")
        if run.running:
            self._drop_old_job(run.vmid)
        if run.mode == "stop" and run.running:
            self._stop(run)
        elif run.mode == "suspend":
            self._suspend(run)
        elif run.mode == "snapshot":
            for phase in ("pre-stop", "pre-restart", "post-restart"):
                run.hook(phase)
        _tell_left_out(run.config)
        configs = self._configs(run)
        with run.output() as fd:
            if not self._chosen:
                joblog.info("starting diskless backup")
                vma.write(fd, configs, [])
            else:
                with self._running_sources(run) if run.running else self._image_sources() as sources:
                    self._write(run, fd, configs, sources)

    def _drop_old_job(self, vmid: int) -> None:
        if hypervisor.abort_backup(vmid):
            joblog.info("cancelled a backup job that was left over")

    def _stop(self, run: Run) -> None:
        """Shut down, and start with the processors stopped: the disks are those of a machine that is off."""
        joblog.info("stopping virtual guest")
        run.went_away()
        run.hook("pre-stop")
        self._resume = True
        run.journal.note(stopped=True)
        lifecycle.shutdown(run.vmid, timeout=run.settings.options.stopwait * 60, skip_lock=True)
        run.journal.note(stopped=True, suspended=True)
        lifecycle.start(run.vmid, StartOptions(skip_lock=True, paused=True))
        # The start brought pending changes into force; they belong to what is archived now.
        run.config = config.load("qemu", run.vmid)
        self._chosen, _ = choose(run.config.current)

    def _suspend(self, run: Run) -> None:
        joblog.info("suspending guest")
        run.went_away()
        run.hook("pre-stop")
        if hypervisor.is_paused(run.vmid):
            return
        self._resume = True
        run.journal.note(suspended=True)
        lifecycle.suspend(run.vmid, skip_lock=True)

    def _go_on(self, run: Run) -> None:
        """The job holds the disks' state: the machine may run again."""
        if self._resume:
            joblog.info(f"resuming VM again after {run.seconds_away()} seconds")
            lifecycle.resume(run.vmid, skip_lock=True)
            self._resume = False
            run.journal.note(suspended=False, stopped=False)

    def _configs(self, run: Run) -> dict[str, bytes]:
        text = run.config.raw or ""
        stored = vmconf.stored(text, [disk.map_line for disk in self._chosen])
        configs = {vmconf.NAME: stored.encode("utf-8", "surrogateescape")}
        firewall = files.read_text(paths.firewall_config(run.vmid))
        if firewall is not None:
            configs[vmconf.FIREWALL_NAME] = firewall.encode("utf-8", "surrogateescape")
        return configs

    def _write(self, run: Run, fd: int, configs: dict[str, bytes], sources: Sequence[Source]) -> None:
        disks = [vma.Disk(disk.device, source) for disk, source in zip(self._chosen, sources, strict=True)]
        ident = uuid.uuid4()
        joblog.info(f"started backup task '{ident}'")
        progress = Progress({disk.name: disk.source.size for disk in disks})
        told = _watched(run.vmid, progress) if run.running else progress
        limit = run.settings.options.bwlimit * 1024
        try:
            vma.write(fd, configs, disks, limit=limit, requests=run.settings.workers, progress=told, uuid=ident.bytes)
        except PveError as error:
            if run.running and self._has_ended(run.vmid):
                raise PveError(f"VM {run.vmid} stopped while it was backed up") from error
            raise
        progress.finish()

    def _has_ended(self, vmid: int) -> bool:
        """Whether the machine powered off; its exports are gone a moment before its process."""
        deadline = time.monotonic() + _GONE_WITHIN
        while self.is_running(vmid) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.is_running(vmid)

    @contextlib.contextmanager
    def _image_sources(self) -> Iterator[list[Source]]:
        """The images of a machine that is off."""
        with contextlib.ExitStack() as stack:
            opened = [nbd.image(disk.place, disk.format, options=disk.options) for disk in self._chosen]
            yield [stack.enter_context(image) for image in opened]

    @contextlib.contextmanager
    def _running_sources(self, run: Run) -> Iterator[list[Source]]:
        """The exports of a backup job."""
        link = paths.run_dir() / f"vzdump-{run.vmid}.nbd"
        run.journal.note_path(link)
        link.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.callback(_end_job, run, wake=hypervisor.state(run.vmid) != "io-error")
            run.journal.note(job=True)
            with _frozen(run):
                joblog.info("starting backup via QMP command")
                hypervisor.begin_backup(run.vmid, link, self._job_disks(run))
            self._go_on(run)
            exports: list[Source] = []
            for disk in self._chosen:
                export = nbd.Export(link, disk.device, label=f"{disk.key} of VM {run.vmid}")
                stack.callback(export.close)
                exports.append(export)
            yield exports

    def _job_disks(self, run: Run) -> list[hypervisor.BackupDisk]:
        """The disks of the job with their scratch files: in the work folder, or on the fleecing storage."""
        fleecing = run.settings.options.fleecing or Fleecing()
        found: list[hypervisor.BackupDisk] = []
        for number, disk in enumerate(self._chosen):
            scratch = run.work / f"scratch-{disk.key}.qcow2"
            if fleecing.enabled and fleecing.storage:
                scratch = _fleecing_file(fleecing.storage, run.vmid, number)
                run.journal.note_path(scratch)
            found.append(hypervisor.BackupDisk(buses.target(disk.key), disk.device, scratch))
        return found

    # -- afterwards ------------------------------------------------------------------------------------------------

    def restore_state(self, run: Run) -> None:
        """Let the machine run again, where it was stopped or suspended for the backup."""
        if run.stopped_at is None:
            return
        run.hooks.try_call("pre-restart", run.mode, run.vmid)
        if not self.is_running(run.vmid):
            lifecycle.start(run.vmid, StartOptions(skip_lock=True))
        elif self._resume:
            lifecycle.resume(run.vmid, skip_lock=True)
        self._resume = False
        run.journal.note(suspended=False, stopped=False)
        run.hooks.try_call("post-restart", run.mode, run.vmid)
        run.back_online()

    def clean_up(self, left: Journal) -> None:
        """End the job of a killed backup, and let the machine go on."""
        if not self.is_running(left.vmid):
            return
        if left.frozen:
            try:
                hypervisor.thaw(left.vmid)
            except PveError as error:  # the guest may have been restarted meanwhile
                joblog.warn(f"guest-agent 'fs-thaw' failed: {error}")
        if left.suspended:
            lifecycle.resume(left.vmid, skip_lock=True)
        if left.job:
            hypervisor.abort_backup(left.vmid)


def _resolved(key: str, drive: Any) -> Chosen:
    """Where a disk's data are.

    Raises:
        PveError: the volume does not exist.
    """
    from pvetools.storage import volumes

    said = getattr(drive, "format_", None)  # as the machine is started with it
    if drive.file.startswith("/"):
        return Chosen(key, drive.file, "", said or host.source(key, drive).format, Path(drive.file), 0)
    found, size = volumes.source(drive.file), volumes.info(drive.file).size
    place = found.url or found.path
    return Chosen(key, drive.file, drive.file.partition(":")[0], said or found.format, place, size, found.options)


def _tell_left_out(current: GuestConfig) -> None:
    for key in sorted(current.current):
        if key.startswith("unused"):
            joblog.info(f"skip unused drive '{current.current[key]}' (not included into backup)")
    if current.snapshots:
        joblog.info("snapshots found (not included into backup)")
    if current.pending:
        joblog.info("pending configuration changes found (not included into backup)")


def _watched(vmid: int, progress: Progress) -> Callable[[str, int, int], None]:
    """Progress that fails when an error of a disk stops the machine: there is no room for what it overwrites."""
    if hypervisor.state(vmid) == "io-error":  # it was before
        return progress
    seen = time.monotonic()

    def tell(name: str, done: int, zero: int) -> None:
        nonlocal seen
        progress(name, done, zero)
        if time.monotonic() - seen > _LOOK_EVERY:
            seen = time.monotonic()
            if hypervisor.state(vmid) == "io-error":
                raise PveError(
                    f"VM {vmid} was stopped by an error of a disk, perhaps for want of room for its old data"
                )

    return tell


def _end_job(run: Run, *, wake: bool) -> None:
    """End the backup job; a machine that powered off meanwhile has none any more.

    Args:
        run: the backup.
        wake: let a machine go on that an error of a disk has stopped meanwhile.
    """
    with run.undisturbed():  # the journal must say what is true
        try:
            hypervisor.abort_backup(run.vmid)
        except PveError as error:
            joblog.warn(f"can't end the backup job: {error}")
        else:
            run.journal.note(job=False)
            if wake:
                _wake(run)


def _wake(run: Run) -> None:
    """Let a machine go on whose writes failed as there was no room for what they replace; they are tried again."""
    if hypervisor.state(run.vmid) == "io-error":
        joblog.warn(f"VM {run.vmid} was stopped by an error of a disk; resuming it without the backup job")
        try:
            lifecycle.resume(run.vmid, skip_lock=True)
        except PveError as error:
            joblog.warn(f"VM {run.vmid} stays stopped: {error}")


@contextlib.contextmanager
def _frozen(run: Run) -> Iterator[None]:
    """Have the guest agent freeze the file systems while the job begins, where there is one that answers."""
    agent = run.config.current.get("agent")
    options = Agent.parse(agent) if agent else Agent(enabled=False)
    if run.mode != "snapshot" or not options.enabled or not options.freeze_fs or hypervisor.is_paused(run.vmid):
        yield
        return
    if not hypervisor.agent_answers(run.vmid):
        joblog.info("skipping guest-agent 'fs-freeze', agent configured but not running?")
        yield
        return
    joblog.info("issuing guest-agent 'fs-freeze' command")
    run.journal.note(frozen=True)
    try:
        hypervisor.freeze(run.vmid)
    except PveError as error:
        joblog.warn(f"guest-agent 'fs-freeze' failed: {error}")
    try:
        yield
    finally:
        joblog.info("issuing guest-agent 'fs-thaw' command")
        try:
            hypervisor.thaw(run.vmid)
            run.journal.note(frozen=False)
        except PveError as error:
            joblog.warn(f"guest-agent 'fs-thaw' failed: {error}")


def _fleecing_file(storage: str, vmid: int, number: int) -> Path:
    """Scratch file of a disk on the storage that the user chose for it."""
    from pvetools.storage import volumes

    folder = volumes.content_dir(storage, "images") / str(vmid)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"vm-{vmid}-fleece-{number}.qcow2"
