"""Backups against other tools that do the same work, alternately, and the memory that they take."""

import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.run import Figure, timed
from tests.bench.startup import environment, tool
from tests.sandbox import template

MIB = 1 << 20
DISK = 4096  # MiB
ROUNDS = 6
MEMORY = 200.0  # MB
THREADS = "2"


def run(argv: list[object], env: dict[str, str]) -> None:
    done = subprocess.run([str(word) for word in argv], env=env, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{argv[0]} ended with status {done.returncode}: {done.stderr}")


def piped(first: list[object], second: list[object], target: Path) -> None:
    """``first | second > target``."""
    with target.open("wb") as out:
        one = subprocess.Popen([str(word) for word in first], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        two = subprocess.Popen([str(word) for word in second], stdin=one.stdout, stdout=out)
        one.stdout.close()
        if two.wait() or one.wait():
            raise RuntimeError(f"{first[0]} or {second[0]} failed")


def write_disk(path: Path) -> None:
    """Half random, half zeros that are really there, in turns of 1 MiB."""
    source = random.Random(1)
    with path.open("r+b") as disk:
        for _ in range(DISK // 2):
            disk.write(source.randbytes(MIB))
            disk.write(bytes(MIB))


def alternately(
    *actions: tuple[Callable[[], object], Callable[[], object]], rounds: int = ROUNDS, pause: float = 0
) -> list[float]:
    """Median seconds of each action; after each of its runs its traces are removed, and are not counted.

    Data that is still on its way to the disk when one ends would slow the next one down, and the memory that it has
    just given back is dearer or cheaper for whoever comes next: so they change places. With an even number of rounds
    each goes first equally often. After a pause of some seconds the host of a virtual machine has taken the memory
    back, and it is equally dear for all.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    turn = list(zip(seconds, actions, strict=True))
    for _ in range(rounds):
        turn.reverse()
        for times, (action, clean) in turn:
            os.sync()
            time.sleep(pause)
            times.append(timed(action))
            clean()
    return [statistics.median(times) for times in seconds]


def peak_memory(argv: list[object], env: dict[str, str]) -> float:
    """Most memory in MB that a command, or any program that it starts, held at a time."""
    process = subprocess.Popen(
        [str(word) for word in argv], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{argv[0]} ended with status {process.returncode}")
    return used.ru_maxrss * 1024 / 1e6


def emptied(folder: Path) -> Callable[[], None]:
    def clean() -> None:
        shutil.rmtree(folder)
        folder.mkdir()

    folder.mkdir()
    return clean


def running_vm(scratch: Path) -> list[Figure]:
    """``vzdump`` of a VM whose QEMU runs (processors stopped, so that it takes no time from the backups)."""
    env, qm, vzdump = environment(scratch), tool("qm", scratch), tool("vzdump", scratch)
    # With the page cache, as cat reads: past it all of them would wait for the disk alone.
    words = f"create 100 --memory 64 --kvm 0 --scsihw virtio-scsi-pci --scsi0 local:{DISK // 1024},cache=writeback"
    run([qm, *words.split()], env)
    image = scratch / "var/lib/vz/images/100/vm-100-disk-0.raw"
    write_disk(image)
    run([qm, "start", "100"], env)
    run([qm, "suspend", "100"], env)
    listed = subprocess.run(["virsh", "list", "--name"], env=env, check=True, capture_output=True, text=True).stdout
    name = next(word for word in listed.split() if word.endswith("-100"))
    out, other, plain = scratch / "out", scratch / "other", scratch / "plain"
    argv = [vzdump, "100", "--compress", "zstd", "--zstd", THREADS, "--dumpdir", out, "--quiet", "1"]
    virtnbd_argv = ["virtnbdbackup", "-n", "-r", "-d", name, "-l", "copy", "-o", other, "-S", scratch]
    cleaners = [emptied(out), emptied(other), emptied(plain)]
    try:
        ours, virtnbd, cat = alternately(
            (lambda: run(argv, env), cleaners[0]),
            (lambda: run(virtnbd_argv, env), cleaners[1]),
            (lambda: piped(["cat", image], ["zstd", f"-T{THREADS}", "-1"], plain / "image.zst"), cleaners[2]),
        )  # fmt: skip
        memory = peak_memory(argv, env)
    finally:
        run([qm, "stop", "100"], env)
    return [
        Figure("vzdump running VM 4 GiB / virtnbdbackup", ours, virtnbd, 1 / 1.4),
        Figure("vzdump running VM 4 GiB / cat | zstd -T2 -1", ours, cat, 1.3),
        Figure("vzdump VM peak memory / allowed", memory, MEMORY, 1, "MB"),
    ]


def stopped_container(scratch: Path) -> list[Figure]:
    """``vzdump`` of a Debian container with 256 MiB of half compressible data besides its system."""
    env, pct, vzdump = environment(scratch), tool("pct", scratch), tool("vzdump", scratch)
    packed = template.debian()
    cache = scratch / "var/lib/vz/template/cache"
    cache.mkdir(parents=True)
    (cache / packed.name).symlink_to(packed)
    run([pct, "create", "101", f"local:vztmpl/{packed.name}", "--rootfs", "local:0", "--unprivileged", "0"], env)
    root = scratch / "var/lib/vz/images/101/subvol-101-disk-0.subvol"
    source = random.Random(2)
    for number in range(256):
        (root / f"srv/{number}").write_text(source.randbytes(MIB // 2).hex())
    out, plain = scratch / "out", scratch / "plain"
    argv = [vzdump, "101", "--compress", "zstd", "--zstd", THREADS, "--dumpdir", out, "--quiet", "1"]
    cleaners = [emptied(out), emptied(plain)]
    ours, peer = alternately(
        (lambda: run(argv, env), cleaners[0]),
        (
            lambda: piped(["tar", "-C", root, "-cf", "-", "."], ["zstd", f"-T{THREADS}"], plain / "root.zst"),
            cleaners[1],
        ),
    )
    memory = peak_memory(argv, env)
    run([pct, "destroy", "101"], env)
    return [
        Figure("vzdump container / tar | zstd", ours, peer, 1.2),
        Figure("vzdump container peak memory / allowed", memory, MEMORY, 1, "MB"),
    ]


FIGURES = [running_vm, stopped_container]
