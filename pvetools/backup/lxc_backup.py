"""Backup of a container: its files as a tar archive, numbered as the container sees their owners.

A stopped container's volumes are mounted in a namespace of their own. A running one is copied twice, the second time
frozen, so that it is away only for what changed in between; the copy is archived.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from pvetools.backup import joblog
from pvetools.backup.guestrun import ModeFailure, Run
from pvetools.backup.journal import Journal
from pvetools.config.guest import GuestConfig
from pvetools.guest.lxc import idmap, lifecycle, mounts, running, runtime, tar
from pvetools.guest.lxc.idmap import IdMap
from pvetools.options.lxc import LxcOptions
from pvetools.system import files, lock, paths
from pvetools.system import run as programs
from pvetools.system.errors import PveError, RunError

# File systems on which the work folder may lie beside the archives, as Proxmox VE has it.
_SHARED_WORK = ("ext3", "nfs", "nfs4", "reiserfs", "xfs")
_NFS = ("nfs", "nfs4")
_NOT_STORED = ("lock", "parent", "snapshots")
# rsync: files that vanished while they were copied
_VANISHED = 24


class Point(NamedTuple):
    """A volume that goes into the archive: ``rootfs`` or ``mpN``, and its path inside."""

    key: str
    path: str


def points(options: LxcOptions) -> tuple[list[Point], list[str]]:
    """Volumes to archive, and what to tell about all of them."""
    included = [Point("rootfs", "/")]
    said = ["including mount point rootfs ('/') in backup"]
    for index, point in sorted(options.mp.items()):
        key, reason = f"mp{index}", ""
        if point.volume.startswith("/dev/"):
            reason = "excluding device mount point {} ('{}') from backup (not a volume)"
        elif point.volume.startswith("/"):
            reason = "excluding bind mount point {} ('{}') from backup (not a volume)"
        elif not point.backup:
            reason = "excluding volume mount point {} ('{}') from backup (disabled)"
        else:
            reason = "including mount point {} ('{}') in backup"
            included.append(Point(key, point.mp))
        said.append(reason.format(key, point.mp))
    return included, said


def file_system(folder: Path) -> str:
    """Type of the file system that a folder lies on, as ``df`` calls it."""
    lines = programs.run(["df", "-P", "-T", folder]).stdout.splitlines()
    return lines[-1].split()[1]


def _tell_subvolumes(folder: Path) -> None:
    """Warn of subvolumes of btrfs inside: to tar and rsync they are other file systems, which they leave out."""
    if programs.find("btrfs") is None or programs.run(["stat", "-f", "-c", "%T", folder]).stdout.strip() != "btrfs":
        return
    listed = programs.run(["btrfs", "subvolume", "list", "-o", folder], check=False).stdout.splitlines()
    for line in listed:
        name = line.partition(" path ")[2].rpartition("/")[2]
        joblog.warn(f"subvolume '{name}' inside of the container is not included in the backup")


def _literal(path: str) -> str:
    """A path as a pattern of rsync."""
    return re.sub(r"([\\*?\[])", r"\\\1", path)


def stored_config(current: GuestConfig) -> str:
    """What goes into the archive as ``pct.conf``: the current part, in canonical form."""
    section = current.current.copy()
    for key in _NOT_STORED:
        section.pop(key, None)
    return GuestConfig("lxc", current.vmid, current.path, current=section).canonical()


class LxcEngine:
    """What containers supply to the frame of a backup."""

    def __init__(self) -> None:
        self._options = LxcOptions()
        self._ids = IdMap()
        self._points: list[Point] = []
        self._frozen = False

    def name(self, current: GuestConfig) -> str:
        """The container's host name."""
        return current.current.get("hostname", f"CT{current.vmid}")

    def is_running(self, vmid: int) -> bool:
        """Whether the container runs (frozen counts)."""
        return running.is_running(vmid)

    def needs_local_work(self, folder: Path) -> str:
        """Copies of containers need a file system that keeps all attributes."""
        found = file_system(folder)
        return "" if found in _SHARED_WORK else f"filesystem type on dumpdir is '{found}'"

    def prepare(self, run: Run) -> None:
        """Choose the volumes and tell which."""
        self._options = lifecycle.options_of(run.config)
        self._ids = idmap.of(run.config.current, run.config.lxc)
        self._points, said = points(self._options)
        for line in said:
            joblog.info(line)
        if run.mode == "snapshot":
            raise ModeFailure("mode failure - some volumes do not support snapshots")

    def archive(self, run: Run) -> None:
        """Bring the container into the state that the mode asks for, and write the archive."""
        for pattern in tar.useless_excludes(run.settings.excludes):
            joblog.warn(f"exclude pattern '{pattern}' ends with a slash and matches nothing")
        run.hook("backup-start")
        if run.mode == "suspend":
            tree = self._copy_twice(run)
            self._pack(run, tree, ["./"], ())
            return
        if run.running:
            self._stop(run)
        with mounts.mounted(run.vmid, self._included(), self._ids) as tree:
            sources = [f"./{point.path.strip('/')}" for point in self._points]
            for source in sources:
                _tell_subvolumes(tree / source)
            self._pack(run, tree, sources, run.settings.excludes)

    # -- stop mode -------------------------------------------------------------------------------------------------

    def _stop(self, run: Run) -> None:
        joblog.info("stopping virtual guest")
        run.went_away()
        run.hook("pre-stop")
        run.journal.note(stopped=True)
        with lock.guest_lock(run.vmid):
            if running.is_running(run.vmid):
                lifecycle.halt(run.vmid, run.settings.options.stopwait * 60)

    def _included(self) -> LxcOptions:
        """The container's options with only those mount points that go into the archive."""
        chosen = {int(point.key[2:]) for point in self._points if point.key != "rootfs"}
        return self._options.replaced(mp={index: self._options.mp[index] for index in chosen} or None)

    # -- suspend mode ----------------------------------------------------------------------------------------------

    def _copy_twice(self, run: Run) -> Path:
        """Copy the running container's files, then once more while it is frozen."""
        tree = run.work / "tree"
        tree.mkdir()
        source = Path(f"/proc/{runtime.init_pid(run.vmid)}/root")
        for point in self._points:
            _tell_subvolumes(source / point.path.strip("/"))
        self._sync(run, source, tree, "first")
        joblog.info("suspending guest")
        run.went_away()
        run.hook("pre-stop")
        if runtime.state(run.vmid) != "FROZEN":
            self._frozen = True
            run.journal.note(suspended=True)
            runtime.freeze(run.vmid)
        self._sync(run, source, tree, "final")
        self._own_places(tree)
        joblog.info("resuming guest")
        run.hook("pre-restart")
        self._thaw(run)
        run.hook("post-restart")
        run.back_online()
        return tree

    def _own_places(self, tree: Path) -> None:
        """The running container has the kernel's file systems mounted here: give the bare folders back to its root."""
        for name in ("proc", "sys", "dev"):
            place = tree / name
            if place.is_dir() and not place.is_symlink():
                os.chown(place, *self._ids.root)
                place.chmod(0o755)

    def _thaw(self, run: Run) -> None:
        if self._frozen:
            runtime.thaw(run.vmid)
            self._frozen = False
            run.journal.note(suspended=False)

    def _sync(self, run: Run, source: Path, tree: Path, which: str) -> None:
        joblog.info(f"starting {which} sync {source}/ to {tree}")
        began = time.monotonic()
        try:
            joblog.logged(self._rsync(run, source, tree))
        except RunError as error:
            if error.code != _VANISHED:
                raise PveError(f"copying the container failed: rsync ended with status {error.code}") from error
        joblog.info(f"{which} sync finished ({round(time.monotonic() - began)} seconds)")

    def _rsync(self, run: Run, source: Path, tree: Path) -> list[str]:
        words = [
            "rsync", "--stats", "-h", "-aH", "--numeric-ids", "--delete", "--no-whole-file", "--sparse",
            "--one-file-system", "--relative", "--modify-window=-1",  # times are compared to the nanosecond
        ]  # fmt: skip
        if file_system(tree) in _NFS:
            joblog.info("temporary directory is on NFS, disabling xattr and acl support")
        else:
            words += ["-X", "-A"]
        if run.settings.options.bwlimit:
            words.append(f"--bwlimit={run.settings.options.bwlimit}")
        # they may lie on the file system of the root, as folders do
        left_out = {point.mp for point in self._options.mp.values()} - {point.path for point in self._points}
        words += [f"--exclude={_literal(path.rstrip('/'))}/*" for path in sorted(left_out)]
        words += [f"--exclude={pattern}" for pattern in run.settings.excludes]
        words += [f"{source}/.{point.path.rstrip('/')}/" for point in self._points]
        return [*words, str(tree)]

    # -- archive ---------------------------------------------------------------------------------------------------

    def _pack(self, run: Run, tree: Path, sources: list[str], excludes: tuple[str, ...]) -> None:
        """Write the archive: the configuration first, then the tree."""
        folder = self._config_folder(run)
        argv = tar.create_command(folder, tree, sources=sources, excludes=excludes, ids=self._ids)
        with run.output() as fd:
            limit = run.settings.options.bwlimit * 1024
            tar.create(fd, argv, limit=limit, log=joblog.info)

    def _config_folder(self, run: Run) -> Path:
        """The members ``etc/vzdump/pct.conf`` and ``pct.fw``, readable for the container's root."""
        folder = run.work / "config"
        inner = folder / "etc/vzdump"
        inner.mkdir(parents=True)
        rules = files.read_text(paths.firewall_config(run.vmid)) or ""
        for name, text in (("pct.conf", stored_config(run.config)), ("pct.fw", rules)):
            (inner / name).write_text(text, "utf-8", "surrogateescape")
        run.work.chmod(0o711)
        for path in (folder, folder / "etc", inner, inner / "pct.conf", inner / "pct.fw"):
            os.chown(path, *self._ids.root)
        return folder

    # -- afterwards ------------------------------------------------------------------------------------------------

    def restore_state(self, run: Run) -> None:
        """Start or thaw the container, where it was stopped or frozen for the backup."""
        if run.stopped_at is None:
            return
        run.hooks.try_call("pre-restart", run.mode, run.vmid)
        if self._frozen:
            joblog.info("resume vm")
            self._thaw(run)
        elif not running.is_running(run.vmid):
            joblog.info("restarting vm")
            lifecycle.start(run.vmid, skip_lock=True)
        run.hooks.try_call("post-restart", run.mode, run.vmid)
        run.back_online()

    def clean_up(self, left: Journal) -> None:
        """Thaw a container that a killed backup left frozen."""
        if left.suspended and running.is_running(left.vmid) and runtime.state(left.vmid) == "FROZEN":
            runtime.thaw(left.vmid)
