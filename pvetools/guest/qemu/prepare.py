"""What comes before a start: options from the file, the domain's definition, the hook script."""

from __future__ import annotations

from collections.abc import Mapping

from pvetools.config import guest as config
from pvetools.config.guest import GuestConfig
from pvetools.guest.qemu import buses, domain, host, texts
from pvetools.guest.qemu.domain import Domain
from pvetools.options.qemu import QemuOptions
from pvetools.schema.core import NestedErrors
from pvetools.system import log, run
from pvetools.system.errors import ConfigError, PveError, Refused, RunError


def options_of(path: object, section: Mapping[str, str]) -> QemuOptions:
    """The typed options of a section of a guest's file.

    Raises:
        ConfigError: values that cannot be understood.
    """
    for key in section:
        if not QemuOptions.find(key):
            log.warn(f"{path}: unknown option '{key}' is ignored")
    try:
        return QemuOptions.read(section)
    except NestedErrors as error:
        reasons = "; ".join(f"{key}: {reason}" for key, reason in error.errors.items())
        raise ConfigError(path, 0, reasons) from None


def domain_of(current: GuestConfig, *, machine: str = "", snapshot: str = "", strict: bool = True) -> Domain:
    """Define the domain of a guest as its file says.

    Args:
        current: the guest's file.
        machine: another machine type.
        snapshot: take the options of a snapshot.
        strict: whether volumes and bridges must exist.

    Raises:
        PveError: an option that is not supported, or something that is not there.
    """
    section = dict(current.snapshots[snapshot] if snapshot else current.current)
    if machine:
        section["machine"] = machine
    options = options_of(current.path, section)
    return domain.define(options, host.gather(current.vmid, options, strict=strict))


def update_sizes(current: GuestConfig) -> None:
    """Correct the sizes of disks in the guest's file, which others may have grown; the caller holds its lock."""
    from pvetools.storage import volumes

    for key, volid in texts.volumes(current.current).items():
        if buses.split(key):
            try:
                size = volumes.info(volid).size
            except PveError:
                continue  # the check of the drives says it better
            current.current[key] = texts.with_size(current.current[key], size)
    config.save(current)


def run_hook(hook: str, vmid: int, phase: str, *, required: bool = True) -> None:
    """Run the guest's hook script with its id and the phase; its output goes to the task's log.

    Raises:
        PveError: the script is not there or failed, in a phase where that stops the start (``required``).
    """
    if not hook:
        return
    try:
        done = run.run([_script(hook), str(vmid), phase], timeout=None)
        for line in done.stdout.splitlines():
            log.emit(line)
    except (RunError, Refused) as error:
        if required:
            raise PveError(f"hookscript error for {vmid} on {phase}: {error}") from None
        log.warn(f"hookscript error for {vmid} on {phase}: {error}")


def _script(hook: str) -> str:
    """Path of a snippet that can be run.

    Raises:
        Refused: it is none.
    """
    import os

    from pvetools.storage import volumes

    path = volumes.path(hook)
    if volumes.parse(hook).content != "snippets" or not path.is_file() or not os.access(path, os.X_OK):
        raise Refused(f"'{hook}' is not an executable snippet")
    return str(path)
