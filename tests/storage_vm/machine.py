"""The storage VM at work: resumes its saved state, runs commands in it, loses its power and boots again.

    with Machine(assets) as vm:
        vm.start()
        vm.run("lvs")
        vm.cut_power()
        vm.boot()

TCG only.  Disks: vda the system, vdb what is carried in, then DATA_DISKS empty ones that keep their
content over power cuts (/dev/disk/by-id/virtio-data0 ...).
"""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvetools.system.run import TIED
from tests.sandbox import cache
from tests.storage_vm import payload
from tests.storage_vm.build import Assets

DATA_DISKS = 7
DATA_SIZE = 6 << 30
PAYLOAD_SIZE = 96 << 20
MEMORY = 2048
APPEND = (
    "console=ttyS0 quiet mitigations=off nokaslr random.trust_cpu=on cryptomgr.notests audit=0 apparmor=0 "
    "no_timer_check tsc=reliable rcupdate.rcu_expedited=1 i8042.noaux i8042.nokbd systemd.show_status=0 "
    "net.ifnames=0 panic=-1"
)
# Started before the state is saved, so that no test waits for them.
WARM_UP = """
set -e
systemctl start rpcbind nfs-server smbd iscsid
modprobe -a nvmet nvmet-tcp nvme_tcp target_core_mod iscsi_target_mod target_core_iblock target_core_file iscsi_tcp \
    dm_multipath cifs nfsv3 nfsv4 xfs btrfs dm_thin_pool dm_snapshot dm_mirror raid1 zfs loop
pvs; lvs; zpool status; zfs list; qemu-img --version; targetcli ls; nvme version
python3 -m pytest --version
python3 -c 'import typer, rich, yaml, psutil'
udevadm settle
sync
"""


class Dead(AssertionError):
    """The VM ended, or does not answer any more; the message ends with its console."""


@dataclass(frozen=True)
class Done:
    """How a command in the VM ended; status -1: it took too long."""

    command: str
    status: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"in the VM: {self.command}\nstatus {self.status}\nstdout: {self.stdout}\nstderr: {self.stderr}"


class Request:
    """A command that runs in the VM; its lines and its end come through a queue."""

    def __init__(self, machine: Machine, number: int, command: str) -> None:
        self.machine = machine
        self.number = number
        self.command = command
        self.inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def messages(self, patience: float) -> Iterator[dict[str, Any]]:
        """What comes, to the end of the command; Dead when nothing comes for `patience` seconds."""
        while True:
            try:
                message = self.inbox.get(timeout=patience)
            except queue.Empty:
                raise Dead(f"{self.command}: nothing came for {patience:.0f} s\n{self.machine.console()}") from None
            if message is None:
                raise Dead(f"{self.command}: the VM ended\n{self.machine.console()}")
            yield message
            if "status" in message:
                return

    def wait(self, timeout: float) -> Done:
        """Its end."""
        for message in self.messages(timeout):
            if "status" in message:
                return Done(self.command, message["status"], message["stdout"], message["stderr"])
        raise AssertionError("unreachable")


