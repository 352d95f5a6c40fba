"""A small raw disk image that boots by BIOS: distribution kernel, busybox, syslinux, a data partition.

Made without loop devices or mounts (mtools, `mke2fs -d`, our own partition table), so that it can be
built anywhere.  Partition 1 (FAT) holds the boot loader, kernel and initramfs; partition 2 (ext4,
label "pvedata") is mounted on /data in the guest.  /data/address, if there, is the guest's address.
Kernel "cloud" boots fastest and drives virtio, IDE and nothing else; "generic" also drives LSI and
SATA controllers and the other emulated network cards.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tests.sandbox import cache, template

MARKER = "pvetools-guest ready"
MIB = 1024 * 1024
DAY = 86400
BOOT_SIZE = 31 * MIB
DATA_SIZE = 32 * MIB
PACKAGES = {
    "debian": {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"},
    "ubuntu": {"cloud": "linux-image-virtual", "generic": "linux-image-generic"},
}
MODULES = {
    "cloud": [
        "virtio_pci",
        "virtio_blk",
        "virtio_scsi",
        "virtio_net",
        "virtio_console",
        "virtio_balloon",
        "virtio_rng",
        "sd_mod",
        "sr_mod",
        "ata_piix",
        "ata_generic",
        "button",
        "evdev",
        "ext4",
        "crc32c_generic",
    ],
}
MODULES["generic"] = [
    *MODULES["cloud"],
    "ahci",
    "sym53c8xx",
    "megaraid_sas",
    "vmw_pvscsi",
    "e1000",
    "e1000e",
    "8139cp",
    "vmxnet3",
    "nvme",
]
# Leaves out what costs time under emulation: self-tests, randomisation, probing of old hardware.
APPEND = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on cryptomgr.notests audit=0 "
    "apparmor=0 security=none no_timer_check tsc=reliable edd=off rcupdate.rcu_expedited=1 i8042.noaux i8042.nokbd"
)
SYSLINUX_CONFIG = f"DEFAULT guest\nPROMPT 0\nLABEL guest\n KERNEL vmlinuz\n INITRD initrd\n APPEND {APPEND}\n"
POWER_OFF = "#!/bin/sh\nsync\numount /data\npoweroff -f\n"
MBR_PLACES = ("/usr/lib/syslinux/mbr/mbr.bin", "/usr/lib/EXTLINUX/mbr.bin")
INIT = Path(__file__).with_name("guest_init.sh")


def build(kernel: str = "cloud") -> Path:
    """The image for a kernel flavour, from the cache or made now (needs the package mirror then).

    An image of this builder that is younger than a day is taken without asking apt for a newer kernel.
    """
    builder = cache.key(Path(__file__).read_bytes(), INIT.read_bytes())
    for found in cache.directory().glob(f"{_kind(kernel)}_{builder}-*_amd64.raw"):
        if time.time() - found.stat().st_mtime < DAY:
            return found
    names = kernel_packages(kernel)

    def make(target: Path, workspace: Path) -> None:
        _build(target, workspace, names, MODULES[kernel])

    made = cache.obtain(f"{_kind(kernel)}_{builder}-{cache.key(versions(names))}_amd64.raw", make)
    os.utime(made)
    return made


def _kind(kernel: str) -> str:
    info = template.release()
    return f"vm-{info['ID']}-{info['VERSION_ID']}-{kernel}"


def newest(kernel: str = "cloud") -> Path:
    """The image as it lies in the cache; raises NotAvailable when it was not made yet.

    For use inside of the sandbox, where no package mirror can be reached.
    """
    found = sorted(cache.directory().glob(f"{_kind(kernel)}_*_amd64.raw"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise cache.NotAvailable(f"no {kernel} image in {cache.directory()}: run python -m tests.sandbox.assets")
    return found[-1]


# ---------------------------------------------------------------- kernel and tools from packages


def kernel_packages(flavour: str) -> list[str]:
    """The real packages behind the distribution's name for its newest kernel."""
    names = [PACKAGES[template.release()["ID"]][flavour]]
    for name in names:
        for line in cache.run(["apt-cache", "depends", name]).splitlines():
            found = re.match(r"\s+Depends: (linux-(?:image|modules|binary)-\S*\d\S*)$", line)
            if found and found[1] not in names:
                names.append(found[1])
    if len(names) == 1:
        raise cache.NotAvailable(f"apt knows no package {names[0]} (run apt-get update)")
    return names[1:]


