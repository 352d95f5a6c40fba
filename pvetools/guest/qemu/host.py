"""Facts of this host that a guest depends on: volumes and bridges, which must be there before anything starts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pvetools.guest.qemu import buses, place
from pvetools.guest.qemu.disks import is_cdrom
from pvetools.guest.qemu.place import Place, Source
from pvetools.network import bridges, firewall, taps
from pvetools.options.drive import Drive
from pvetools.options.qemu import QemuOptions
from pvetools.system import paths
from pvetools.system.errors import NotFound, ParamErrors, PveError, Refused

_THREADS_SINCE = (8, 2)  # version of QEMU; 7.2.22 is known to abort
KVM_DEVICE = Path("/dev/kvm")
_FORMATS = {".qcow2": "qcow2", ".vmdk": "vmdk", ".qcow": "qcow", ".qed": "qed"}


def gather(vmid: int, options: QemuOptions, *, strict: bool = True) -> Place:
    """Look up everything that the guest's file names.

    Args:
        vmid: the guest.
        options: its options.
        strict: whether volumes and bridges must exist; else nothing is mounted, mapped or logged in to for them.

    Raises:
        Refused, NotFound: what is missing, all of it.
    """
    errors: list[str] = []
    sources: dict[str, Source] = {}
    for key, drive in _drives(options).items():
        if drive.file not in ("none", "cdrom"):
            try:
                sources[drive.file] = source(key, drive, strict=strict)
            except PveError as error:
                errors.append(str(error) if str(error).startswith(key) else f"{key}: {error}")
    mtus: dict[str, int] = {}
    for index, nic in sorted(options.net.items()):
        if nic.bridge:
            try:
                mtus[nic.bridge] = bridges.require(nic.bridge, f"net{index}")
            except Refused as error:
                if strict:
                    errors.append(str(error))
    if errors:
        raise NotFound("\n".join(errors)) if strict else Refused("\n".join(errors))
    firewall.check_unfiltered(vmid, [f"net{index}" for index, nic in sorted(options.net.items()) if nic.firewall])
    return Place(
        vmid, place.domain_name(vmid), place.domain_uuid(vmid), str(place.socket_dir()), str(paths.root()), sources,
        mtus, taps.tap_prefix(vmid), has_kvm() or not strict, Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        not _wants_thread(options) or bears_threads(),
    )  # fmt: skip


def _wants_thread(options: QemuOptions) -> bool:
    return any(getattr(drive, "iothread", None) for drive in _drives(options).values())


def bears_threads() -> bool:
    """Whether this host's QEMU survives the backup of a disk with a thread of its own.

    Older ones abort, and the guest with them, when the reader of such a backup hangs up.
    """
    from pvetools.guest.qemu import hypervisor

    return tuple(int(part) for part in hypervisor.version().split(".")[:2]) >= _THREADS_SINCE


def _drives(options: QemuOptions) -> dict[str, Drive]:
    found: dict[str, Drive] = {}
    for key, value in options.given.items():
        if buses.split(key) or key == "cdrom":
            found[key] = value
    return found


def has_kvm() -> bool:
    """Whether this process may use hardware virtualization."""
    return os.access(KVM_DEVICE, os.R_OK | os.W_OK)


def source(key: str, drive: Drive, *, strict: bool = True) -> Source:
    """Where a drive's data are.

    Raises:
        PveError: no such volume, a storage that does not hold such content, or no such file.
    """
    if drive.file.startswith("/"):
        return _host_path(key, drive, strict=strict)
    from pvetools.storage import volumes

    content = volumes.parse(drive.file).content
    expected = ("iso", "images") if is_cdrom(drive) else ("images",)
    if content not in expected:
        hint = "; add media=cdrom" if content == "iso" else ""
        wanted = " or ".join(expected)
        raise ParamErrors({key: f"volume '{drive.file}' is of content type '{content}', expected {wanted}{hint}"})
    if strict:
        volumes.usable(drive.file.partition(":")[0], content)
    found = volumes.source(drive.file) if strict else volumes.described(drive.file)
    info = volumes.located(drive.file)[0].info
    return Source(str(found.path), found.format, found.kind == "block", found.network, info.cache, info.io_uring)


def _host_path(key: str, drive: Drive, *, strict: bool) -> Source:
    """A file or device of the host, named by its path."""
    path = Path(drive.file)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not strict:
            return Source(drive.file, _FORMATS.get(path.suffix, "raw"), block=drive.file.startswith("/dev/"))
        raise NotFound(f"{key}: can't use '{drive.file}': {error.strerror}") from None
    if stat.S_ISBLK(mode):
        return Source(drive.file, "raw", block=True)
    if not stat.S_ISREG(mode):
        raise Refused(f"{key}: '{drive.file}' is neither a file nor a block device")
    return Source(drive.file, _FORMATS.get(path.suffix, "raw"))


def prepare_sockets() -> None:
    """Make the folder of the sockets, open for the user as which libvirt runs QEMU."""
    from pvetools.guest.qemu import hypervisor

    folder = place.socket_dir()
    folder.mkdir(parents=True, exist_ok=True)
    user, group = hypervisor.user_ids()
    now = folder.stat()
    if (now.st_uid, now.st_gid) != (user, group):
        os.chown(folder, user, group)
    if stat.S_IMODE(now.st_mode) != 0o750:
        folder.chmod(0o750)
