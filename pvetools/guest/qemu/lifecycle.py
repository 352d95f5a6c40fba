"""Starting and stopping virtual machines. Each function serialises itself with other commands on the same guest."""

from __future__ import annotations

import time
from typing import NamedTuple

from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig
from pvetools.guest.qemu import hypervisor, place
from pvetools.system import lock, log
from pvetools.system.errors import PveError, Refused

SHUTDOWN_TIMEOUT = 60.0
PRESS_EVERY = 5.0  # seconds; a press before the guest has loaded its driver is lost


class StartOptions(NamedTuple):
    """How a guest is to be started; ``paused`` leaves its processors stopped, ``machine`` is another machine type."""

    skip_lock: bool = False
    paused: bool = False
    timeout: float | None = None
    machine: str = ""


AS_CONFIGURED = StartOptions()


def start(vmid: int, how: StartOptions = AS_CONFIGURED) -> None:
    """Start a guest, with its pending changes in force.

    Raises:
        PveError: it runs already, or cannot be started; nothing runs then.
    """
    with lock.guest_lock(vmid):
        current = config.load("qemu", vmid)
        if not how.skip_lock:
            config.check_lock(current)
        _check_stopped(vmid)
        _apply_pending(current)
        _run_domain(current, how)


def _check_stopped(vmid: int) -> None:
    if hypervisor.running_pid(vmid):
        raise PveError(f"VM {vmid} already running")


def _apply_pending(current: GuestConfig) -> None:
    if current.pending:
        from pvetools.guest.common import edit
        from pvetools.guest.qemu.kind import QEMU

        edit.apply_pending(QEMU, current)


def _run_domain(current: GuestConfig, how: StartOptions) -> None:
    from pvetools.guest.qemu import host, prepare

    vmid = current.vmid
    domain = prepare.domain_of(current, machine=how.machine)
    prepare.update_sizes(current)
    for warning in domain.warnings:
        log.warn(warning)
    hook = current.current.get("hookscript", "")
    prepare.run_hook(hook, vmid, "pre-start")
    host.prepare_sockets()
    hypervisor.wait_forgotten(vmid)
    _check_stopped(vmid)
    try:
        hypervisor.create(vmid, domain, paused=domain.paused or how.paused, timeout=how.timeout)
    except KeyboardInterrupt:  # it comes when libvirt has finished
        hypervisor.destroy(vmid)
        raise
    if "cpuunits" in current.current and not hypervisor.has_shares(vmid):
        log.warn("cpuunits has no effect: libvirt runs this guest without the cpu control group")
    prepare.run_hook(hook, vmid, "post-start", required=False)


def stop(vmid: int, *, skip_lock: bool = False, timeout: float | None = None) -> None:
    """Pull the plug. Nothing happens when the guest does not run.

    Raises:
        PveError: QEMU did not end. Locked, NotFound.
    """
    with lock.guest_lock(vmid):
        current = _load(vmid, skip_lock=skip_lock)
        if hypervisor.running_pid(vmid):
            _run_hook(current, "pre-stop")
            hypervisor.destroy(vmid, timeout)
            place.remove_sockets(vmid)
            _run_hook(current, "post-stop")


def _load(vmid: int, *, skip_lock: bool) -> GuestConfig:
    current = config.load("qemu", vmid)
    if not skip_lock:
        config.check_lock(current)
    return current


def _run_hook(current: GuestConfig, phase: str) -> None:
    hook = current.current.get("hookscript", "")
    if hook:
        from pvetools.guest.qemu import prepare

        prepare.run_hook(hook, current.vmid, phase, required=False)


def shutdown(vmid: int, *, timeout: float | None = None, force: bool = False, skip_lock: bool = False) -> None:
    """Ask the guest's system to shut down, and wait for it. Nothing happens when the guest does not run.

    The guest's lock is held while it is asked, not while it takes its time, so that it can be stopped meanwhile.

    Args:
        vmid: the guest.
        timeout: seconds to wait; by default the ``down`` time of its ``startup`` option, or a minute.
        force: pull the plug afterwards.
        skip_lock: ignore a lock in its file.

    Raises:
        PveError: it still runs after the time-out. Refused: it is paused and cannot react.
    """
    with lock.guest_lock(vmid):
        current = _load(vmid, skip_lock=skip_lock)
        pid = hypervisor.running_pid(vmid)
        if not pid:
            return
        paused = hypervisor.is_paused(vmid)
        if paused and not force:
            raise Refused(f"VM {vmid} is paused - cannot shutdown; resume it first, or use: qm stop {vmid}")
        _run_hook(current, "pre-stop")
    if not paused and _ask_until_gone(current, pid, _patience(current, timeout)):
        hypervisor.wait_forgotten(vmid)
    elif force:
        log.warn(f"VM {vmid} still running - terminating now")
    else:
        raise PveError(f"VM {vmid} quit/powerdown failed - got timeout; it still runs, force it with: qm stop {vmid}")
    with lock.guest_lock(vmid):
        if hypervisor.running_pid(vmid) == pid:
            hypervisor.destroy(vmid)
        if not hypervisor.running_pid(vmid):  # nobody has started it again meanwhile
            place.remove_sockets(vmid)
    _run_hook(current, "post-stop")


