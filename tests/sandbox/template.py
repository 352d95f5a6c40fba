"""Container templates: a small real Debian (or Ubuntu) root by debootstrap, and a tiny busybox one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.sandbox import cache

# sysvinit runs on every cgroup layout (systemd 257 refuses v1) and is up in a second.
PACKAGES = "sysvinit-core,ifupdown,iproute2,netbase"
SUFFIXES = {
    "zst": ["zstd", "-q", "-3", "-T0"],
    "gz": ["gzip", "-1"],
    "xz": ["xz", "-0", "-T0"],
    "lzo": ["lzop"],
    "bz2": ["bzip2", "-1"],
    "": ["cat"],
}
# Nobody reads these in a test; a third of the size.
TRIMMED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists")
INITTAB = """\
id:2:initdefault:
si::sysinit:/etc/init.d/rcS
l0:0:wait:/etc/init.d/rc 0
l2:2:wait:/etc/init.d/rc 2
l6:6:wait:/etc/init.d/rc 6
ca:12345:ctrlaltdel:/sbin/shutdown -t1 -a -r now
p0::powerfail:/sbin/init 0
1:2345:respawn:/sbin/getty 38400 console
"""


def release() -> dict[str, str]:
    """The host's /etc/os-release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name: value.strip('"') for name, value in pairs}


def mirror() -> str:
    """The package mirror that this host uses for its own release."""
    codename = release()["VERSION_CODENAME"]
    listed = cache.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]
    )
    for line in listed.splitlines():
        words = line.split()
        if words[:2] == [codename, "main"]:
            return words[2]
    raise cache.NotAvailable(f"apt knows no mirror of {codename} (run apt-get update)")


def debian(suffix: str = "zst") -> Path:
    """The template of the host's own release, packed with SUFFIXES[suffix]; named as templates are."""
    if suffix != "zst":
        return _repacked(debian(), suffix)
    info = release()
    tag = cache.key(PACKAGES, INITTAB, *TRIMMED)
    name = f"{info['ID']}-{info['VERSION_ID']}-minbase_{tag}_amd64.tar.zst"
    found = cache.directory() / name
    return found if found.exists() else cache.obtain(name, _build_debian)


def _repacked(source: Path, suffix: str) -> Path:
    name = source.name.removesuffix(".tar.zst") + ".tar" + (f".{suffix}" if suffix else "")

    def build(target: Path, _workspace: Path) -> None:
        with target.open("wb") as out:
            unpack = subprocess.Popen(["zstd", "-qdc", source], stdout=subprocess.PIPE)
            subprocess.run(SUFFIXES[suffix], stdin=unpack.stdout, stdout=out, check=True)
            if unpack.wait():
                raise RuntimeError(f"zstd -d {source} failed")

    return cache.obtain(name, build)


def _build_debian(target: Path, workspace: Path) -> None:
    tree = workspace / "root"
    # Its own namespaces: debootstrap's mounts and stray processes go with them.
    cache.run(
        [
            "unshare",
            "--fork",
            "--pid",
            "--mount",
            "--kill-child=KILL",
            "debootstrap",
            "--variant=minbase",
            f"--include={PACKAGES}",
            release()["VERSION_CODENAME"],
            tree,
            mirror(),
        ]
    )
    for path in TRIMMED:
        shutil.rmtree(tree / path, ignore_errors=True)
    (tree / "etc/inittab").write_text(INITTAB)
    (tree / "etc/hostname").write_text("template\n")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text("")
    (tree / "etc/machine-id").write_text("")
    _pack(tree, target)


def _pack(tree: Path, target: Path) -> None:
    """Pack without device nodes: an unprivileged container could not unpack them."""
    cache.run(
        [
            "tar",
            "--create",
            "--file",
            target,
            "--numeric-owner",
            "--sort=name",
            "--exclude=./dev/*",
            "--exclude=./proc/*",
            "--exclude=./sys/*",
            "--use-compress-program",
            " ".join(SUFFIXES["zst"]),
            "--directory",
            tree,
            ".",
        ]
    )


def small() -> Path:
    """A 1 MB template: static busybox as init and shell, with the marks of a Debian root."""
    name = f"busybox-1-small_{cache.key(*SMALL_FILES, *SMALL_FILES.values())}_amd64.tar.zst"
    found = cache.directory() / name
    return found if found.exists() else cache.obtain(name, _build_small)


SMALL_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\ntty:x:5:\n",
    "etc/hostname": "template\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/resolv.conf": "",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\n",
    "etc/debian_version": "12.0\n",
    "etc/os-release": 'PRETTY_NAME="busybox with the marks of Debian"\nID=debian\nVERSION_ID="12"\n',
    "etc/inittab": "::sysinit:/etc/init.d/rcS\n::ctrlaltdel:/bin/poweroff\n::respawn:/bin/sleep 100000\n",
    "etc/init.d/rcS": "#!/bin/sh\nmkdir -p /run/network\nifup -a\n",
}


def _build_small(target: Path, workspace: Path) -> None:
    tree = workspace / "root"
    for path in (
        "bin",
        "sbin",
        "etc/init.d",
        "etc/network",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "var/log",
        "root",
        "usr/bin",
        "usr/sbin",
    ):
        (tree / path).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise cache.NotAvailable("busybox is not installed (package busybox-static)")
    shutil.copy(busybox, tree / "bin/busybox")
    for applet in cache.run([busybox, "--list-full"]).split():
        link = tree / applet
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to("/bin/busybox")
    (tree / "sbin").mkdir(exist_ok=True)
    if not (tree / "sbin/init").exists():
        (tree / "sbin/init").symlink_to("/bin/busybox")
    for path, text in SMALL_FILES.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "etc/init.d/rcS").chmod(0o755)
    (tree / "tmp").chmod(0o1777)
    os.chown(tree, 0, 0)
    tree.chmod(0o755)
    _pack(tree, target)