def versions(names: list[str]) -> str:
    """The candidate versions of packages, as one text."""
    shown = cache.run(["apt-cache", "policy", *names, "busybox-static", "qemu-guest-agent"])
    return "\n".join(line for line in shown.splitlines() if "Candidate" in line or not line.startswith(" "))


def unpack(names: list[str], workspace: Path) -> Path:
    """Download packages and unpack them, without installing, into one tree."""
    tree = workspace / "packages"
    tree.mkdir(exist_ok=True)
    for name in names:
        place = workspace / f"deb-{name}"
        place.mkdir()
        cache.run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name], cwd=place)
        for package in place.glob("*.deb"):
            cache.run(["dpkg-deb", "-x", package, tree])
        shutil.rmtree(place)
    return tree


def _modules(tree: Path, wanted: list[str]) -> tuple[str, dict[str, bytes]]:
    """Kernel version and {path below /lib/modules/VERSION: content} of modules with what they need."""
    home = next(path for path in [*tree.glob("lib/modules/*"), *tree.glob("usr/lib/modules/*")] if path.is_dir())
    files = {path.name.split(".")[0].replace("-", "_"): path for path in home.rglob("*.ko*")}
    chosen: dict[str, bytes] = {}
    queue = list(wanted)
    while queue:
        name = queue.pop()
        path = files.get(name.replace("-", "_"))
        if path is None:
            continue  # built into this kernel, or not there
        key = f"{name}.ko"
        if key not in chosen:
            chosen[key] = _unpacked_module(path)
            queue += [word for word in cache.run(["modinfo", "-F", "depends", path]).strip().split(",") if word]
    return home.name, chosen


