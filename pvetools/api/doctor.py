"""What this host has and lacks for running guests, with the command that mends each lack."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from pvetools.system import paths, run
from pvetools.system.errors import PveError

OK, WARNING, ERROR = "ok", "warning", "error"
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_API = 12
# program -> Debian package, what it is for; the first ones are necessary
NECESSARY = {
    "qemu-system-x86_64": ("qemu-system-x86", "virtual machines"),
    "qemu-img": ("qemu-utils", "disk images"),
    "lxc-start": ("lxc", "containers"),
    "mkfs.ext4": ("e2fsprogs", "containers' disks"),
    "losetup": ("mount", "containers' disks"),
    "ip": ("iproute2", "network"),
    "tar": ("tar", "templates and backups of containers"),
    "zstd": ("zstd", "backups"),
    "gzip": ("gzip", "backups"),
}
OPTIONAL = {
    "lzop": ("lzop", "backups with --compress lzo"),
    "pigz": ("pigz", "backups with option pigz"),
    "rsync": ("rsync", "backups in suspend mode"),
    "xz": ("xz-utils", "templates packed with xz"),
    "bzip2": ("bzip2", "templates packed with bzip2"),
    "virsh": ("libvirt-clients", "looking at the domains behind the machines"),
}
BINDINGS = {
    "libvirt": ("python3-libvirt", ERROR, "virtual machines"),
    "lxc": ("python3-lxc", ERROR, "containers"),
    "nbd": ("python3-libnbd", ERROR, "backups of virtual machines"),
}


class Finding(NamedTuple):
    """Result of one check; ``mend`` is a command, where there is one."""

    check: str
    status: str
    detail: str
    mend: str = ""


def examine() -> list[Finding]:
    """Run all checks, in the order in which lacks should be mended."""
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        _root, _proxmox, _name, _tree, _programs, _bindings, _kvm, _libvirt, _cgroups, _id_ranges, _bridges, _boot,
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def _root() -> Iterable[Finding]:
    if os.geteuid() == 0:
        yield Finding("root", OK, "running as root")
    else:
        yield Finding("root", ERROR, "not running as root; the checks below may be wrong", "sudo pvenode doctor")


def _proxmox() -> Iterable[Finding]:
    if paths.is_real_proxmox():
        yield Finding("proxmox", ERROR, "this host runs Proxmox VE itself; pvetools changes nothing here")
    else:
        yield Finding("proxmox", OK, "no Proxmox VE on this host")


def _name() -> Iterable[Finding]:
    name = paths.node()
    if re.fullmatch(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?", name) and name != "localhost":
        yield Finding("node name", OK, name)
    else:
        yield Finding("node name", ERROR, f"'{name}' is no usable name", "hostnamectl set-hostname pve1")
        return
    folder = paths.etc_pve() / "nodes"
    others = sorted(entry.name for entry in folder.iterdir() if entry.name != name) if folder.is_dir() else []
    if others and not paths.node_dir().exists():
        yield Finding(
            "node name",
            WARNING,
            f"the guests below {folder} belong to {', '.join(others)}: was this host renamed?",
            f"mv {folder}/{others[0]} {folder}/{name}",
        )


def _tree() -> Iterable[Finding]:
    folder = paths.etc_pve()
    if not folder.exists():
        yield Finding("configuration", OK, f"{folder} is made by the first command that needs it")
    elif os.access(folder, os.W_OK):
        yield Finding("configuration", OK, str(folder))
    else:
        yield Finding("configuration", ERROR, f"{folder} cannot be written", f"mount -o remount,rw {folder}")


def _programs() -> Iterable[Finding]:
    for tools, status in ((NECESSARY, ERROR), (OPTIONAL, WARNING)):
        missing = [tool for tool in tools if run.find(tool) is None]
        for tool in missing:
            package, purpose = tools[tool]
            yield Finding(tool, status, f"not installed; needed for {purpose}", f"apt install {package}")
    if not any(run.find(tool) is None for tool in NECESSARY):
        yield Finding("programs", OK, f"{len(NECESSARY)} necessary ones are installed")


def _bindings() -> Iterable[Finding]:
    for module, (package, status, purpose) in BINDINGS.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(f"python {module}", status, f"not installed; needed for {purpose}", f"apt install {package}")
        else:
            yield Finding(f"python {module}", OK, f"there for {purpose}")


def _kvm() -> Iterable[Finding]:
    modules = "modprobe kvm_amd || modprobe kvm_intel"
    device = Path("/dev/kvm")
    slow = "guests need the option kvm: 0 and are slow"
    if not device.exists():
        flags = set(re.findall(r"\b(?:vmx|svm)\b", Path("/proc/cpuinfo").read_text()))
        why = (
            "the kernel module is not loaded" if flags else "the processor offers no virtualization (see the firmware)"
        )
        yield Finding("kvm", WARNING, f"no {device}: {why}; {slow}", modules if flags else "")
        return
    try:
        api = _try_kvm(device)
    except OSError as error:
        yield Finding("kvm", WARNING, f"{device} is not usable: {error.strerror}; {slow}", modules)
        return
    if api == _KVM_API:
        yield Finding("kvm", OK, f"{device} makes virtual machines")
    else:
        yield Finding("kvm", WARNING, f"{device} speaks version {api}, not {_KVM_API}; {slow}")


def _try_kvm(device: Path) -> int:
    """Version of the kernel's interface, after it made an empty virtual machine."""
    import fcntl

    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.close(fcntl.ioctl(fd, _KVM_CREATE_VM, 0))
        return fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
    finally:
        os.close(fd)


