"""A root with known guests that is copied for each kill, and what has to hold after it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pvetools.config import guest as config
from tests.sandbox.root import Result, Root
from tests.sandbox.steps import Ended
from tests.sandbox.zygote import Zygote, quick_root

MIB = 1 << 20
# An ordinary run tries a sample of the steps of each command.
ALL = os.environ.get("PVETOOLS_WALK") == "all"
TREES = ("etc", "var/lib/vz", "var/lib/lxc", "var/lib/pvetools")
# A command that a message tells to run.
HINT = re.compile(r"\b(qm|pct) (unlock|stop|start|resume|unmount|destroy|rescan|disk rescan) ((?:--vmid )?\d+)")
KIND_OF_FOLDER = {"qemu-server": "qemu", "lxc": "lxc"}


def chosen(count: int, sample: int) -> list[int]:
    """Steps to try, from 1: all, or a sample over the whole length with the first and the last."""
    if ALL or count <= sample:
        return list(range(1, count + 1))
    return sorted({1 + round(index * (count - 1) / (sample - 1)) for index in range(sample)})


def wait_until(what: str, check: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def copied(base: Root, zygote: Zygote) -> Iterator[Root]:
    """A root of its own with the guests and volumes of another one."""
    with quick_root(zygote) as root:
        for tree in TREES:
            if (base / tree).exists():
                (root / tree).mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", "--sparse=always", f"{base / tree}/.", root / tree], check=True)
        yield root


# -- what is there -----------------------------------------------------------------------------------------------------


def configs(root: Root) -> dict[int, config.GuestConfig]:
    """All guests' files, read strictly: a truncated or damaged one fails."""
    found = {}
    for path in (root / "etc/pve/nodes").glob("*/*/*.conf"):
        kind, vmid = KIND_OF_FOLDER[path.parent.name], int(path.stem)
        parsed = config.parse(kind, vmid, path.read_text(), path, strict=True)
        config.verify(parsed, strict=True)
        assert parsed.current, f"{path} is empty"
        found[vmid] = parsed
    return found


def temporary_files(root: Root) -> list[str]:
    """Half-written files that nobody will rename any more."""
    dump = root / "var/lib/vz/dump"
    found = [*(root / "etc").rglob(".*"), *(root / "var/lib").rglob(".*.tmp.*"), *(root / "var/tmp").iterdir()]
    found += [*dump.glob("*.dat"), *dump.glob("*.tmp")]
    return [str(path.relative_to(root.path)) for path in found]


def volumes(root: Root, vmid: int | None = None) -> dict[str, Path]:
    """Volumes of storage `local`, by volume id: images and folders."""
    found = sorted((root / "var/lib/vz/images").glob(f"{vmid or '*'}/*"))
    return {f"local:{path.parent.name}/{path.name}": path for path in found}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def disks(root: Root, vmid: int) -> dict[str, str]:
    """Key of each disk that a VM's file names -> digest of the data that a guest would read."""
    found = {}
    for key, text in configs(root)[vmid].current.items():
        if re.fullmatch(r"(scsi|virtio|ide|sata)\d+", key) and text.startswith("local:"):
            path = volumes(root, vmid)[text.split(",")[0]]
            found[key] = hashlib.sha256(_content(path)).hexdigest()
    return found


def _content(path: Path) -> bytes:
    if path.suffix == ".raw":
        return path.read_bytes()
    flat = path.with_name(f".flat-{path.name}")
    try:
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, flat], check=True, timeout=60)
        return flat.read_bytes()
    finally:
        flat.unlink(missing_ok=True)


def tree_data(root: Root, vmid: int) -> dict[str, str]:
    """Key of each volume that a container's file names -> digest of the known file in it; its file system is whole."""
    found = {}
    for key, text in configs(root)[vmid].current.items():
        if re.fullmatch(r"rootfs|mp\d+", key) and text.startswith("local:"):
            image = volumes(root, vmid)[text.split(",")[0]]
            checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False, timeout=60)
            assert checked.returncode == 0, f"{image}: {checked.stdout}{checked.stderr}"
            data = subprocess.run(["debugfs", "-R", "cat known", image], capture_output=True, check=True, timeout=60)
            found[key] = hashlib.sha256(data.stdout).hexdigest()
    return found


def processes_of(root: Root, *names: str) -> dict[int, str]:
    """Processes on this root of one of the named programs."""
    return {pid: words for pid, words in root.processes().items() if Path(words.split()[0]).name in names}


# -- a case ------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One kill: the root it happened on, what was known before, and how the tool ended."""

    root: Root
    command: tuple[object, ...]
    ended: Ended
    known: dict[str, object] = field(default_factory=dict)

    def again(self) -> Result:
        return self.root.cli(*self.command)  # type: ignore[arg-type]

    def persist(self, tool: str, *words: object, rounds: int = 4) -> Result:
        """Run a command until it works; each time that it does not, do what its message says."""
        said = self.root.cli(tool, *words)
        for _ in range(rounds):
            if said.status == 0:
                break
            hint = HINT.search(said.stderr)
            assert hint, f"fails without saying what to do: {said}"
            self.root.cli(hint[1], *hint[2].split(), *hint[3].split(), ok=True)
            said = self.root.cli(tool, *words)
        assert said.status == 0, f"still fails after doing what it says: {said}"
        return said

    def check_common(self) -> None:
        """No child, no damaged file, no volume that nothing knows about."""
        assert not self.ended.orphans, f"children outlive the tool: {self.ended.orphans}"
        guests = configs(self.root)
        for volid in volumes(self.root):
            vmid = int(volid.split(":")[1].split("/")[0])
            assert vmid in guests, f"volume {volid} of no guest"
            if volid not in guests[vmid].text():
                tool = "qm" if guests[vmid].kind == "qemu" else "pct"
                said = self.root.cli(tool, "rescan", "--vmid", vmid, "--dryrun", 1, ok=True)
                assert volid in said.stderr + said.stdout, f"rescan does not find {volid}: {said}"

    def check_nothing_of(self, vmid: int, *, half_written: bool = False) -> None:
        """A guest that is gone left nothing, but maybe a half-written file, which goes with the next command."""
        root = self.root
        assert vmid not in configs(root)
        assert not volumes(root, vmid), sorted(volumes(root, vmid))
        assert not (root / f"var/lib/vz/images/{vmid}").exists()
        assert not (root / f"var/lib/lxc/{vmid}").exists(), list((root / f"var/lib/lxc/{vmid}").rglob("*"))
        left = [name for name in temporary_files(root) if str(vmid) in name]
        assert half_written or not left, left

    def check_quiet(self) -> None:
        """Nothing runs on the root or is mounted any more."""
        with contextlib.suppress(AssertionError):  # what ends takes its moment; the assertion below tells what stays
            wait_until("quiet", lambda: not self.root.running(), timeout=20)
        assert self.root.running() == {}


def archives(root: Root) -> list[Path]:
    """Finished archives; each must be whole."""
    found = sorted((root / "var/lib/vz/dump").glob("vzdump-*.zst"))
    for path in found:
        subprocess.run(["zstd", "-tq", path], check=True, timeout=60)
    return found


def put_template(root: Root, template: Path) -> str:
    shutil.copy(template, root / "var/lib/vz/template/cache" / template.name)
    return f"local:vztmpl/{template.name}"