def _unpacked_module(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        unpacked = path.with_suffix("")
        cache.run(["zstd", "-q", "-d", "-f", path, "-o", unpacked])
        return unpacked.read_bytes()
    return data


# ---------------------------------------------------------------- initramfs


def cpio(entries: Iterator[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive ("newc") of (path, mode, content); content of a link is its target."""
    out = bytearray()
    number = 0

    def add(path: str, mode: int, data: bytes) -> None:
        nonlocal number
        number += 1
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out.extend(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
        out.extend(b"\0" * (-len(out) % 4) + data)
        out.extend(b"\0" * (-len(out) % 4))

    for path, mode, data in entries:
        add(path, mode, data)
    add("TRAILER!!!", 0, b"")
    return bytes(out)


def _initramfs(tree: Path, workspace: Path, wanted: list[str]) -> bytes:
    version, modules = _modules(tree, wanted)
    home = f"lib/modules/{version}"
    staging = workspace / "staging"
    (staging / home).mkdir(parents=True)
    for name, data in modules.items():
        (staging / home / name).write_bytes(data)
    cache.run(["depmod", "-b", staging, version])
    busybox = shutil.which("busybox")
    if busybox is None:
        raise cache.NotAvailable("busybox is not installed (package busybox-static)")

    def entries() -> Iterator[tuple[str, int, bytes]]:
        for path in (
            "bin",
            "sbin",
            "dev",
            "proc",
            "sys",
            "run",
            "etc",
            "etc/acpi",
            "etc/acpi/PWRF",
            "lib",
            "lib/modules",
            home,
        ):
            yield path, stat.S_IFDIR | 0o755, b""
        yield "bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()
        for applet in cache.run([busybox, "--list"]).split():
            if applet != "busybox":
                yield f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox"
        for name in ("modules.dep", "modules.alias", "modules.symbols", "modules.softdep"):
            yield f"{home}/{name}", stat.S_IFREG | 0o644, (staging / home / name).read_bytes()
        for name, data in modules.items():
            yield f"{home}/{name}", stat.S_IFREG | 0o644, data
        yield "init", stat.S_IFREG | 0o755, INIT.read_bytes()
        for path in ("etc/acpi/PWRF/00000080", "sbin/shutdown"):
            yield path, stat.S_IFREG | 0o755, POWER_OFF.encode()
        yield "sbin/modprobe", stat.S_IFLNK | 0o777, b"../bin/busybox"  # where the kernel looks for it
        yield "etc/passwd", stat.S_IFREG | 0o644, b"root:x:0:0:root:/data:/bin/sh\n"

    return cpio(entries())


# ---------------------------------------------------------------- disk


def _agent(tree: Path, target: Path) -> None:
    """QEMU's guest agent with the libraries of this host, started through its own loader."""
    binary = tree / "usr/sbin/qemu-ga"
    target.mkdir()
    shutil.copy(binary, target / "qemu-ga")
    for line in cache.run(["ldd", binary]).splitlines():
        found = re.search(r"(?:=> )?(/\S+) \(0x", line)
        if found:
            name = "loader" if "ld-linux" in found[1] else Path(found[1]).name
            shutil.copy(found[1], target / name)


def _partition(kind: int, start: int, size: int, *, active: bool = False) -> bytes:
    nowhere = b"\xfe\xff\xff"  # no cylinder address: look at the sector numbers
    return struct.pack("<B3sB3sII", 0x80 if active else 0, nowhere, kind, nowhere, start // 512, size // 512)


def _boot_filesystem(workspace: Path, kernel: Path, initramfs: bytes) -> bytes:
    disk = workspace / "boot.fat"
    with disk.open("wb") as out:
        out.truncate(BOOT_SIZE)
    (workspace / "initrd").write_bytes(initramfs)
    (workspace / "syslinux.cfg").write_text(SYSLINUX_CONFIG)
    sectors = str(BOOT_SIZE // 512)
    cache.run(["mformat", "-i", disk, "-T", sectors, "-h", "64", "-s", "32", "-c", "16", "-H", str(MIB // 512), "::"])
    cache.run(["syslinux", "--install", disk])
    cache.run(["mcopy", "-i", disk, kernel, "::vmlinuz"])
    cache.run(["mcopy", "-i", disk, workspace / "initrd", workspace / "syslinux.cfg", "::"])
    return disk.read_bytes()


def _build(target: Path, workspace: Path, names: list[str], wanted: list[str]) -> None:
    tree = unpack([*names, "qemu-guest-agent"], workspace)
    kernel = next(tree.glob("boot/vmlinuz-*"))
    mbr = next((Path(place) for place in MBR_PLACES if Path(place).exists()), None)
    if mbr is None:
        raise cache.NotAvailable("no boot sector for BIOS (package syslinux-common)")
    data = workspace / "data"
    data.mkdir()
    _agent(tree, data / ".agent")
    filesystem = workspace / "data.ext4"
    cache.run(
        [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-O",
            "^has_journal",
            "-L",
            "pvedata",
            "-d",
            data,
            filesystem,
            f"{DATA_SIZE // 1024}k",
        ]
    )
    table = _partition(0x0E, MIB, BOOT_SIZE, active=True) + _partition(0x83, MIB + BOOT_SIZE, DATA_SIZE) + bytes(32)
    with target.open("wb") as out:
        out.write(mbr.read_bytes()[:440].ljust(446, b"\0") + table + b"\x55\xaa")
        out.seek(MIB)
        out.write(_boot_filesystem(workspace, kernel, _initramfs(tree, workspace, wanted)))
        out.write(filesystem.read_bytes())