class Machine:
    """One VM with its disks in a folder of its own."""

    def __init__(self, assets: Assets) -> None:
        self.assets = assets
        self.folder = Path(tempfile.mkdtemp(prefix="storagevm-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._requests: dict[int, Request] = {}
        self._number = 0
        self._lock = threading.Lock()
        for number in range(DATA_DISKS):
            _sparse(self.folder / f"data{number}", DATA_SIZE)
        _sparse(self.folder / "payload", PAYLOAD_SIZE)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Bring it up with this checkout in it: resume the saved state, which is made first where it is missing."""
        disk, state = saved(self.assets)
        _overlay(self.folder / "root.qcow2", disk, "qcow2")
        self._launch(["-incoming", f"exec:zstd -dcq {state}"])
        self._greet(60)
        self._set_clock()
        self.carry_in()

    def boot(self, timeout: float = 600) -> None:
        """Switch it on; what its disks hold is what it has."""
        self._launch([])
        self._greet(timeout)
        self._set_clock()
        self.run("udevadm settle", timeout=60)

    def cut_power(self) -> None:
        """It stops at once; what it had not written to its disks is lost."""
        process, self.process = self.process, None
        if process:
            process.kill()
            process.wait(20)
        if self._socket:
            self._socket.close()
            self._socket = None
        for request in self._requests.values():
            request.inbox.put(None)
        self._requests.clear()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def close(self) -> None:
        self.cut_power()
        shutil.rmtree(self.folder, ignore_errors=True)

    def console(self) -> str:
        """The end of what it said on its console."""
        path = self.folder / "console"
        said = path.read_bytes()[-3000:].decode(errors="replace") if path.exists() else ""
        noise = self.folder / "qemu.log"
        return f"console: {said}\nQEMU: {noise.read_text(errors='replace')[-1000:] if noise.exists() else ''}"

    # ------------------------------------------------------------ work

    def begin(
        self,
        command: str | Sequence[str],
        *,
        stdin: str = "",
        timeout: float = 120,
        lines: bool = False,
        environment: dict[str, str] | None = None,
        cwd: str = "/root",
    ) -> Request:
        """Start a command (a text is for the shell) and return at once."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        return self._ask(
            command if isinstance(command, str) else " ".join(command),
            op="run", argv=argv, input=stdin, timeout=timeout, lines=lines, env=environment or {}, cwd=cwd,
        )  # fmt: skip

    def run(self, command: str | Sequence[str], *, check: bool = True, timeout: float = 120, **options: Any) -> Done:
        """Run a command to its end; with `check`, a status other than 0 fails the test."""
        done = self.begin(command, timeout=timeout, **options).wait(timeout + 20)
        assert not check or done.status == 0, str(done)
        return done

    def carry_in(self) -> None:
        """Replace the checkout in the VM by this one."""
        self._unpack(payload.checkout, payload.CHECKOUT)

    def carry_assets(self) -> None:
        """Bring in what guests are made of, for tests that make some."""
        self._unpack(payload.assets, payload.ASSETS)

    def _unpack(self, pack: Any, place: str) -> None:
        disk = self.folder / "payload"
        with disk.open("r+b") as out:
            pack(out)
            assert out.tell() <= PAYLOAD_SIZE, f"{out.tell()} bytes do not fit on the disk that carries them in"
        # the VM may remember what lay there before
        self.run(
            f"blockdev --flushbufs /dev/vdb; rm -rf {place}; mkdir -p {place}; tar -C {place} -xf /dev/vdb; sync",
            timeout=400,
        )

    # ------------------------------------------------------------ QEMU

    def _launch(self, extra: list[str]) -> None:
        assert not self.alive(), "the VM is up already"
        for name in ("qmp", "agent"):
            (self.folder / name).unlink(missing_ok=True)
        with (self.folder / "qemu.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*TIED, *arguments(self.folder, self.assets), *extra],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest
            )  # fmt: skip

    def _connect(self, name: str, timeout: float) -> socket.socket:
        deadline = time.monotonic() + timeout
        while True:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.connect(str(self.folder / name))
                return made
            except OSError as error:
                made.close()
                if not self.alive() or time.monotonic() > deadline:
                    raise Dead(f"no socket '{name}' of the VM: {error}\n{self.console()}") from None
                time.sleep(0.05)

    def _greet(self, timeout: float) -> None:
        """Wait until the agent answers."""
        deadline = time.monotonic() + timeout
        self._socket = self._connect("agent", 20)
        threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()
        while True:
            request = self._ask("greeting", op="hello")
            with contextlib.suppress(queue.Empty):
                if request.inbox.get(timeout=1) is not None:
                    return
            if not self.alive() or time.monotonic() > deadline:
                raise Dead(f"the agent of the VM did not answer within {timeout:.0f} s\n{self.console()}")

    def _set_clock(self) -> None:
        self._ask("clock", op="clock", now=time.time()).wait(20)

    def _ask(self, command: str, **message: Any) -> Request:
        with self._lock:
            self._number += 1
            request = Request(self, self._number, command)
            self._requests[request.number] = request
            data = json.dumps({"id": request.number, **message}).encode() + b"\n"
            if self._socket is None:
                raise Dead(f"{command}: the VM is off")
            try:
                self._socket.sendall(data)
            except OSError as error:
                raise Dead(f"{command}: {error}\n{self.console()}") from None
        return request

    def kill(self, request: Request) -> None:
        """End a command and all processes of its session's group."""
        self._ask("kill", op="kill", target=request.number).wait(20)

    def _listen(self, port: socket.socket) -> None:
        pending = b""
        while True:
            try:
                data = port.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                for request in list(self._requests.values()):
                    request.inbox.put(None)
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError, KeyError):  # the answer to a greeting that was given up
                    message = json.loads(line)
                    request = self._requests[message["id"]]
                    if "line" not in message:
                        self._requests.pop(message["id"], None)
                    request.inbox.put(message)

    # ------------------------------------------------------------ the saved state

    def save(self, state: Path) -> None:
        """Write memory and devices to a file and end."""
        self._socket, port = None, self._socket
        if port:
            port.close()
        with Monitor(self._connect("qmp", 20)) as monitor:
            monitor.ask("migrate-set-parameters", {"max-bandwidth": 1 << 40, "downtime-limit": 600000})
            monitor.ask("migrate", {"uri": f"exec:zstd -q -3 -c > {state}"})
            deadline = time.monotonic() + 300
            while (status := monitor.ask("query-migrate").get("status")) != "completed":
                if status == "failed" or time.monotonic() > deadline:
                    raise Dead(f"saving the state of the VM: {status}")
                time.sleep(0.2)
            monitor.ask("quit")
        if self.process:
            self.process.wait(30)
            self.process = None

    def prepare(self) -> None:
        """First boot: carry in the Python packages and this checkout, start the servers."""
        self.boot()
        self._unpack(payload.packages, payload.PACKAGES)
        self.run(["tee", payload.PTH], stdin=payload.PTH_TEXT)
        self.carry_in()
        self.run(WARM_UP, timeout=1200)