def _libvirt() -> Iterable[Finding]:
    from pvetools.guest.qemu import hypervisor

    try:
        number = int(hypervisor.connect().getLibVersion())
    except (PveError, ImportError) as error:
        said = str(error).split("\n")[0]
        yield Finding("libvirt", ERROR, said, "apt install libvirt-daemon-system && systemctl enable --now libvirtd")
    else:
        version = f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
        yield Finding("libvirt", OK, f"version {version} answers at {hypervisor.URI}")


def _cgroups() -> Iterable[Finding]:
    from pvetools.guest.lxc import host

    version, controllers = host.cgroup_version(), host.probe().controllers
    missing = sorted({"memory", "cpu", "cpuset", "pids"} - controllers)
    if not controllers:
        yield Finding("cgroups", ERROR, "not mounted; containers cannot start", "mount -t cgroup2 none /sys/fs/cgroup")
    elif missing:
        yield Finding(
            "cgroups", WARNING, f"version {version}, without {', '.join(missing)}: such limits have no effect"
        )
    else:
        yield Finding("cgroups", OK, f"version {version} with {', '.join(sorted({'memory', 'cpu', 'pids'}))}")


def _id_ranges() -> Iterable[Finding]:
    from pvetools.guest.lxc import idmap

    try:
        idmap.check_host(idmap.of({"unprivileged": "1"}, ()))
    except PveError as error:
        yield Finding(
            "id ranges",
            ERROR,
            f"unprivileged containers cannot start: {error}",
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 root",
        )
    else:
        yield Finding("id ranges", OK, "root may use the ids of unprivileged containers")


def _bridges() -> Iterable[Finding]:
    found = sorted(path.parent.name for path in Path("/sys/class/net").glob("*/bridge"))
    if found:
        yield Finding("bridges", OK, ", ".join(found))
    else:
        yield Finding(
            "bridges",
            WARNING,
            "none; guests have no network until there is one, made for good in /etc/network/interfaces or netplan",
            "ip link add vmbr0 type bridge && ip link set vmbr0 up",
        )


def _boot() -> Iterable[Finding]:
    unit = "pvetools-guests.service"
    if not Path("/run/systemd/system").is_dir():
        yield Finding("start at boot", WARNING, "no systemd here: 'onboot' guests do not start by themselves")
    elif run.run(["systemctl", "is-enabled", "--quiet", unit], check=False).code:
        yield Finding("start at boot", WARNING, f"{unit} is not enabled", f"systemctl enable {unit}")
    else:
        yield Finding("start at boot", OK, f"{unit} is enabled")
