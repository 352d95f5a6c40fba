"""Storages: listing many images, streams against the tools that move data, and the status of many slow storages."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench.backup import alternately, run, write_disk
from tests.bench.run import Figure, command, paired, timed
from tests.bench.startup import environment, tool
from tests.real.storage.fuse import Slow

IMAGES = 10_000
SAMPLE = 100  # images that the slow peer is asked for
STREAM = "raw+size"
ROUNDS = 4
TAKEN_BACK = 4.0  # seconds; Linux tells a host of free memory after two


def define(scratch: Path, *sections: str) -> dict[str, str]:
    (scratch / "etc/pve").mkdir(parents=True, exist_ok=True)
    (scratch / "etc/pve/storage.cfg").write_text("\n".join(sections))
    return environment(scratch)


def list_10000(scratch: Path) -> Figure:
    """The headers are read in-process; the peer is started once an image, so a sample of it is enough."""
    env = define(scratch, f"dir: many\n\tpath {scratch}/many\n\tcontent images\n")
    first = scratch / "first.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", first, "8G"], check=True)
    images = []
    for number in range(IMAGES):
        vmid = 100 + number // 4
        image = scratch / f"many/images/{vmid}/vm-{vmid}-disk-{number % 4}.qcow2"
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first, image)
        images.append(image)

    def ask_each() -> None:
        for image in images[:: IMAGES // SAMPLE]:
            subprocess.run(["qemu-img", "info", image], check=True, stdout=subprocess.DEVNULL)

    listing = command([tool("pvesm", scratch), "list", "many"], env=env)
    ours, sample = paired(listing, ask_each, rounds=5)
    return Figure("pvesm list, 10,000 images / qemu-img info each", ours, sample * IMAGES / SAMPLE, 1 / 50)


def removing(path: Path) -> Callable[[], None]:
    return lambda: path.unlink(missing_ok=True)


def streams(scratch: Path) -> list[Figure]:
    """A disk of 4 GiB, half of it zeros, out of a storage and into one; every writer ends with its data on the disk."""
    env = define(scratch, f"dir: store\n\tpath {scratch}/store\n\tcontent images\n")
    pvesm, pvesh = tool("pvesm", scratch), tool("pvesh", scratch)
    run([pvesm, "alloc", "store", "100", "vm-100-disk-0.raw", "4G"], env)
    images = scratch / "store/images"
    raw, qcow2 = images / "100/vm-100-disk-0.raw", images / "100/vm-100-disk-1.qcow2"
    write_disk(raw)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    stream, made, peer = scratch / "stream", images / "200/vm-200-disk-0.raw", scratch / "peer"
    copied = images / "200/vm-200-disk-1.qcow2"
    run([pvesm, "export", "store:100/vm-100-disk-0.raw", STREAM, stream], env)
    content = scratch / "content"
    subprocess.run(
        ["dd", f"if={stream}", f"of={content}", "bs=1M", "iflag=skip_bytes", "skip=8", "status=none"], check=True
    )
    dd = ["dd", "bs=1M", "status=none"]
    sparse = ["conv=sparse,fsync", "bs=64K", "status=none"]
    convert = ["qemu-img", "convert", "-t", "writeback"]

    def both(ours: list[object], target: Path, theirs: list[object]) -> list[float]:
        return alternately(
            (lambda: run(ours, env), removing(target)), (lambda: run(theirs, env), removing(peer)),
            rounds=ROUNDS, pause=TAKEN_BACK,
        )  # fmt: skip

    other = scratch / "other"
    figures = [
        ("pvesm export raw / dd", "export store:100/vm-100-disk-0.raw", other, [*dd, f"if={raw}", f"of={peer}"]),
        ("pvesm import raw / dd", "import store:200/vm-200-disk-0.raw", made,
         ["dd", f"if={content}", f"of={peer}", *sparse]),
        ("pvesm export qcow2 / qemu-img convert", "export store:100/vm-100-disk-1.qcow2", other,
         [*convert, "-S", "0", "-f", "qcow2", "-O", "raw", qcow2, peer]),
        ("pvesm import to qcow2 / qemu-img convert", "import store:200/vm-200-disk-1.qcow2", copied,
         [*convert, "-f", "raw", "-O", "qcow2", content, peer]),
    ]  # fmt: skip
    found = []
    for name, words, target, theirs in figures:
        file = stream if words.startswith("import") else other
        found.append(Figure(f"{name}, 4 GiB", *both([pvesm, *words.split(), STREAM, file], target, theirs), 1.1))
    copy = [pvesh, "create", "/nodes/localhost/storage/store/content/store:100/vm-100-disk-1.qcow2"]
    ours = [*copy, "--target", "200/vm-200-disk-0.raw"]
    theirs = [*convert, "-f", "qcow2", "-O", "raw", qcow2, peer]
    found.append(Figure("copy of a volume / qemu-img convert, 4 GiB", *both(ours, made, theirs), 1.1))
    return found


def status_of_20(scratch: Path) -> Figure:
    """The slowest of them needs two seconds for an answer."""
    with contextlib.ExitStack() as stack:
        places = [scratch / f"slow{number}" for number in range(20)]
        for number, place in enumerate(places):
            stack.enter_context(Slow(place, 1 + number / 19))
        options = "\tcreate-base-path 0\n\tcreate-subdirs 0\n\tcontent images\n"
        env = define(scratch, *(f"dir: {place.name}\n\tpath {place}\n{options}" for place in places))
        status = command([tool("pvesm", scratch), "status"], env=env)
        status()
        ours = sorted(timed(status) for _ in range(3))[1]
        peer = sorted(timed(lambda: os.statvfs(places[-1])) for _ in range(3))[1]
    return Figure("pvesm status of 20 slow storages / the slowest", ours, peer, 1.5)


FIGURES = [list_10000, streams, status_of_20]
