"""TAB in a real bash: words from the tables, and words from the files without starting a program."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import time
from pathlib import Path

import pytest

from pvetools.system import paths
from tests.unit.cli.bash_completion import SCRIPT, bash, call, complete

UPID = "UPID:{node}:0000C346:165A0CE4:68D7279C:vzdump:100:root@pam:"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Guests, snapshots, storages, volumes and a task."""
    top = tmp_path_factory.mktemp("root")
    node = top / "etc/pve/nodes" / paths.node()
    for folder in (node / "qemu-server", node / "lxc", top / "etc/pve/nodes/far", top / "var/log/pve/tasks"):
        folder.mkdir(parents=True)
    (node / "qemu-server/100.conf").write_text("cores: 1\n\n[PENDING]\ncores: 2\n\n[before]\ncores: 1\n\n[after_it]\n")
    (node / "qemu-server/112.conf").touch()
    (node / "lxc/101.conf").touch()
    (top / "etc/pve/storage.cfg").write_text(
        f"dir: local\n\tpath {top}/var/lib/vz\n\tcontent iso,vztmpl,backup\n\n# x\ndir: data\n\tpath {top}/data\n"
    )
    for name in (
        "var/lib/vz/template/iso/a b.iso",
        "var/lib/vz/template/cache/debian.tar.zst",
        "var/lib/vz/dump/vzdump-qemu-100-2026_01_01-00_00_00.vma.zst",
        "var/lib/vz/dump/vzdump-qemu-100-2026_01_01-00_00_00.log",
        "data/images/100/vm-100-disk-0.qcow2",
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    (top / "var/log/pve/tasks/active").write_text(UPID.format(node=paths.node()) + " 0\n")
    return top


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("qm star", ["start"]),
        ("qm disk ", ["import", "rescan", "resize", "unlink"]),
        ("qm disk im", ["import"]),
        ("qm help star", ["start"]),
        ("qm start ", ["100", "112"]),
        ("qm start 11", ["112"]),
        ("qm start x", []),
        ("qm sta 1", ["100", "112"]),
        ("pct start ", ["101"]),
        ("vzdump ", ["100", "101", "112"]),
        ("vzdump 100 101 11", ["112"]),
        ("vzdump --mode ", ["snapshot", "stop", "suspend"]),
        ("vzdump --mode=s", ["snapshot", "stop", "suspend"]),
        ("vzdump --all 1 --mo", ["--mode"]),
        ("vzdump --storage ", ["data", "local"]),
        ("vzdump --storage=d", ["data"]),
        ("vzdump --all --compress z", ["zstd"]),
        ("qm set 100 --onboot ", ["0", "1"]),
        ("qm set 100 -ostype w2", ["w2k", "w2k3", "w2k8"]),
        ("qm set 100 --net", sorted(f"--net{n}" for n in range(32))),
        ("qm set 100 --numa", ["--numa", *(f"--numa{n}" for n in range(8))]),
        ("qm set 100 -ostyp", ["--ostype"]),
        ("qm set 100 --scsi1 data:", ["100/vm-100-disk-0.qcow2"]),
        ("qm set 100 --scsi1 da", ["data:"]),
        ("qm set 100 --ide2 local:iso/", ["iso/a b.iso"]),
        ("qm set 100 --ide2 local:iso/a b.iso,med", []),
        ("qm set 100 --ide2 none,med", ["none,media="]),
        ("qm set 100 --ide2 none,media=c", ["cdrom"]),
        ("qm set 100 --ide2=none,media=c", ["cdrom"]),
        ("qm set 100 --startup u", ["up="]),
        ("qm set 100 --startup order=1,", ["1,down=", "1,up="]),
        ("qm config 100 --snapshot ", ["after_it", "before"]),
        ("pvesm list ", ["data", "local"]),
        ("pvesm path local:", [
            "backup/vzdump-qemu-100-2026_01_01-00_00_00.vma.zst", "iso/a b.iso", "vztmpl/debian.tar.zst"
        ]),
        ("pvenode task log UPID:", [UPID.format(node=paths.node()).removeprefix("UPID:")]),
        ("pvesh get /", ["/cluster", "/nodes", "/storage", "/version"]),
        ("pvesh get /nodes/", sorted(["/nodes/far", f"/nodes/{paths.node()}"])),
        ("pvesh get /nodes/x/qemu/1", ["/nodes/x/qemu/100", "/nodes/x/qemu/112"]),
        ("pvesh get /nodes/x/lxc/", ["/nodes/x/lxc/101"]),
        ("pvesh get /nodes/x/qemu/100/status/c", ["/nodes/x/qemu/100/status/current"]),
        ("pvesh get /nodes/x/tasks --source a", ["active", "all", "archive"]),
        ("pvesh get /nodes/x/tasks --statusf", ["--statusfilter"]),
        ("pvesh get /cluster/resources --type ", ["node", "sdn", "storage", "vm"]),
        ("pvesh get /cluster/resources --output-format j", ["json", "json-pretty"]),
    ],
)  # fmt: skip
def test_tab_offers_what_may_stand_there(root: Path, line: str, words: list[str]) -> None:
    assert complete(line, root) == words


