"""A real Ceph cluster of one node that keeps all in memory: monitor, manager, storage daemon, with authentication.

`make` starts it in a folder and ends it with the block.  It needs root and a loopback network of its own.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-authtool", "monmaptool", "rbd")
PATIENCE = 200  # seconds for anything that the cluster does
MONITOR = "127.0.0.1"
MODULES = Path("/usr/share/ceph/mgr")
_CONFIG = """\
[global]
fsid = {fsid}
mon_host = [v2:{monitor}:3300,v1:{monitor}:6789]
mon_initial_members = a
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {folder}/$name.keyring
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
run_dir = {folder}
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
crash_dir = {folder}/crash
mon_data = {folder}/mon.$id
mgr_data = {folder}/mgr.$id
osd_data = {folder}/osd.$id
mds_data = {folder}/mds.$id
osd_objectstore = memstore
osd_class_dir = {classes}
memstore_device_bytes = {size}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_memory_target = 939524096
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
auth_allow_insecure_global_id_reclaim = false
mon_data_avail_crit = 1
mon_data_avail_warn = 1
mgr_initial_modules =
mgr_module_path = {folder}/modules
mon_max_pg_per_osd = 1000
"""


def missing() -> str:
    """A program of Ceph that is not installed; empty when all are there."""
    return next((tool for tool in TOOLS if shutil.which(tool) is None), "")


@dataclass
class Cluster:
    """A cluster that runs."""

    folder: Path
    fsid: str
    link: Any = None  # a connection that is held while much is asked

    @property
    def config(self) -> Path:
        return self.folder / "ceph.conf"

    def keyring(self, user: str = "admin") -> Path:
        return self.folder / f"client.{user}.keyring"

    def run(self, *words: object, check: bool = True) -> str:
        """Run `rbd`, `rados`, ... as the administrator."""
        tool, *rest = map(str, words)
        done = subprocess.run(
            [tool, "--conf", self.config, *rest], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, command: str, given: bytes = b"", **arguments: object) -> str:
        """What the monitor answers to a command; the program `ceph` takes many times as long."""
        with self.connected() as link:
            code, out, said = link.mon_command(json.dumps({"prefix": command, **arguments}), given)
        assert code == 0, f"{command} {arguments}: {code} {said}"
        return str(out.decode())

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """The connection that is held, or one for the block."""
        if self.link:
            yield self.link
            return
        import rados

        self.link = rados.Rados(conffile=str(self.config), name="client.admin")
        try:
            self.link.connect(timeout=PATIENCE)
            yield self.link
        finally:
            self.link.shutdown()  # its threads and forks of this process don't go together
            self.link = None

    def add_user(self, name: str, *caps: str) -> Path:
        """A user with capabilities such as `mon`, `profile rbd`; gives its keyring."""
        self.keyring(name).write_text(self.ask("auth get-or-create", entity=f"client.{name}", caps=caps))
        return self.keyring(name)

    def add_daemon(self, kind: str, name: str, *caps: str) -> None:
        """A daemon's folder and key."""
        (self.folder / f"{kind}.{name}").mkdir()
        keyring = self.folder / f"{kind}.{name}.keyring"
        keyring.write_text(self.ask("auth get-or-create", entity=f"{kind}.{name}", caps=caps))

    def add_pool(self, name: str, application: str = "rbd") -> None:
        self.ask("osd pool create", pool=name)
        self.ask("osd pool application enable", pool=name, app=application)
        self.wait("the cluster knows how full the pool is", "df", holds=f"{name} ")

    def add_file_system(self, name: str) -> None:
        """A file system with pools of its own."""
        for pool in (f"{name}-meta", f"{name}-data"):
            self.ask("osd pool create", pool=pool)
        self.ask("fs new", fs_name=name, metadata=f"{name}-meta", data=f"{name}-data")

    def wait(self, what: str, command: str, holds: str) -> None:
        """Wait until an answer holds a text."""
        deadline = time.monotonic() + PATIENCE
        while holds not in (said := self.ask(command)):
            assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}: {said}"
            time.sleep(0.1)


@contextlib.contextmanager
def make(folder: Path, size: int = 1 << 30, monitor: str = MONITOR) -> Iterator[Cluster]:
    """A cluster with room for `size` bytes, up and answering; without pools."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder, str(uuid.uuid4()))
    # the built-in place of Debian 13's package means something in the root directory only
    classes = next(Path("/usr/lib").glob("*/rados-classes"))
    cluster.config.write_text(
        _CONFIG.format(folder=folder, fsid=cluster.fsid, size=size, monitor=monitor, classes=classes)
    )
    with contextlib.ExitStack() as stack:
        _start_monitor(cluster, stack, monitor)
        with cluster.connected():
            _start_manager(cluster, stack)
            _start_store(cluster, stack)
            cluster.wait("the store is up", "osd stat", holds="1 up")
            cluster.wait("the manager is active", "mgr stat", holds='"available": true')
        yield cluster


def _tool(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"


def daemon(cluster: Cluster, stack: contextlib.ExitStack, kind: str, name: str) -> None:
    """Start a daemon in the foreground of a process of ours, which ends with the block."""
    log = (cluster.folder / f"{kind}.{name}.out").open("wb")
    stack.callback(log.close)
    process = subprocess.Popen(
        [f"ceph-{kind}", "--conf", cluster.config, "-i", name, "-f"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # what it keeps is in memory anyway
    process.wait(30)


def _start_monitor(cluster: Cluster, stack: contextlib.ExitStack, monitor: str) -> None:
    folder = cluster.folder
    keys, admin, chart = folder / "mon.keyring", cluster.keyring(), folder / "monmap"
    caps = [word for daemon in ("mon", "osd", "mds", "mgr") for word in ("--cap", daemon, "allow *")]
    _tool("ceph-authtool", "--create-keyring", admin, "--gen-key", "-n", "client.admin", *caps)
    _tool("ceph-authtool", "--create-keyring", keys, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    _tool("ceph-authtool", keys, "--import-keyring", admin)
    address = f"[v2:{monitor}:3300,v1:{monitor}:6789]"
    _tool("monmaptool", "--create", "--clobber", "--addv", "a", address, "--fsid", cluster.fsid, chart)
    _tool("ceph-mon", "--conf", cluster.config, "--mkfs", "-i", "a", "--monmap", chart, "--keyring", keys)
    shutil.copy(keys, folder / "mon.a.keyring")
    daemon(cluster, stack, "mon", "a")


def _start_manager(cluster: Cluster, stack: contextlib.ExitStack) -> None:
    """The manager, with hardly any of its modules: all of them take long to load."""
    (cluster.folder / "modules").mkdir()
    for path in (*MODULES.glob("*.py"), MODULES / "status"):
        (cluster.folder / "modules" / path.name).symlink_to(path)
    cluster.add_daemon("mgr", "a", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *")
    daemon(cluster, stack, "mgr", "a")


def _start_store(cluster: Cluster, stack: contextlib.ExitStack) -> None:
    ident = str(uuid.uuid4())
    cluster.ask("osd new", uuid=ident, id=0)
    cluster.add_daemon("osd", "0", "mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *")
    _tool("ceph-osd", "--conf", cluster.config, "-i", "0", "--mkfs", "--osd-uuid", ident)
    daemon(cluster, stack, "osd", "0")
