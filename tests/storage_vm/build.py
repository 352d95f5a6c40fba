"""Builds the storage VM: a Debian with the kernel parts, tools and servers of every storage, and ZFS by DKMS.

Four cached layers, so that a changed list of packages does not compile ZFS again: a minimal root, the
kernel with its modules, the disk with all tools, and an initramfs that finds the disk.  Needs root and
a package mirror, neither KVM nor a loop device.  `python -m tests.storage_vm.build` makes what is missing.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox import cache, image, template

RELEASES = (("debian", "12"),)
GUEST = Path(__file__).with_name("guest")
PACKAGES = (
    # the system
    "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps", "psmisc", "less", "netbase", "iputils-ping",
    # what pvetools calls
    "python3", "qemu-utils", "util-linux", "mount", "tar", "rsync", "zstd", "lzop", "gzip", "pigz", "xz-utils", "bzip2",
    "attr", "acl", "openssl", "fdisk", "gdisk", "parted", "smartmontools", "lsof",
    # storages
    "lvm2", "dmsetup", "thin-provisioning-tools", "zfsutils-linux", "nfs-common", "nfs-kernel-server", "rpcbind",
    "cifs-utils", "keyutils", "samba", "smbclient", "open-iscsi", "targetcli-fb", "python3-rtslib-fb", "tgt",
    "libiscsi-bin", "multipath-tools", "sg3-utils", "nvme-cli",
    "xfsprogs", "btrfs-progs", "e2fsprogs", "openssh-server", "openssh-client",
    "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "ceph-common", "ceph-fuse", "qemu-block-extra",
    # guests on them
    "libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "lxc", "uidmap", "python3-libvirt", "python3-lxc",
    "python3-libnbd",
)  # fmt: skip
INITRD_MODULES = ["virtio_pci", "virtio_blk", "virtio_rng", "ext4", "crc32c_generic", "crc32c_intel", "overlay"]
INITRD_INIT = """\
#!/bin/busybox sh
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
modprobe -a virtio_pci virtio_blk virtio_rng crc32c_generic ext4
tries=0
until [ -e /dev/vda ] || [ $tries -ge 100 ]; do tries=$((tries + 1)); usleep 50000; done
mount -t ext4 -o rw,noatime /dev/vda /root || { echo "no root file system on /dev/vda"; exec sh; }
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /sbin/init
"""
DISK_SIZE = "5G"
FSTAB = "/dev/vda / ext4 noatime 0 0\n"
NETWORK = "[Match]\nName=lo\n"
DPKG = "force-unsafe-io\n" + "".join(
    f"path-exclude=/usr/share/{place}/*\n" for place in ("doc", "man", "locale", "info", "lintian", "i18n/locales")
)
FILES = {
    "etc/fstab": FSTAB,
    "etc/hostname": "storagevm\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.0.1 storagevm\n",
    "etc/resolv.conf": "",
    "etc/machine-id": "5f0d1c0a9d3c4e1f8a5a4c1f7f2f6b11\n",
    "etc/systemd/journald.conf.d/volatile.conf": "[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\n",
    "etc/systemd/system.conf.d/quick.conf": "[Manager]\nDefaultTimeoutStopSec=10s\n",
    "etc/modules-load.d/pvetools.conf": "".join(
        f"{name}\n" for name in ("virtio_console", "loop", "dm_mod", "dm_thin_pool", "dm_snapshot", "zfs")
    ),
    "etc/modprobe.d/pvetools.conf": "options zfs zfs_arc_max=134217728\noptions nvme_core multipath=Y\n",
}


@dataclass(frozen=True)
class Assets:
    """What QEMU needs to boot the VM, and a name for its content."""

    vmlinuz: Path
    initrd: Path
    disk: Path
    tag: str


def unsupported() -> str:
    """Why this host can't have the VM, which is built from its own release's packages; empty when it can."""
    info = template.release()
    if (info["ID"], info.get("VERSION_ID")) not in RELEASES:
        return f"the storage VM is built on Debian 12 only (this host is {info['PRETTY_NAME']})"
    return "" if shutil.which("qemu-system-x86_64") else "the storage VM needs qemu-system-x86_64"


def _release() -> str:
    info = template.release()
    return f"{info['ID']}-{info['VERSION_ID']}"


def _texts(*names: str) -> list[bytes]:
    return [(GUEST / name).read_bytes() for name in names]


def _tags() -> tuple[str, str, str]:
    """Names of the contents of the layers base, kernel and disk; each depends on those before."""
    base = cache.key("1", DPKG)
    kernel = cache.key(base, *_texts("kernel.sh"))
    disk = cache.key(
        kernel, DISK_SIZE, *PACKAGES, *FILES, *FILES.values(), *_texts("root.sh", "agent.py", "agent.service")
    )
    return base, kernel, disk


def made() -> Assets:
    """The VM as it lies in the cache; raises NotAvailable when it was not built yet."""
    assets = _assets()
    for path in (assets.vmlinuz, assets.initrd, assets.disk):
        if not path.exists():
            raise cache.NotAvailable(f"{path} is missing: run python -m tests.storage_vm.build")
    return assets


def _assets() -> Assets:
    release, place = _release(), cache.directory()
    _, kernel, disk = _tags()
    initrd = cache.key(kernel, INITRD_INIT, *INITRD_MODULES)
    return Assets(
        place / f"storagevm-vmlinuz-{release}_{kernel}_amd64",
        place / f"storagevm-initrd-{release}_{initrd}_amd64",
        place / f"storagevm-disk-{release}_{disk}_amd64.raw",
        cache.key(kernel, initrd, disk),
    )


def build() -> Assets:
    """All layers, from the cache or made now (about 15 minutes on two cores)."""
    assets = _assets()
    if all(path.exists() for path in (assets.vmlinuz, assets.initrd, assets.disk)):
        return assets
    release = _release()
    base_tag, kernel_tag, _ = _tags()
    base = cache.obtain(f"storagevm-base-{release}_{base_tag}_amd64.tar.zst", _build_base)
    kernel = cache.obtain(
        f"storagevm-kernel-{release}_{kernel_tag}_amd64.tar.zst",
        lambda target, workspace: _build_kernel(target, workspace, base),
    )
    cache.obtain(assets.vmlinuz.name, lambda target, workspace: _take_vmlinuz(target, workspace, kernel))
    cache.obtain(assets.initrd.name, lambda target, workspace: _build_initrd(target, workspace, kernel))
    cache.obtain(assets.disk.name, lambda target, workspace: _build_disk(target, workspace, base, kernel))
    return assets


# ---------------------------------------------------------------- layers


def _isolated(*command: str | Path) -> None:
    """Run with mounts and processes of its own, which go when it ends."""
    cache.run(["unshare", "--fork", "--pid", "--mount", "--kill-child=KILL", *command], timeout=3600)


def _pack(tree: Path, target: Path) -> None:
    cache.run(["tar", "-C", tree, "--numeric-owner", "-I", "zstd -q -3 -T0", "-cf", target, "."])


def _unpack(archive: Path, tree: Path) -> Path:
    tree.mkdir(exist_ok=True)
    cache.run(["tar", "-C", tree, "--numeric-owner", "-I", "zstd -q", "-xpf", archive])
    return tree


def _build_base(target: Path, workspace: Path) -> None:
    tree = workspace / "root"
    codename = template.release()["VERSION_CODENAME"]
    # ZFS lies in contrib
    _isolated("debootstrap", "--variant=minbase", "--components=main,contrib", codename, tree, template.mirror())
    (tree / "etc/dpkg/dpkg.cfg.d/pvetools").write_text(DPKG)
    shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)
    _pack(tree, target)


def _chroot(tree: Path, script: str, *arguments: str) -> None:
    """Run one of the scripts in a root that reaches the mirror as this host does."""
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # no service starts while it is built
    policy.chmod(0o755)
    (tree / "build.sh").write_bytes((GUEST / script).read_bytes())
    try:
        _isolated("chroot", tree, "/bin/sh", "/build.sh", *arguments)
    finally:
        (tree / "build.sh").unlink()
        policy.unlink()


def _build_kernel(target: Path, workspace: Path, base: Path) -> None:
    tree = _unpack(base, workspace / "root")
    _chroot(tree, "kernel.sh")
    _pack(tree / "kernel", target)


def _take_vmlinuz(target: Path, workspace: Path, kernel: Path) -> None:
    cache.run(["tar", "-C", workspace, "-I", "zstd -q", "-xf", kernel, "./vmlinuz"])
    (workspace / "vmlinuz").rename(target)


def _build_disk(target: Path, workspace: Path, base: Path, kernel: Path) -> None:
    tree = _unpack(base, workspace / "root")
    unpacked = _unpack(kernel, workspace / "kernel")
    cache.run(["cp", "-a", f"{unpacked}/lib/modules", tree / "usr/lib/"])
    for name, place in (
        ("agent.py", "usr/local/lib/pvetools-agent.py"),
        ("agent.service", "etc/systemd/system/pvetools-agent.service"),
    ):
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(GUEST / name, tree / place)
    _chroot(tree, "root.sh", *PACKAGES)
    for name, text in FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    cache.run(
        ["mke2fs", "-q", "-t", "ext4", "-L", "storagevm", "-E", "lazy_itable_init=1", "-d", tree, target, DISK_SIZE]
    )


def _build_initrd(target: Path, workspace: Path, kernel: Path) -> None:
    tree = _unpack(kernel, workspace / "kernel")
    version, modules = _modules(tree)
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
        for path in ("bin", "sbin", "dev", "proc", "sys", "root", "lib", "lib/modules", home):
            yield path, stat.S_IFDIR | 0o755, b""
        yield "bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()
        for applet in cache.run([busybox, "--list"]).split():
            if applet != "busybox":
                yield f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox"
        for path in sorted((staging / home).iterdir()):
            yield f"{home}/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()
        yield "sbin/modprobe", stat.S_IFLNK | 0o777, b"../bin/busybox"
        yield "init", stat.S_IFREG | 0o755, INITRD_INIT.encode()

    target.write_bytes(image.cpio(entries()))


def _modules(tree: Path) -> tuple[str, dict[str, bytes]]:
    """Kernel version, and the modules of the initramfs with those that they need."""
    home = next((tree / "lib/modules").iterdir())
    files = {path.name.split(".")[0].replace("-", "_"): path for path in home.rglob("*.ko*")}
    chosen: dict[str, bytes] = {}
    queue = list(INITRD_MODULES)
    while queue:
        name = queue.pop().replace("-", "_")
        path = files.get(name)
        if path is None or f"{name}.ko" in chosen:
            continue  # built into this kernel, or taken already
        data = path.read_bytes()
        chosen[f"{name}.ko"] = lzma.decompress(data) if path.suffix == ".xz" else data
        queue += [word for word in cache.run(["modinfo", "-F", "depends", path]).strip().split(",") if word]
    return home.name, chosen


def main() -> int:
    start = time.monotonic()
    if reason := unsupported():  # its tests are skipped for the same reason
        sys.stdout.write(f"{reason}\n")
        return 0
    try:
        assets = build()
    except (cache.NotAvailable, RuntimeError, OSError) as error:
        sys.stderr.write(f"storage VM: {error}\n")
        return 1
    sys.stdout.write(f"storage VM: {assets.disk} ({time.monotonic() - start:.1f} s)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