def test_options_of_a_command_are_offered_when_nothing_else_may_stand_there(root: Path) -> None:
    offered = complete("qm shutdown 100 ", root)
    assert {"--forceStop", "--timeout", "--keepActive"} <= set(offered)
    assert "--node" not in offered


def test_all_commands_of_a_tool_are_offered(root: Path) -> None:
    assert {"create", "start", "destroy", "help", "importdisk", "disk"} <= set(complete("qm ", root))


def test_guests_are_offered_also_where_the_working_directory_has_gone(root: Path, tmp_path: Path) -> None:
    code = f"mkdir {tmp_path}/x; cd {tmp_path}/x; rmdir {tmp_path}/x\n{call('qm start 1')}"
    assert bash(code + 'echo "${COMPREPLY[@]} $PWD"', root) == f"100 112 {tmp_path}/x\n"


def test_the_shell_is_left_as_it_was(root: Path) -> None:
    code = "cd /; cd /tmp; shopt -s failglob; set -f\nbefore=$(shopt; set -o; echo $PWD $OLDPWD)\n"
    code += call("qm start 1") + '[[ $before == "$(shopt; set -o; echo $PWD $OLDPWD)" ]] && echo "${COMPREPLY[@]}"'
    assert bash(code, root) == "100 112\n"


def test_nothing_is_there_and_nothing_is_said(tmp_path: Path) -> None:
    assert complete("qm start ", tmp_path) == []
    assert complete("pct config 100 --snapshot ", tmp_path) == []
    assert complete("pvesm path local:", tmp_path) == []
    assert complete("pvesm list ", tmp_path) == ["local"]


def _read_until(fd: int, wanted: bytes, timeout: float = 60.0) -> bytes:
    seen, deadline = b"", time.monotonic() + timeout
    while wanted not in seen:
        assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], f"no {wanted!r} in {seen!r}"
        seen += os.read(fd, 4096)
    return seen


@pytest.mark.timeout(40)
def test_tab_on_a_terminal_completes_the_line(root: Path) -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(PVETOOLS_ROOT=str(root), PS1="ready> ", TERM="dumb", INPUTRC="/dev/null")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        _read_until(fd, b"ready> ")
        os.write(fd, f"source {SCRIPT}; PATH=/nonexistent; echo sour''ced\n".encode())
        _read_until(fd, b"\nsourced\r\nready> ")
        os.write(fd, b"qm set 11\t")
        _read_until(fd, b"qm set 112 ")
        os.write(fd, b"--ostyp\tl2\t--ide2 no\x15")
        _read_until(fd, b"--ostype l2")
        os.write(fd, b"pvesm path data:100/v\t")
        _read_until(fd, b"data:100/vm-100-disk-0.qcow2 ")
        os.write(fd, b"\x15qm set 100 --ide2=none,med\tcd\t")
        _read_until(fd, b"--ide2=none,media=cdrom")
    finally:
        with contextlib.suppress(OSError):
            os.write(fd, b"\x15exit\n")
        os.close(fd)
        os.waitpid(pid, 0)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with 10,000 virtual machines."""
    top = tmp_path_factory.mktemp("many")
    folder = top / "etc/pve/nodes" / paths.node() / "qemu-server"
    folder.mkdir(parents=True)
    for vmid in range(10_000, 20_000):
        os.close(os.open(folder / f"{vmid}.conf", os.O_CREAT | os.O_WRONLY))
    return top


@pytest.mark.parametrize(("line", "count"), [("qm start ", 10_000), ("qm start 12", 1000)])
def test_tab_offers_all_of_ten_thousand_guests(many: Path, line: str, count: int) -> None:
    assert int(bash(f"{call(line)}echo ${{#COMPREPLY[@]}}", many)) == count


def test_no_program_is_started(root: Path) -> None:
    """With an empty PATH nothing could be: whatever was tried would be told on standard error."""
    for line in ("qm start ", "pvesm path local:", "qm config 100 --snapshot ", "pvesh get /nodes/x/qemu/1"):
        out = bash(f"PATH=/nonexistent\n{call(line)}echo ${{#COMPREPLY[@]}}", root)
        assert int(out) > 0
