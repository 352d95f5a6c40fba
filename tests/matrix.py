"""`make test` in fresh roots of Debian releases: `python -m tests.matrix [SUITE...] [-- COMMAND...]`.

Each root is made by debootstrap and entered with pid and mount namespaces of its own and the host's
network.  It is a real root (pivot_root), not a chroot: the kernel refuses user namespaces, and
with them unprivileged containers, to processes in a chroot.  All of it is removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.sandbox import cache, template

REPOSITORY = Path(__file__).resolve().parents[1]
SUITES = ("bookworm", "trixie")
SOURCE = Path("usr/src/pvetools")
PACKAGES = "make,git,ca-certificates"
# How this host reaches package mirrors and names; a host without them needs none of them.
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/root/.config/pip/pip.conf")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
KEPT_ENVIRONMENT = re.compile(r"(PIP_.*|.*_proxy|.*_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|TERM|LANG)")
VERSIONS = """
python3 -c 'import platform; print("Python", platform.python_version())'
dpkg-query -W -f '${Package} ${Version}\\n' libvirt0 qemu-system-x86 lxc 2>/dev/null || true
"""


def make_root(suite: str, tree: Path) -> None:
    """A fresh minimal root of a release with this checkout's tracked files in it."""
    mirror = template.mirror()
    cache.run(
        ["unshare", "--fork", "--pid", "--mount", "--kill-child=KILL", "debootstrap", "--variant=minbase",
         f"--include={PACKAGES}", suite, tree, mirror], timeout=1200,
    )  # fmt: skip
    (tree / "etc/apt/sources.list").write_text(f"deb {mirror} {suite} main\n")
    for name in (*NETWORK_FILES, CERTIFICATES):
        if Path(name).exists():
            target = tree / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copy(name, target)
    # No service may start here: it would see the host's network.
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    copy_sources(tree / SOURCE)


def copy_sources(target: Path) -> None:
    """The tracked files as they are in the work tree, and the public cases beside them if there are any."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target / name, follow_symlinks=False)
    shared = REPOSITORY.parent / "shared"
    if shared.is_dir():
        shutil.copytree(shared, target.parent / "shared", symlinks=True)


def inside(tree: Path, command: Sequence[str]) -> None:
    """In new pid and mount namespaces: make the tree the root of everything and run the command."""

    def mount(*words: object) -> None:
        subprocess.run(["mount", *map(str, words)], check=True)

    mount("--bind", tree, tree)
    for name in ("dev", "sys"):
        mount("--rbind", f"/{name}", tree / name)
    mount("-t", "proc", "proc", tree / "proc")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", tree / "run")
    (tree / "run/lock").mkdir()
    (tree / "mnt/old").mkdir(parents=True, exist_ok=True)
    os.chdir(tree)
    subprocess.run(["pivot_root", ".", "mnt/old"], check=True)
    os.chroot(".")
    os.chdir("/")
    subprocess.run(["umount", "-l", "/mnt/old"], check=True)
    os.chdir(f"/{SOURCE}")
    kept = {name: value for name, value in os.environ.items() if KEPT_ENVIRONMENT.fullmatch(name)}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {**kept, "PATH": path, "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
    # A shell as process 1 would not bury orphans; this one waits for the command only, which suffices.
    done = subprocess.run([*command], env=environment, check=False)
    sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


def enter(tree: Path, command: Sequence[str], log: Path) -> tuple[int, str]:
    """Run a command in a root; its output goes to the screen and to the log. Status and output."""
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--pid", "--mount", "--kill-child=KILL", "--",
            sys.executable, "-m", "tests.matrix", "--inside", str(tree), "--", *command]  # fmt: skip
    lines = []
    with log.open("a") as copy, subprocess.Popen(
        argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:  # fmt: skip
        try:
            for line in child.stdout or ():
                sys.stdout.write(line)
                sys.stdout.flush()
                copy.write(line)
                lines.append(line)
        except BaseException:
            child.send_signal(signal.SIGKILL)
            raise
    return child.returncode, "".join(lines)


def run_suite(suite: str, command: Sequence[str], logs: Path) -> dict[str, str]:
    """Make the root, run the command, and tell how it went as one row of the table."""
    log = logs / f"matrix-{suite}.log"
    log.write_text("")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pvm-", dir="/var/tmp") as place:
        tree = Path(place) / "root"
        Path(place).chmod(0o755)  # unprivileged containers walk through it
        make_root(suite, tree)
        status, output = enter(tree, command, log)
        _, versions = enter(tree, ["sh", "-c", VERSIONS], log)
    found = dict(line.split(None, 1) for line in versions.splitlines() if len(line.split(None, 1)) == 2)
    summary = re.findall(r"^=* ?(\d+ (?:passed|failed|error).*?) ?=*$", output, re.MULTILINE)
    return {
        "release": suite,
        "Python": found.get("Python", "?"),
        "libvirt": found.get("libvirt0", "?").partition("-")[0],
        "QEMU": found.get("qemu-system-x86", "?").partition("+")[0].partition(":")[2],
        "LXC": found.get("lxc", "?").partition("-")[0].partition(":")[2],
        "result": f"{'ok' if status == 0 else f'failed ({status})'}: {summary[-1] if summary else 'no summary'}",
        "seconds": f"{time.monotonic() - start:.0f}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="folder of the logs")
    parser.add_argument("words", nargs="*", metavar="SUITE", help=f"default: {' '.join(SUITES)}")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    command = given[cut + 1 :] or ["make", "test"]
    if options.inside:
        inside(options.inside, command)
    rows = [run_suite(suite, command, options.logs) for suite in options.words or SUITES]
    sys.stdout.write(f"\n| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}\n")
    for row in rows:
        sys.stdout.write(f"| {' | '.join(row.values())} |\n")
    return 0 if all(row["result"].startswith("ok") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
