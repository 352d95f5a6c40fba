"""A backup job: chosen guests one after the other, with lock, hooks, report and exit state."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pvetools.backup import guestrun, hooks, joblog, mail, options, select, signals
from pvetools.backup.guestrun import Engine, Job
from pvetools.backup.mail import Report, Result
from pvetools.backup.options import Settings
from pvetools.backup.target import Target
from pvetools.config import guest as config
from pvetools.options.backup import VzdumpOptions
from pvetools.storage import definition, registry, volumes
from pvetools.storage.definition import Definition
from pvetools.system import files, lock, log, paths, run, task
from pvetools.system.errors import Interrupted, LockTimeout, PveError, Refused

STOP_TIMEOUT = 15.0  # seconds in which a job that was asked to stop has to end


class Plan(NamedTuple):
    """A checked job: settings, where archives go, the guests (id to kind), those of other nodes."""

    settings: Settings
    target: Target | None
    max_protected: int | None
    guests: dict[int, str]
    external: list[int]
    command: str
    script: str


def vzdump(given: VzdumpOptions) -> str:
    """Back up guests as a task of this process.

    Returns:
        The UPID, or ``OK`` when there was nothing to do.

    Raises:
        ParamErrors, Refused: the options make no sense; nothing was done.
        PveError: ``job errors`` when any guest failed, or why the job as a whole failed.
    """
    with log.console(joblog.Console(quiet=given.quiet).take):
        select.check(given)
        if given.node not in (None, paths.node()):
            return "OK"
        plan = _plan(given)
        if given.stop:
            stop_running()
        if not plan.guests:
            return "OK"
        ident = str(next(iter(plan.guests))) if len(plan.guests) == 1 else ""
        return task.run("vzdump", ident, _JobRun(plan).run)


def command_line(given: VzdumpOptions) -> str:
    """The job's options as a command, for its log."""
    texts = given.texts()
    vmids = [str(vmid) for vmid in given.vmid or ()]
    words = ["vzdump", *vmids]
    for name in sorted(texts.keys() - {"vmid"}):
        values = given.given[name] if isinstance(given.given[name], list) and name == "exclude-path" else [texts[name]]
        words += [word for value in values for word in (f"--{name}", str(value))]
    return shlex.join(words)


# -- planning ----------------------------------------------------------------------------------------------------------


def _plan(given: VzdumpOptions) -> Plan:
    conf = options.load_conf()
    name = options.target_storage(given, conf)
    storage = definition.get(name) if name else None
    settings = options.resolve(given, conf, storage.options.prune_backups if storage else None)
    script = hooks.check_script(settings.options.script)
    guests = config.cluster_guests()
    chosen = select.included(settings.options, {vmid: node for vmid, (node, _) in guests.items()}, lambda pool: ())
    here = sorted([*chosen.get(paths.node(), ()), *chosen.get("", ())])
    external = sorted(vmid for node, vmids in chosen.items() if node not in ("", paths.node()) for vmid in vmids)
    kinds = {vmid: guests[vmid][1] if vmid in guests else "" for vmid in here}
    most = storage.options.max_protected_backups if storage else None
    return Plan(settings, _target(settings, storage), most, kinds, external, command_line(given), script)


def _target(settings: Settings, storage: Definition | None) -> Target | None:
    """Where archives go; whether the storage can be used shows when the job begins."""
    if storage:
        return Target(registry.driver(storage).directory("backup"), storage.id)
    return Target(settings.dumpdir) if settings.dumpdir else None


def engine(kind: str) -> Engine:
    """What a kind of guest supplies."""
    if kind == "qemu":
        from pvetools.backup.qemu_backup import QemuEngine

        return QemuEngine()
    from pvetools.backup.lxc_backup import LxcEngine

    return LxcEngine()


# -- running -----------------------------------------------------------------------------------------------------------


class JobInterrupted(Interrupted):
    """The whole job was interrupted; like every failed job it has status 255, as scripts around vzdump know it."""

    exit_code = 255


