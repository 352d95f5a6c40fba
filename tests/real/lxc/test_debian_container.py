"""A real Debian in an unprivileged container: what is inside is what was asked for."""

from __future__ import annotations

import ctypes
import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pvetools.guest.lxc import host
from tests.real.lxc.conftest import ADDRESS, KEY, PASSWORD, until
from tests.sandbox.root import Root


def inside(root: Root, *command: str) -> str:
    return root.cli("pct", "exec", 101, "--", *command, ok=True).stdout


def config(root: Root) -> dict[str, str]:
    lines = root.cli("pct", "config", 101, ok=True).stdout.splitlines()
    return {key: value for key, _, value in (line.partition(": ") for line in lines)}


def limit(root: Root, monkeypatch: pytest.MonkeyPatch, one: str, two: str) -> str:
    """A limit of the kernel for container 101, under its name in version 1 or 2 of control groups."""
    monkeypatch.setenv("PVETOOLS_ROOT", str(root.path))
    controller, _, file = (one if host.cgroup_version() == 1 else two).partition("/")
    return (host.group_path(101, controller) / file).read_text().strip()


def test_what_was_found_out_stands_in_the_configuration(debian: Root) -> None:
    found = config(debian)
    assert found["ostype"] == "debian"
    assert found["arch"] == {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    assert found["unprivileged"] == "1"
    assert found["rootfs"] == "local:101/vm-101-disk-0.raw,size=1G"
    assert "hwaddr=BC:24:11:" in found["net0"]
    assert "password" not in debian.config(101).read_text() and PASSWORD not in debian.config(101).read_text()


def test_it_is_listed(debian: Root) -> None:
    head, line = debian.cli("pct", "list", ok=True).stdout.splitlines()
    assert head.split() == ["VMID", "Status", "Lock", "Name"]
    assert line.split() == ["101", "running", "web.example.org"]
    assert debian.cli("pct", "status", 101, ok=True).stdout == "status: running\n"


def test_its_users_are_powerless_ones_of_the_host(debian: Root) -> None:
    assert inside(debian, "cat", "/proc/self/uid_map").split() == ["0", "100000", "65536"]
    assert inside(debian, "stat", "-c", "%u", "/etc/hostname", "/etc/shadow", "/").split() == ["0", "0", "0"]


def test_names_and_servers_are_written(debian: Root) -> None:
    assert inside(debian, "hostname") == "web\n"
    assert f"{ADDRESS} web.example.org web\n" in inside(debian, "cat", "/etc/hosts")
    assert "nameserver 9.9.9.9\n" in inside(debian, "cat", "/etc/resolv.conf")


def test_its_address_answers_from_the_bridge(debian: Root) -> None:
    tool = ["ping"] if shutil.which("ping") else ["busybox", "ping"]
    until(lambda: not subprocess.run([*tool, "-c1", "-W1", ADDRESS], capture_output=True).returncode, "an answer")
    assert "default via 10.99.0.1 dev eth0" in inside(debian, "ip", "route")


def test_interfaces_are_told_with_their_addresses(debian: Root) -> None:
    until(lambda: ADDRESS in inside(debian, "ip", "address"), "the address")
    shown = json.loads(debian.cli("pvesh", "get", "/nodes/localhost/lxc/101/interfaces", "--output-format", "json",
                                  ok=True).stdout)  # fmt: skip
    eth0 = next(row for row in shown if row["name"] == "eth0")
    assert eth0["inet"] == f"{ADDRESS}/24"
    assert eth0["hwaddr"].upper() in config(debian)["net0"]


def test_limits_are_those_of_the_kernel(debian: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(one: str, two: str) -> str:
        return limit(debian, monkeypatch, one, two)

    assert said("memory/memory.limit_in_bytes", "memory/memory.max") == str(128 << 20)
    assert said("cpu/cpu.cfs_quota_us", "cpu/cpu.max").split()[0] == "50000"
    assert said("cpu/cpu.shares", "cpu/cpu.weight") == "300"
    assert inside(debian, "nproc") == "1\n"


def test_limits_change_while_it_runs(debian: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, swap in ((256, 0), (96, 512), (128, 64)):
        debian.cli("pct", "set", 101, "--memory", memory, "--swap", swap, "--cpulimit", "0.7", ok=True)
        assert limit(debian, monkeypatch, "memory/memory.limit_in_bytes", "memory/memory.max") == str(memory << 20)
        total = limit(debian, monkeypatch, "memory/memory.memsw.limit_in_bytes", "memory/memory.swap.max")
        assert total == str((memory + swap if host.cgroup_version() == 1 else swap) << 20)
        assert limit(debian, monkeypatch, "cpu/cpu.cfs_quota_us", "cpu/cpu.max").split()[0] == "70000"
    debian.cli("pct", "set", 101, "--cores", os.cpu_count(), ok=True)
    assert inside(debian, "nproc") == f"{len(os.sched_getaffinity(0))}\n"
    debian.cli("pct", "set", 101, "--cores", 1, "--cpulimit", "0.5", ok=True)
    assert inside(debian, "nproc") == "1\n"
    assert "new " not in debian.cli("pct", "pending", 101, ok=True).stdout


def test_the_limit_of_memory_is_felt(debian: Root) -> None:
    hungry = debian.cli("pct", "exec", 101, "--", "sh", "-c", "head -c 400M /dev/zero | tail >/dev/null", timeout=60)
    assert hungry.status != 0  # killed for taking more than it has
    assert inside(debian, "true") == ""


def test_what_needs_a_restart_stays_pending_and_can_be_dropped(debian: Root) -> None:
    debian.cli("pct", "set", 101, "--timezone", "UTC", "--delete", "nameserver", ok=True)
    pending = debian.cli("pct", "pending", 101, ok=True).stdout.splitlines()
    assert "new timezone: UTC" in pending and "del nameserver: 9.9.9.9" in pending
    assert "nameserver: 9.9.9.9" in debian.cli("pct", "config", 101, "--current", ok=True).stdout
    debian.cli("pct", "set", 101, "--revert", "timezone,nameserver", ok=True)
    assert "[pve:pending]" not in debian.config(101).read_text()


def test_a_pulled_cable_is_seen_inside(debian: Root) -> None:
    net0 = config(debian)["net0"]

    def carrier() -> str:
        return inside(debian, "cat", "/sys/class/net/eth0/carrier").strip()

    assert carrier() == "1"
    debian.cli("pct", "set", 101, "--net0", f"{net0},link_down=1", ok=True)
    assert carrier() == "0"
    debian.cli("pct", "set", 101, "--net0", net0, ok=True)
    until(lambda: carrier() == "1", "a carrier")
    assert "new " not in debian.cli("pct", "pending", 101, ok=True).stdout


def test_root_has_the_password_and_the_keys(debian: Root) -> None:
    line = inside(debian, "head", "-1", "/etc/shadow")
    hashed = line.split(":")[1].encode()
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    assert crypt(PASSWORD.encode(), hashed) == hashed
    assert KEY in inside(debian, "cat", "/root/.ssh/authorized_keys").splitlines()
    modes = inside(debian, "stat", "-c", "%a", "/root/.ssh", "/root/.ssh/authorized_keys").split()
    assert modes == ["700", "600"]


# -- commands, files, consoles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("nosuchcommand", 127)]
)
def test_the_exit_status_of_a_command_passes_through(debian: Root, command: str, status: int) -> None:
    assert debian.cli("pct", "exec", 101, "--", "sh", "-c", command).status == status


def test_a_commands_input_and_both_outputs_are_ours(debian: Root) -> None:
    done = debian.cli("pct", "exec", 101, "--", "sh", "-c", "cat; echo err >&2", stdin=b"in\x00\xff\n".decode("latin1"))
    assert done.stdout == "in\x00\xc3\xbf\n".encode("latin1").decode()
    assert done.stderr == "err\n"


def test_the_callers_environment_comes_along_unless_asked_otherwise(
    debian: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_WORD", "hello")
    assert "MY_WORD=hello" in inside(debian, "env")
    cleared = debian.cli("pct", "exec", 101, "--keep-env", 0, "--", "env", ok=True).stdout
    assert "MY_WORD" not in cleared and "container=lxc" in cleared


def test_files_are_pushed_and_pulled_with_owner_and_mode(debian: Root, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    debian.cli("pct", "push", 101, tmp_path / "in", "/var/tmp/f", "--perms", "0640", "--user", "daemon",
               "--group", "4", ok=True)  # fmt: skip
    assert inside(debian, "stat", "-c", "%a %U %g %s", "/var/tmp/f").split() == ["640", "daemon", "4", "300000"]
    debian.cli("pct", "pull", 101, "/var/tmp/f", tmp_path / "out", "--perms", "600", ok=True)
    found = (tmp_path / "out").stat()
    assert (tmp_path / "out").read_bytes() == data
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, 0)


def test_links_of_the_container_do_not_lead_to_the_host(debian: Root, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    inside(debian, "sh", "-c", f"ln -sfn {tmp_path} /tmp/out; ln -sfn /proc/1/root/etc/shadow /tmp/magic")
    assert debian.cli("pct", "pull", 101, "/tmp/out/secret", tmp_path / "got").status != 0
    assert debian.cli("pct", "push", 101, tmp_path / "secret", "/tmp/out/pushed").status != 0
    assert not (tmp_path / "pushed").exists() and not (tmp_path / "got").exists()
    debian.cli("pct", "pull", 101, "/tmp/magic", tmp_path / "got")
    assert not (tmp_path / "got").exists() or "root:$6$" in (tmp_path / "got").read_text()  # never the host's


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pull", 101, "/nothing", "{tmp}/x"], "no such file in the container: '/nothing'"),
        (["pull", 101, "/etc", "{tmp}/x"], "'/etc' in the container is not a regular file"),
        (["pull", 101, "etc/hostname", "{tmp}/x"], "'etc/hostname' in the container is not absolute"),
        (["pull", 101, "/etc/hostname", "{tmp}/no/x"], "can't write '{tmp}/no/x': No such file or directory"),
        (["push", 101, "{tmp}/no", "/tmp/x"], "can't read '{tmp}/no': No such file or directory"),
        (["push", 101, "/etc/hostname", "/no/x"], "no directory in the container for '/no/x'"),
        (["push", 101, "/etc/hostname", "/tmp/x", "--user", "nobodyhere"], "no user 'nobodyhere'"),
        (["push", 101, "/etc/hostname", "/tmp/x", "--user", "70000"], "uid 70000 is not mapped into the container"),
        (["push", 101, "/etc/hostname", "/tmp/x", "--perms", "rw"], "invalid permissions 'rw'"),
    ],
)
def test_copies_that_cannot_be_made_say_why(debian: Root, tmp_path: Path, words: list[object], message: str) -> None:
    done = debian.cli("pct", *(str(word).format(tmp=tmp_path) for word in words))
    assert done.status != 0
    assert message.format(tmp=tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_df_shows_volumes(debian: Root) -> None:
    head, line = debian.cli("pct", "df", 101, ok=True).stdout.splitlines()
    assert head.split() == ["MP", "Volume", "Size", "Used", "Avail", "Use%", "Path"]
    assert line.split()[:2] == ["rootfs", "local:101/vm-101-disk-0.raw"]
    assert line.split()[-1] == "/"


def test_status_tells_what_it_uses(debian: Root) -> None:
    shown = json.loads(debian.cli("pvesh", "get", "/nodes/localhost/lxc/101/status/current", "--output-format", "json",
                                  ok=True).stdout)  # fmt: skip
    assert shown["status"] == "running" and shown["name"] == "web.example.org"
    assert 0 < shown["mem"] < shown["maxmem"] == 128 << 20
    assert 20 << 20 < shown["disk"] < shown["maxdisk"] <= 1 << 30
    assert shown["uptime"] >= 0 and shown["netin"] > 0
    assert inside(debian, "true") == "" and Path(f"/proc/{shown['pid']}/root/etc/debian_version").exists()
    verbose = debian.cli("pct", "status", 101, "--verbose", ok=True).stdout.splitlines()
    assert "status: running" in verbose and f"maxmem: {128 << 20}" in verbose


class Terminal:
    """A tool on a terminal of its own."""

    def __init__(self, root: Root, *words: object) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            argv = root.argv("pct", *words)
            os.execve(argv[0], argv, root.environment() | {"TERM": "dumb"})
        self.seen = b""

    def say(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, what: str, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while what.encode() not in self.seen:
            assert select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))[0], (what, self.seen)
            self.seen += os.read(self.fd, 4096)
        self.seen = self.seen.partition(what.encode())[2]

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_root_logs_in_on_the_console_and_leaves_it(debian: Root) -> None:
    terminal = Terminal(debian, "console", 101)
    terminal.expect("exit the console")
    terminal.say("\n")
    terminal.expect("login: ")
    terminal.say("root\n")
    terminal.expect("assword: ")
    terminal.say(f"{PASSWORD}\n")
    terminal.expect("# ")
    terminal.say("tty\n")
    terminal.expect("/tty1")
    terminal.say("exit\n")
    terminal.expect("login: ")
    terminal.say("\x01q")
    assert terminal.status() == 0


def test_enter_opens_a_shell(debian: Root) -> None:
    terminal = Terminal(debian, "enter", 101)
    terminal.expect("# ")
    terminal.say("cat /proc/sys/kernel/hostname; exit 5\n")
    terminal.expect("web")
    assert terminal.status() == 5