def _patience(current: GuestConfig, timeout: float | None) -> float:
    if timeout is not None:
        return timeout
    text = current.current.get("startup", "")
    if text:
        from pvetools.schema.formats import Startup

        down = Startup.parse(text).down
        if down:
            return float(down)
    return SHUTDOWN_TIMEOUT


def _ask_until_gone(current: GuestConfig, pid: int, timeout: float) -> bool:
    """Press the power button again and again until QEMU has ended; False when it did not in time."""
    agent = _uses_agent(current)
    deadline = time.monotonic() + timeout
    while True:
        hypervisor.press_power(current.vmid, agent=agent)
        left = deadline - time.monotonic()
        if hypervisor.wait_for_end(pid, min(PRESS_EVERY, max(left, 0.0))):
            return True
        if left <= PRESS_EVERY:
            return False


def _uses_agent(current: GuestConfig) -> bool:
    text = current.current.get("agent", "")
    if not text:
        return False
    from pvetools.options.qemu import Agent

    try:
        return Agent.parse(text).enabled
    except ValueError:
        return False


def end_shutdowns(vmid: int) -> None:
    """End shutdown tasks of a guest that still wait for it."""
    from pvetools.system import task

    for entry in task.active():
        upid = entry.upid
        if upid.type in ("qmshutdown", "qmreboot") and upid.id == str(vmid) and task.is_alive(upid):
            log.emit(f"ending task {upid}")
            task.stop(upid)


def reboot(vmid: int, *, timeout: float | None = None) -> None:
    """Shut a running guest down and start it again, with its pending changes in force.

    Raises:
        PveError: it does not run, or did not shut down in time; then it goes on running.
    """
    require_running(vmid)
    shutdown(vmid, timeout=timeout)
    start(vmid)


def require_running(vmid: int) -> int:
    """Process id of a guest that must run.

    Raises:
        PveError: it does not run. NotFound: no such guest.
    """
    config.load("qemu", vmid)
    pid = hypervisor.running_pid(vmid)
    if not pid:
        raise PveError(f"VM {vmid} not running")
    return pid


def reset(vmid: int, *, skip_lock: bool = False) -> None:
    """Push the reset button.

    Raises:
        PveError: it does not run. Locked, NotFound.
    """
    with lock.guest_lock(vmid):
        _load(vmid, skip_lock=skip_lock)
        require_running(vmid)
        hypervisor.reset(vmid)


def suspend(vmid: int, *, skip_lock: bool = False) -> None:
    """Stop the guest's processors; its memory stays.

    Raises:
        PveError: it does not run. Locked, NotFound.
    """
    with lock.guest_lock(vmid):
        _load(vmid, skip_lock=skip_lock)
        require_running(vmid)
        hypervisor.suspend(vmid)


def resume(vmid: int, *, skip_lock: bool = False) -> None:
    """Let a suspended guest run again. Nothing happens when it is not suspended.

    Raises:
        PveError: it does not run. Locked, NotFound.
    """
    with lock.guest_lock(vmid):
        _load(vmid, skip_lock=skip_lock)
        require_running(vmid)
        if hypervisor.state(vmid) != "running":
            hypervisor.resume(vmid)


def wait(vmid: int, timeout: float | None = None) -> None:
    """Wait until a guest has stopped.

    Raises:
        PveError: it still runs after the time-out. NotFound: no such guest.
    """
    config.load("qemu", vmid)
    pid = hypervisor.running_pid(vmid)
    if pid and not hypervisor.wait_for_end(pid, timeout):
        raise PveError(f"VM {vmid} still running - got timeout after {timeout:g} seconds")