class _JobRun:
    """One job under way."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.results = [Result(vmid) for vmid in plan.guests]
        self.hook_lines: list[str] = []
        variables = {"STOREID": plan.settings.storage, "DUMPDIR": str(plan.settings.dumpdir or "")}
        self.hooks = hooks.Hooks(plan.script).with_variables(**variables)

    def run(self) -> None:
        """Do it all.

        Raises:
            PveError: the job failed, or any guest of it. JobInterrupted.
        """
        began = time.monotonic()
        failure: PveError | None = None
        with signals.caught():
            try:
                self._run()
            except KeyboardInterrupt:
                failure = JobInterrupted()
            except (PveError, OSError) as caught:
                failure = PveError(str(caught))
            with signals.Shield().up():
                self._report(str(failure or ""), time.monotonic() - began)
        if failure:
            raise failure
        if any(result.state != "ok" for result in self.results):
            raise PveError("job errors")

    def _run(self) -> None:
        plan = self.plan
        self._hook("job-init")
        if plan.target:
            _activate(plan.target)
            self.hooks = self.hooks.with_variables(DUMPDIR=str(plan.target.folder))
        with global_lock(plan.settings.options.lockwait * 60.0):
            _lower_priority(plan.settings.options.ionice)
            joblog.info(f"starting new backup job: {plan.command}")
            if plan.external:
                joblog.info(f"skip external VMs: {', '.join(map(str, plan.external))}")
            guestrun.clean_up_after_killed(engine)
            try:
                self._hook("job-start")
                self._guests()
                self._hook("job-end")
            except BaseException:
                with signals.Shield().up():
                    self._try_hook("job-abort")
                raise

    def _guests(self) -> None:
        plan = self.plan
        job = Job(plan.settings, plan.target, self.hooks, _own_upid(), plan.max_protected)
        for number, (vmid, kind) in enumerate(plan.guests.items()):
            result = guestrun.back_up(job, vmid, kind, engine(kind) if kind else None)
            self.results[number] = result
            if result.interrupted:
                raise KeyboardInterrupt

    def _hook(self, phase: str) -> None:
        with log.sink(self.hook_lines.append):
            self.hooks.call(phase)

    def _try_hook(self, phase: str) -> None:
        with log.sink(self.hook_lines.append):
            self.hooks.try_call(phase)

    def _report(self, error: str, seconds: float) -> None:
        """Tell how it went, on the console and by mail."""
        failed = bool(error) or any(result.state != "ok" for result in self.results)
        if error:
            joblog.error(f"Backup job failed - {error}")
        elif failed:
            joblog.info("Backup job finished with errors")
        else:
            joblog.info("Backup job finished successfully")
        wanted = self.plan.settings.options
        if wanted.mailto and (failed or wanted.mailnotification == "always"):
            report = Report(self.results, self.plan.command, "\n".join(self.hook_lines), seconds, error)
            mail.send(report, wanted.mailto, wanted.job_id or "")


def _activate(target: Target) -> None:
    """Make sure that the folder can take archives.

    Raises:
        PveError: the storage is disabled, does not take backups, or cannot be reached.
    """
    if target.storage:
        volumes.content_dir(target.storage, "backup")
    if not target.folder.is_dir():
        raise PveError(f"folder '{target.folder}' for archives does not exist")
    if not os.access(target.folder, os.W_OK):
        raise PveError(f"folder '{target.folder}' for archives is not writable")


def _lower_priority(ionice: int) -> None:
    """Let the job's reads and writes wait for others; inherited by all programs that it starts."""
    words = ["-c3"] if ionice == 8 else ["-c2", f"-n{ionice}"]
    try:
        run.run(["ionice", *words, "-p", str(os.getpid())])
    except PveError as error:
        joblog.warn(f"can't set the priority of disk access: {error}")


def _own_upid() -> str:
    """The task that this process runs, as the list of tasks has it."""
    pid = os.getpid()
    return next((str(entry.upid) for entry in task.active() if entry.upid.pid == pid and not entry.endtime), f"{pid}")


# -- one job at a time -------------------------------------------------------------------------------------------------


def _lock_file() -> Path:
    return paths.root() / "run/vzdump.lock"


def _pid_file() -> Path:
    return paths.root() / "run/vzdump.pid"


@contextlib.contextmanager
def global_lock(timeout: float) -> Iterator[None]:
    """Hold the host's lock for backup jobs, waiting at most ``timeout`` seconds.

    Raises:
        PveError: another job kept it.
    """
    with contextlib.ExitStack() as stack:
        take = partial(lock.locked, _lock_file(), what="backup lock")
        try:
            stack.enter_context(take(0))
        except LockTimeout:
            if timeout <= 0:
                raise PveError(f"can't acquire lock '{_lock_file()}' - another backup job is running") from None
            joblog.info("trying to get global lock - waiting...")
            try:
                stack.enter_context(take(timeout))
            except LockTimeout:
                raise PveError(f"can't acquire lock '{_lock_file()}' - got timeout") from None
            joblog.info("got global lock")
        files.write_atomic(_pid_file(), _own_upid() + "\n", 0o644)
        stack.callback(files.remove, _pid_file())
        yield


def stop_running() -> None:
    """Stop the job that runs on this host, and wait for its end.

    Raises:
        PveError: it does not end in time.
    """
    text = (files.read_text(_pid_file()) or "").strip()
    try:
        upid = task.parse_upid(text)
    except PveError:
        return
    if not task.is_alive(upid):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(upid.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while task.is_alive(upid):
        if time.monotonic() > deadline:
            raise Refused(f"backup process {upid.pid} did not end within {STOP_TIMEOUT:.0f} seconds")
        time.sleep(0.05)
