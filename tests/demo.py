"""The demo: a VM and a container made, run, backed up, destroyed, restored and compared, for real.

`make demo` runs it in the sandbox.  Each command is shown as a user would type it, with its real
output.  Status 1 when a step failed; the steps after it are not run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.sandbox import enter, image, template
from tests.sandbox.root import Root, fresh
from tests.sandbox.serial import Serial

VM, CT = 100, 101
VM_ADDRESS, CT_ADDRESS = "10.99.0.100/24", "10.99.0.101/24"
DATA_BYTES = 4 * 1024 * 1024
BOOT_TIMEOUT = 120
BOLD, GREEN, RED, PLAIN = ("\033[1m", "\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("",) * 4


class StepFailed(Exception):
    """A step did not do what it should; the sentence says what."""


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass
class Step:
    """One line of the summary."""

    name: str
    work: Callable[[], None]
    seconds: float | None = None
    problem: str | None = None

    @property
    def outcome(self) -> str:
        if self.seconds is None:
            return "not run"
        return f"FAILED: {self.problem}" if self.problem else "ok"


@dataclass
class Demo:
    """The state that the steps hand on: serial connection, checksums, archives."""

    root: Root
    sums: dict[int, str] = field(default_factory=dict)
    archives: dict[int, str] = field(default_factory=dict)
    port: Serial | None = None

    def run(self, tool: str, *arguments: object, shown: str | None = None) -> str:
        """Show and run a tool; its output appears as it comes and is returned.

        Raises StepFailed when the tool's status is not 0.
        """
        words = [tool, *map(str, arguments)]
        say(f"\n{BOLD}# {shown or ' '.join(word if word and ' ' not in word else repr(word) for word in words)}{PLAIN}")
        lines = []
        with self.root.spawn(
            tool,
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child:
            for line in child.stdout or ():
                lines.append(line)
                say(line.rstrip("\n"))
        if child.returncode:
            raise StepFailed(f"{tool} {words[1] if len(words) > 1 else ''} ended with status {child.returncode}")
        return "".join(lines)

    def guest(self, command: str, timeout: float = 60) -> str:
        """Show and run a command on the VM's serial console."""
        assert self.port is not None
        say(f"\n{BOLD}[VM {VM}, serial console] # {command}{PLAIN}")
        output = self.port.run(command, timeout)
        say(output)
        return output

    def expect(self, condition: object, what: str) -> None:
        if not condition:
            raise StepFailed(what)

    # ------------------------------------------------------------ the steps

    def create_vm(self) -> None:
        disk = image.newest("generic")
        say(f"The image was made of the distribution's kernel, busybox and syslinux: {disk.name}")
        self.run(
            "qm", "create", VM, "--name", "web", "--memory", 256, "--scsi0", f"local:0,import-from={disk}",
            "--net0", "virtio,bridge=vmbr0", "--serial0", "socket", "--kvm", 0,
        )  # fmt: skip

    def start_vm(self) -> None:
        self.run("qm", "start", VM)
        self.connect()
        self.guest("uname -sr; cat /proc/cmdline | cut -c1-60")

    def connect(self) -> None:
        say(f"... waiting for the guest's user land on its serial port (up to {BOOT_TIMEOUT} s)")
        self.port = self.root.serial(VM)
        start = time.monotonic()
        self.port.wait_booted(BOOT_TIMEOUT)
        say(f"the guest says: {image.MARKER} ({time.monotonic() - start:.1f} s)")
        self.port.wait_ready(30)

    def look_at_vm(self) -> None:
        self.expect("status: running" in self.run("qm", "status", VM, "--verbose"), f"VM {VM} is not running")
        self.expect("web" in self.run("qm", "list"), "qm list does not show the VM")
        self.guest(f"ip address add {VM_ADDRESS} dev eth0; ip -o -4 address show eth0")
        self.ping(VM_ADDRESS)

    def ping(self, address: str) -> None:
        host = address.partition("/")[0]
        say(f"\n{BOLD}# ping -c 1 {host}{PLAIN}")
        deadline = time.monotonic() + 20
        while True:
            done = subprocess.run(["busybox", "ping", "-c1", "-W1", host], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                say(done.stdout.strip())
                return
            self.expect(time.monotonic() < deadline, f"{host} does not answer on {enter.BRIDGE}")
            time.sleep(0.1)

    def create_ct(self) -> None:
        source = template.debian()
        cached = self.root / "var/lib/vz/template/cache" / source.name
        shutil.copy(source, cached)
        self.run(
            "pct", "create", CT, f"local:vztmpl/{source.name}", "--hostname", "ct", "--memory", 256,
            "--net0", f"name=eth0,bridge=vmbr0,ip={CT_ADDRESS}", "--unprivileged", 1,
        )  # fmt: skip

    def start_ct(self) -> None:
        self.run("pct", "start", CT)
        released = self.run("pct", "exec", CT, "--", "cat", "/etc/os-release")
        self.expect(f"ID={template.release()['ID']}" in released, "the container does not tell its release")
        self.expect("running" in self.run("pct", "list"), "pct list does not show a running container")
        self.ping(CT_ADDRESS)

    def write_data(self) -> None:
        self.guest(f"head -c {DATA_BYTES} /dev/urandom > /data/known; sync", 120)
        self.sums[VM] = self.vm_sum()
        script = f"head -c {DATA_BYTES} /dev/urandom > /root/known; sync"
        self.run("pct", "exec", CT, "--", "sh", "-c", script)
        self.sums[CT] = self.ct_sum()

    def vm_sum(self) -> str:
        return self.guest("sha256sum /data/known").split()[0]

    def ct_sum(self) -> str:
        return self.run("pct", "exec", CT, "--", "sha256sum", "/root/known").split()[0]

    def back_up(self) -> None:
        self.run("vzdump", VM, CT, "--mode", "snapshot", "--compress", "zstd", "--storage", "local")
        for vmid, pattern in ((VM, f"vzdump-qemu-{VM}-*.vma.zst"), (CT, f"vzdump-lxc-{CT}-*.tar.zst")):
            found = list((self.root / "var/lib/vz/dump").glob(pattern))
            self.expect(len(found) == 1, f"expected one archive {pattern}, found {len(found)}")
            self.archives[vmid] = f"local:backup/{found[0].name}"

    def destroy(self) -> None:
        self.hang_up()
        self.run("qm", "stop", VM)
        self.run("qm", "destroy", VM)
        self.run("pct", "stop", CT)
        self.run("pct", "destroy", CT)
        left = [
            str(path) for kind in ("images", "private") for path in (self.root / f"var/lib/vz/{kind}").rglob("*-disk-*")
        ]
        self.expect(not left, f"volumes are left: {left}")

    def restore(self) -> None:
        self.run("qmrestore", self.archives[VM], VM)
        self.run("pct", "restore", CT, self.archives[CT])

    def start_again(self) -> None:
        self.run("qm", "start", VM)
        self.connect()
        self.run("pct", "start", CT)

    def compare(self) -> None:
        now = {VM: self.vm_sum(), CT: self.ct_sum()}
        say()
        for vmid in (VM, CT):
            same = "identical" if now[vmid] == self.sums[vmid] else "DIFFERENT"
            say(f"guest {vmid}: before {self.sums[vmid]}\n{'':11}after  {now[vmid]}  {same}")
        self.expect(now == self.sums, "restored data differs from what was written")

    def look_around(self) -> None:
        self.expect("local" in self.run("pvesm", "status"), "pvesm status does not show the storage")
        listed = self.run("pvesm", "list", "local")
        self.expect(all(name in listed for name in self.archives.values()), "pvesm list does not show the archives")
        self.expect("vzdump" in self.run("pvesh", "get", "/nodes/localhost/tasks"), "the task list lacks the backup")

    def stop(self) -> None:
        self.hang_up()
        self.run("qm", "shutdown", VM, "--timeout", 60)
        self.run("pct", "stop", CT)
        self.run("qm", "destroy", VM)
        self.run("pct", "destroy", CT)

    def nothing_left(self) -> None:
        deadline = time.monotonic() + 10
        while (left := self.root.running()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.expect(not left, f"still there: {left}")
        say("no domain, container, process, mount, network link or loop device is left")

    def hang_up(self) -> None:
        if self.port is not None:
            self.port.close()
            self.port = None

    def steps(self) -> Iterator[Step]:
        yield Step("create a VM from an image", self.create_vm)
        yield Step("start it, wait for its user land", self.start_vm)
        yield Step("status, list, network of the VM", self.look_at_vm)
        yield Step("create a container from a template", self.create_ct)
        yield Step("start it, run a command in it", self.start_ct)
        yield Step("write known data in both", self.write_data)
        yield Step("back up both while they run", self.back_up)
        yield Step("destroy both", self.destroy)
        yield Step("restore both", self.restore)
        yield Step("start both again", self.start_again)
        yield Step("compare the data bit for bit", self.compare)
        yield Step("storage and tasks", self.look_around)
        yield Step("stop and destroy everything", self.stop)
        yield Step("nothing is left", self.nothing_left)


def perform(steps: list[Step]) -> bool:
    """Do the steps in order until one fails."""
    for number, step in enumerate(steps, 1):
        say(f"\n{BOLD}=== {number}/{len(steps)} {step.name} ==={PLAIN}")
        start = time.monotonic()
        try:
            step.work()
        except (StepFailed, AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            step.problem = str(error)
            say(f"{RED}{step.problem}{PLAIN}")
        step.seconds = time.monotonic() - start
        if step.problem:
            return False
    return True


def summary(steps: list[Step]) -> None:
    say(f"\n{BOLD}{'step':<40} {'seconds':>8}  result{PLAIN}")
    for step in steps:
        seconds = "" if step.seconds is None else f"{step.seconds:.1f}"
        colour = GREEN if step.outcome == "ok" else RED
        say(f"{step.name:<40} {seconds:>8}  {colour}{step.outcome.splitlines()[0][:200]}{PLAIN}")
    say(f"{'total':<40} {sum(step.seconds or 0 for step in steps):>8.1f}")


@contextmanager
def demo() -> Iterator[Demo]:
    with fresh() as root:
        shown = Demo(root)
        try:
            yield shown
        finally:
            shown.hang_up()


def main() -> int:
    if not enter.inside():
        sys.stderr.write("the demo runs in the sandbox only: make demo\n")
        return 1
    with demo() as shown:
        steps = list(shown.steps())
        done = perform(steps)
    summary(steps)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
