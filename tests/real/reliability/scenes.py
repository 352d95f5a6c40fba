"""The commands that are killed: what is there before, and what has to hold afterwards."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.real.reliability.stage import (
    MIB,
    Case,
    archives,
    configs,
    digest,
    disks,
    put_template,
    tree_data,
    volumes,
)
from tests.sandbox.root import Root

Known = Mapping[str, Any]
BYSTANDER = 199
VM_WORDS = ("--memory", 64, "--kvm", 0, "--net0", "virtio,bridge=vmbr0")
CT_WORDS = (
    "--memory", 64, "--rootfs", "local:0.02", "--mp0", "local:0.02,mp=/data,backup=1",
    "--net0", "name=eth0,bridge=vmbr0,ip=10.99.0.7/24", "--unprivileged", 1,
)  # fmt: skip
TO_LOCAL = ("--compress", "zstd", "--storage", "local")


class Material(NamedTuple):
    """What guests are made from: a disk image and a container template."""

    image: Path
    template: Path


def image(folder: Path) -> Path:
    """A disk of 8 MiB: data, zeros, data, zeros."""
    path = folder / "image.raw"
    path.write_bytes(os.urandom(MIB) + bytes(3 * MIB) + os.urandom(MIB // 2) + bytes(7 * MIB // 2))
    return path


# -- the two kinds of guests -------------------------------------------------------------------------------------------


class Vm:
    """Virtual machines."""

    tool = "qm"
    content = staticmethod(disks)

    @staticmethod
    def create(vmid: int, material: Material) -> tuple[object, ...]:
        source = f"local:0,import-from={material.image}"
        return ("qm", "create", vmid, *VM_WORDS, "--scsi0", source, "--scsi1", f"{source},format=qcow2")

    @staticmethod
    def put_data(_root: Root) -> None:
        """The imported image is the data."""

    @staticmethod
    def change_data(root: Root) -> None:
        for path in volumes(root, 100).values():
            words = ["qemu-io", "-f", path.suffix[1:], "-c", "write -P 7 0 64k", path]
            subprocess.run(words, check=True, capture_output=True, timeout=60)

    @staticmethod
    def restore(vmid: int, archive: str) -> tuple[object, ...]:
        return ("qmrestore", archive, vmid)

    @staticmethod
    def check_alive(case: Case) -> None:
        """The machine ran all the time, and nothing of a backup is left in it."""
        said = case.root.cli("qm", "status", 100, "--verbose", ok=True).stdout
        assert f"pid: {case.known['pid']}\n" in said
        assert "qmpstatus: running" in said
        (name,) = case.root.domains()
        job = subprocess.run(["virsh", "backup-dumpxml", name], capture_output=True, text=True, check=False, timeout=60)
        assert job.returncode != 0, job.stdout


class Ct:
    """Containers."""

    tool = "pct"
    content = staticmethod(tree_data)

    @staticmethod
    def create(vmid: int, material: Material) -> tuple[object, ...]:
        return ("pct", "create", vmid, f"local:vztmpl/{material.template.name}", *CT_WORDS)

    @staticmethod
    def put_data(root: Root) -> None:
        root.cli("pct", "mount", 100, ok=True)
        for folder in ("", "data"):
            (root / "var/lib/lxc/100/rootfs" / folder / "known").write_bytes(os.urandom(300_000))
        root.cli("pct", "unmount", 100, ok=True)

    change_data = put_data

    @staticmethod
    def restore(vmid: int, archive: str) -> tuple[object, ...]:
        return ("pct", "restore", vmid, archive, "--storage", "local")

    @staticmethod
    def check_alive(case: Case) -> None:
        """The same init runs, and is not frozen."""
        assert case.root.cli("pct", "status", 100, ok=True).stdout.strip() == "status: running"
        assert init_pid(case.root) == case.known["pid"]
        case.root.cli("pct", "exec", 100, "--", "cat", "/etc/hostname", timeout=60, ok=True)


Kind = type[Vm] | type[Ct]


def init_pid(root: Root) -> int:
    said = subprocess.run(["lxc-info", "-P", root / "var/lib/lxc", "-n", "100", "-p", "-H"], capture_output=True,
                          text=True, check=True, timeout=60)  # fmt: skip
    return int(said.stdout)


def qemu_pid(root: Root) -> int:
    (pid,) = (pid for pid, words in root.processes().items() if "qemu-system" in words.split()[0])
    return pid


# -- scenes ------------------------------------------------------------------------------------------------------------


def archive_of(root: Root) -> str:
    (found,) = (root / "var/lib/vz/dump").glob("*.zst")
    return f"local:backup/{found.name}"


def bystander_of(root: Root) -> str:
    """Digest of the disk of a guest that has nothing to do with the command."""
    (path,) = volumes(root, BYSTANDER).values()
    return digest(path)


@dataclass(frozen=True)
class Scene:
    """A command that is killed at each of its steps.

    Args:
        kind: of guest.
        sample: how many steps are tried in an ordinary run.
    """

    kind: Kind
    sample: int

    def prepare(self, root: Root, material: Material) -> dict[str, Any]:
        """Make guests on a root that is then copied for each kill; gives what is known about it."""
        root.cli("qm", "create", BYSTANDER, "--scsi0", f"local:0,import-from={material.image}", ok=True)
        put_template(root, material.template)
        return {"bystander": bystander_of(root)}

    def command(self, root: Root, material: Material) -> tuple[object, ...]:
        raise NotImplementedError

    def begin(self, root: Root) -> dict[str, Any]:
        """What cannot be copied, such as a running guest."""
        return {}

    def check(self, case: Case) -> None:
        raise NotImplementedError

    def check_gone(self, case: Case, *vmids: int) -> None:
        for vmid in vmids:
            case.persist(self.kind.tool, "destroy", vmid)
            case.check_nothing_of(vmid)

    def make_guest(self, root: Root, material: Material) -> dict[str, Any]:
        """Guest 100 with known data."""
        known = Scene.prepare(self, root, material)
        root.cli(*self.kind.create(100, material), ok=True)  # type: ignore[arg-type]
        self.kind.put_data(root)
        return {**known, "content": self.kind.content(root, 100)}


@dataclass(frozen=True)
class Create(Scene):
    """A new guest 101."""

    def prepare(self, root: Root, material: Material) -> dict[str, Any]:
        return self.make_guest(root, material)

    def command(self, root: Root, material: Material) -> tuple[object, ...]:
        return self.kind.create(101, material)

    def check(self, case: Case) -> None:
        guests = configs(case.root)
        if 101 in guests:
            again = case.again()
            assert again.status != 0
            assert "101 already exists" in again.stderr
            if guests[101].lock:
                assert guests[101].lock == "create"
                assert f"{self.kind.tool} unlock 101" in again.stderr, again
            case.persist(self.kind.tool, "destroy", 101)
        case.check_nothing_of(101, half_written=True)
        made = case.again()
        assert made.status == 0, made
        assert not configs(case.root)[101].lock
        self.check_gone(case, 101)


@dataclass(frozen=True)
class Start(Scene):
    """Guest 100."""

    def prepare(self, root: Root, material: Material) -> dict[str, Any]:
        return self.make_guest(root, material)

    def command(self, root: Root, material: Material) -> tuple[object, ...]:
        return (self.kind.tool, "start", 100)

    def check(self, case: Case) -> None:
        root, tool = case.root, self.kind.tool
        again = case.again()
        assert again.status == 0 or "100 already running" in again.stderr, again
        assert root.cli(tool, "status", 100, ok=True).stdout.strip() == "status: running"
        case.persist(tool, "stop", 100)
        assert root.cli(tool, "status", 100, ok=True).stdout.strip() == "status: stopped"
        case.check_quiet()
        assert self.kind.content(root, 100) == case.known["content"]
        self.check_gone(case, 100)


@dataclass(frozen=True)
class Destroy(Scene):
    """Guest 100, with rules of a firewall."""

    def prepare(self, root: Root, material: Material) -> dict[str, Any]:
        known = self.make_guest(root, material)
        (root / "etc/pve/firewall/100.fw").write_text("[OPTIONS]\n")
        return known

    def command(self, root: Root, material: Material) -> tuple[object, ...]:
        return (self.kind.tool, "destroy", 100)

    def check(self, case: Case) -> None:
        if 100 in configs(case.root):
            started = case.root.cli(self.kind.tool, "start", 100)  # still whole, or it says what is missing
            if started.status == 0:
                case.root.cli(self.kind.tool, "stop", 100, ok=True)
            else:
                assert "does not exist" in started.stderr, started
            case.persist(self.kind.tool, "destroy", 100)
        case.check_nothing_of(100)
        assert not list((case.root / "etc/pve/firewall").iterdir())


@dataclass(frozen=True)
class Vzdump(Scene):
    """Guest 100, stopped or running."""

    running: bool = False
    mode: str = "snapshot"

    def prepare(self, root: Root, material: Material) -> dict[str, Any]:
        return self.make_guest(root, material)

    def begin(self, root: Root) -> dict[str, Any]:
        if not self.running:
            return {}
        root.cli(self.kind.tool, "start", 100, ok=True)
        return {"pid": qemu_pid(root) if self.kind is Vm else init_pid(root)}

    def command(self, root: Root, material: Material) -> tuple[object, ...]:
        return ("vzdump", 100, *TO_LOCAL, "--mode", self.mode)

    def check(self, case: Case) -> None:
        root, kind = case.root, self.kind
        if not self.running:
            assert kind.content(root, 100) == case.known["content"]
        for path in archives(root):  # one that has its name is whole
            path.unlink()
        case.persist(*map(str, case.command))  # type: ignore[arg-type]
        assert not configs(root)[100].lock
        (archive,) = archives(root)
        if self.running:
            self.check_running(case)
        root.cli(*kind.restore(101, f"local:backup/{archive.name}"), ok=True)  # type: ignore[arg-type]
        assert kind.content(root, 101) == case.known["content"]
        assert kind.content(root, 100) == case.known["content"]
        self.check_gone(case, 100, 101)

    def check_running(self, case: Case) -> None:
        if self.mode != "stop":
            self.kind.check_alive(case)
        case.root.cli(self.kind.tool, "stop", 100)


@dataclass(frozen=True)
class Restore(Scene):
    """Into an unused id, or over guest 100, which has other data than the archive meanwhile."""

    vmid: int = 101

    def prepare(self, root: Root, material: Material) -> dict[str, Any]:
        known = self.make_guest(root, material)
        root.cli("vzdump", 100, *TO_LOCAL, ok=True)
        self.kind.change_data(root)
        return {**known, "content": self.kind.content(root, 100), "archived": known["content"]}

    def command(self, root: Root, material: Material) -> tuple[object, ...]:
        words = self.kind.restore(self.vmid, archive_of(root))
        return words if self.vmid == 101 else (*words, "--force", 1)

    def check(self, case: Case) -> None:
        kind, now = self.kind, self.kind.content(case.root, 100)
        allowed = [case.known["content"]] if self.vmid == 101 else [case.known["content"], case.known["archived"]]
        assert now in allowed, "neither the old nor the new data"
        case.persist(*kind.restore(self.vmid, archive_of(case.root)), "--force", 1)  # type: ignore[arg-type]
        assert kind.content(case.root, self.vmid) == case.known["archived"]
        self.check_gone(case, self.vmid)


SCENES: dict[str, Scene] = {
    "qm create": Create(Vm, 9),
    "qm start": Start(Vm, 5),
    "qm destroy": Destroy(Vm, 5),
    "vzdump of a stopped VM": Vzdump(Vm, 8),
    "vzdump of a running VM": Vzdump(Vm, 9, running=True),
    "qmrestore": Restore(Vm, 7),
    "qmrestore over a VM": Restore(Vm, 7, vmid=100),
    "pct create": Create(Ct, 10),
    "pct start": Start(Ct, 5),
    "pct destroy": Destroy(Ct, 5),
    "vzdump of a stopped CT": Vzdump(Ct, 8),
    "vzdump of a running CT": Vzdump(Ct, 9, running=True, mode="suspend"),
    "vzdump that stops a CT": Vzdump(Ct, 4, running=True, mode="stop"),
    "pct restore": Restore(Ct, 9),
    "pct restore over a CT": Restore(Ct, 7, vmid=100),
}