def arguments(folder: Path, assets: Assets) -> list[str]:
    """The command line; a saved state fits this one alone.

    Tests run one after the other, and one processor without AVX is what TCG is fastest at: two thirds of the time that
    two with everything take.
    """
    disks = [("root.qcow2", "qcow2", "root"), ("payload", "raw", "payload")]
    disks += [(f"data{number}", "raw", f"data{number}") for number in range(DATA_DISKS)]
    words = [
        "qemu-system-x86_64", "-name", "storagevm", "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "Nehalem",
        "-smp", "1", "-m", str(MEMORY), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(assets.vmlinuz), "-initrd", str(assets.initrd), "-append", APPEND,
        "-chardev", f"file,id=console,path={folder}/console,append=on", "-serial", "chardev:console",
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=pvetools",
    ]  # fmt: skip
    for name, form, serial in disks:
        drive = f"if=none,id={serial},file={folder}/{name},format={form},cache=unsafe,discard=unmap,aio=threads"
        words += ["-drive", drive, "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
    return words


class Monitor:
    """QEMU's machine protocol."""

    def __init__(self, port: socket.socket) -> None:
        self.port = port
        self.port.settimeout(60)
        self.file = port.makefile("rb")
        self.file.readline()
        self.ask("qmp_capabilities")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.port.close()

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        self.port.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n")
        while line := self.file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise Dead(f"QEMU: {command}: {answer['error']['desc']}")
            if "return" in answer:
                found: dict[str, Any] = answer["return"]
                return found
        raise Dead(f"QEMU: {command}: no answer")


def saved(assets: Assets) -> tuple[Path, Path]:
    """The disk and the state of a VM that is up, from the cache or made now (a minute)."""
    version = cache.run(["qemu-system-x86_64", "--version"])
    tag = cache.key(
        assets.tag, version, WARM_UP, f"{DATA_SIZE} {PAYLOAD_SIZE}", payload.fingerprint(), str(cache.directory()),
        *arguments(Path("/"), assets),
    )  # fmt: skip
    kind = f"{assets.disk.name.split('_', 1)[0].replace('disk', 'saved')}_{tag}"
    disk = cache.directory() / f"{kind}_amd64.qcow2"

    def make(target: Path, workspace: Path) -> None:
        made = workspace / "disk.qcow2"
        with Machine(assets) as machine:
            _overlay(machine.folder / "root.qcow2", assets.disk, "raw")
            machine.prepare()
            machine.save(target)
            shutil.copy(machine.folder / "root.qcow2", made)
        made.rename(disk)

    return disk, cache.obtain(f"{kind}_amd64.state.zst", make)


def _overlay(path: Path, base: Path, form: str) -> None:
    path.unlink(missing_ok=True)
    cache.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.resolve(), "-F", form, path])


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
