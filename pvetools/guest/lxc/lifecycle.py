"""Starting and ending containers."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from typing import NamedTuple

from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig
from pvetools.guest.common import edit
from pvetools.guest.lxc import config as lxc_config
from pvetools.guest.lxc import groups, hosting, idmap, mounts, namespace, running, runtime, support
from pvetools.guest.lxc import host as hosts
from pvetools.guest.lxc.config import Container
from pvetools.guest.lxc.host import Host
from pvetools.guest.lxc.mounts import Source
from pvetools.network import bridges, firewall, veth
from pvetools.options.lxc import LxcOptions, PassedDevice
from pvetools.system import files, lock, log, task
from pvetools.system.errors import ParamErrors, PveError, Refused

# A signal that comes before init listens is lost: it is sent again after so many seconds.
ASK_AGAIN = (3.0, 10.0, 20.0, 40.0, 80.0)
DEFAULT_SHUTDOWN = 60


class _Plan(NamedTuple):
    """Everything that a start needs, checked."""

    container: Container
    host: Host
    sources: list[Source]


def start(vmid: int, *, debug: bool = False, skip_lock: bool = False) -> None:
    """Start a stopped container.

    Raises:
        Refused: it runs, is a template, or uses an option that is not supported. Locked, NotFound.
        PveError: a volume, bridge or id range is missing; LXC's own words.
    """
    with lock.guest_lock(vmid):
        current = config.load("lxc", vmid)
        if not skip_lock:
            config.check_lock(current)
        if running.is_running(vmid):
            raise Refused(f"CT {vmid} already running")
        start_locked(current, debug=debug)


def start_locked(current: GuestConfig, *, debug: bool = False) -> None:
    """Start a stopped container whose lock the caller holds.

    Raises:
        As ``start``.
    """
    if config.is_on(current.current, "template"):
        raise Refused(f"CT {current.vmid} is a template; clone it")
    from pvetools.guest.lxc.kind import LXC

    edit.apply_pending(LXC, current)
    plan = _plan(current, debug=debug)
    groups.remove_leftovers(current.vmid)
    try:
        _launch(plan)
        for index in plan.container.cut:
            veth.cut(plan.container.links[index])
    except BaseException:
        with contextlib.suppress(PveError):
            kill(current.vmid)
        raise


def options_of(current: GuestConfig) -> LxcOptions:
    """The checked options of a configuration.

    Raises:
        PveError: a value that this version does not understand, with its key.
    """
    return hosting.options(current.vmid, current.current)


def _plan(current: GuestConfig, *, debug: bool) -> _Plan:
    vmid, options = current.vmid, options_of(current)
    if debug:
        options = options.replaced(debug=True)
    host = hosts.probe()
    support.check(vmid, options, host)
    ids = idmap.of(current.current, current.lxc)
    idmap.check_host(ids)
    mounts.check_detached(vmid)
    mounts.check_reachable(vmid, ids)
    _check_links(vmid, options)
    _tell_gaps(host)
    container = Container(
        vmid,
        options,
        current.lxc,
        ids,
        groups.choose_cpus(vmid, options.cores, host),
        {index: veth.name(vmid, index) for index in options.net},
        frozenset(index for index, nic in options.net.items() if nic.link_down),
        {index: _numbers(device) for index, device in options.dev.items()},
    )
    return _Plan(container, host, mounts.sources(options))


def _check_links(vmid: int, options: LxcOptions) -> None:
    for index, nic in options.net.items():
        if nic.bridge:
            bridges.require(nic.bridge, f"net{index}")
    firewall.check_unfiltered(vmid, [f"net{index}" for index, nic in options.net.items() if nic.firewall])


def _tell_gaps(host: Host) -> None:
    """What this host cannot do for any container."""
    if not host.swap_limit:
        log.warn("this host's kernel does not account for swap: option 'swap' is without effect")
    if hosts.apparmor_in_kernel() and not host.apparmor:
        log.warn("program 'apparmor_parser' is not installed: the container is not confined; apt install apparmor")


def _numbers(device: PassedDevice) -> tuple[str, int, int]:
    kind, number = mounts.device_number(device)
    return kind, os.major(number), os.minor(number)


def _launch(plan: _Plan) -> None:
    """Mount, adapt and start; the monitor keeps the mount namespace in which that happens."""
    ct, host = plan.container, plan.host
    with namespace.private():
        mounts.attach_for_start(ct.vmid, plan.sources)
        ct = ct._replace(busybox=hosting.adapt(ct.vmid, ct.options, ct.ids))
        mounts.seal_all(ct.vmid, plan.sources)
        mounts.make_devices(ct.vmid, ct.options.dev, ct.ids)
        if lxc_config.own_seccomp(ct):
            files.write_atomic(lxc_config.seccomp_file(ct.vmid, host), hosting.seccomp_rules())
        files.write_atomic(lxc_config.folder(ct.vmid, host) / "config", lxc_config.text(ct, host))
        try:
            runtime.start(ct.vmid, _program(ct.options))
        except PveError:
            if ct.options.debug:
                log.emit((files.read_text(runtime.log_file(ct.vmid)) or "").rstrip("\n"))
            raise


def _program(options: LxcOptions) -> list[str]:
    """Words of the program that is started first, when it is not the usual one; quotes keep blanks together.

    Raises:
        ParamErrors: a quote without its counterpart.
    """
    try:
        return shlex.split(options.entrypoint) if "entrypoint" in options.given else []
    except ValueError as error:
        raise ParamErrors({"entrypoint": f"{error}: '{options.entrypoint}'"}) from None


def kill(vmid: int) -> None:
    """End a container at once and wait until nothing of it is left.

    Raises:
        PveError: it does not end.
    """
    groups.thaw(vmid)
    runtime.stop(vmid)
    _wait_gone(vmid)


def _wait_gone(vmid: int) -> None:
    """Wait until the monitor has ended and its volumes are free again."""
    running.wait_gone(vmid)
    with contextlib.suppress(PveError):  # a volume that is not there is no volume to wait for
        mounts.await_idle(mounts.images(options_of(config.load("lxc", vmid))))


def stop(vmid: int, *, skip_lock: bool = False) -> None:
    """End all processes of a container at once; nothing to do when it does not run.

    Raises:
        Locked, NotFound. PveError: it does not end.
    """
    with lock.guest_lock(vmid):
        current = config.load("lxc", vmid)
        if not skip_lock:
            config.check_lock(current)
        _require_running(vmid)
        kill(vmid)


def _require_running(vmid: int) -> None:
    if not running.is_running(vmid):
        raise Refused(f"CT {vmid} not running")


def shutdown(vmid: int, *, timeout: int | None = None, force: bool = False) -> None:
    """Ask a container's init to shut down and wait for it.

    Args:
        vmid: the container.
        timeout: seconds to wait (default 60).
        force: end it by force after the time-out.

    Raises:
        PveError: it still runs. Refused: it does not run. Locked, NotFound.
    """
    with lock.guest_lock(vmid):
        config.check_lock(config.load("lxc", vmid))
        _require_running(vmid)
        halt(vmid, DEFAULT_SHUTDOWN if timeout is None else timeout, force=force)


def halt(vmid: int, timeout: float, *, force: bool = False) -> None:
    """Shut down a running container whose lock the caller holds.

    Raises:
        PveError: it still runs after ``timeout`` seconds and is not to be forced.
    """
    if runtime.state(vmid) == "FROZEN":
        runtime.thaw(vmid)
    begin, asked, pause = time.monotonic(), 0, 0.01
    while running.is_running(vmid):
        passed = time.monotonic() - begin
        if passed >= timeout:
            break
        if asked == 0 or (asked <= len(ASK_AGAIN) and passed >= ASK_AGAIN[asked - 1]):
            runtime.ask_to_halt(vmid)
            asked += 1
        time.sleep(min(pause, timeout))
        pause = min(pause * 1.3, 0.1)
    if not running.is_running(vmid):
        _wait_gone(vmid)
        return
    if not force:
        raise PveError(f"CT {vmid} did not shut down within {timeout:g} seconds")
    log.emit(f"CT {vmid} did not shut down within {timeout:g} seconds, stopping it by force")
    kill(vmid)


def reboot(vmid: int, *, timeout: int | None = None) -> None:
    """Shut a container down and start it again; pending changes come into force.

    Raises:
        PveError: it does not shut down, or not start. Refused, Locked, NotFound.
    """
    with lock.guest_lock(vmid):
        config.check_lock(config.load("lxc", vmid))
        _require_running(vmid)
        halt(vmid, DEFAULT_SHUTDOWN if timeout is None else timeout)
        start_locked(config.load("lxc", vmid))


def suspend(vmid: int) -> None:
    """Freeze all processes of a running container.

    Raises:
        Refused: it does not run. Locked, NotFound. PveError: LXC could not.
    """
    with lock.guest_lock(vmid):
        config.check_lock(config.load("lxc", vmid))
        _require_running(vmid)
        runtime.freeze(vmid)


def resume(vmid: int) -> None:
    """Let a frozen container go on.

    Raises:
        Refused: it does not run. NotFound. PveError: LXC could not.
    """
    with lock.guest_lock(vmid):
        config.load("lxc", vmid)
        _require_running(vmid)
        runtime.thaw(vmid)


def end_shutdowns(vmid: int) -> None:
    """End the shutdown tasks of a container that wait for its end."""
    for entry in task.active():
        if entry.upid.type == "vzshutdown" and entry.upid.id == str(vmid) and not entry.endtime:
            with contextlib.suppress(PveError):  # it has just ended
                task.stop(entry.upid)
