"""What a user may get wrong with containers: a clear sentence, a failure, and nothing changed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real.lxc.conftest import put_template
from tests.sandbox.root import Root

SHELL = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0"


def state(root: Root) -> dict[str, bytes]:
    """Every file of the root that is state: configurations and volumes."""
    found = {}
    for folder in ("etc", "var/lib"):
        for path in (root / folder).rglob("*"):
            if "template/cache" not in str(path) and path.is_file() and not path.is_symlink():
                found[str(path.relative_to(root.path))] = b"" if path.suffix == ".raw" else path.read_bytes()
    return found


@pytest.fixture
def refused(root: Root) -> Callable[..., str]:
    """Run ``pct`` and be refused; gives what it said."""

    def run(*words: object) -> str:
        before = state(root)
        done = root.cli("pct", *words)
        assert done.status != 0, done
        assert done.stdout == "" and "Traceback" not in done.stderr and "internal error" not in done.stderr, done
        assert state(root) == before
        assert root.running() == {}
        return done.stderr

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nonsense", "1"], ["Unknown option: nonsense"]),
        (["--memory", "5", "--swap", "x", "--hostname", "a_b"],
         ["memory: value must have a minimum value of 16", "swap: type check ('integer')", "hostname: invalid format"]),
        (["--net0", "name=eth0,color=red"], ["net0.color: property is not defined"]),
        (["--net0", "bridge=vmbr0"], ["net0.name: property is missing"]),
        (["--net0", "name=eth0,name=eth1"], ["duplicate key"]),
        (["--net0", "name=eth0,hwaddr=01:00:00:00:00:00"], ["net0.hwaddr", "unicast MAC address"]),
        (["--net0", "name=eth0,ip=10.0.0.300/24"], ["net0.ip"]),
        (["--net0", "name=eth0,ip=10.0.0.3"], ["net0.ip", "prefix length"]),
        (["--net0", "name=eth0,ip=dhcp,gw=10.0.0.1"], ["net0: 'gw' needs a static address"]),
        (["--net0", "name=eth0", "--net1", "name=eth0"], ["net1: name 'eth0' is already that of net0"]),
        (["--mp0", "/etc,mp=/../etc"], ["mp0.mp", "'.' or '..'"]),
        (["--mp0", "local:1,mp=relative"], ["mp0: mount path 'relative' is not absolute"]),
        (["--rootfs", "local:101/../../../../etc/passwd"], ["rootfs.volume", "'.' or '..'"]),
        (["--rootfs", "local:102/vm-102-disk-0.raw"], ["vm-102-disk-0.raw"]),
        (["--rootfs", "/etc"], ["rootfs: '/etc' is a path of the host"]),
        (["--rootfs", "nosuch:1"], ["storage 'nosuch' does not exist"]),
        (["--rootfs", "plain:1"], ["storage 'plain' does not support content type 'rootdir'"]),
        (["--storage", "plain"], ["storage 'plain' does not support content type 'rootdir'"]),
        (["--rootfs", "local:99999999"], ["storage 'local'", "too large"]),
        (["--ssh-public-keys", "/etc/passwd"], ["ssh-public-keys: 'root:x:0:0", "is not a public SSH key"]),
        (["--ssh-public-keys", "/no/such/file"], ["can't read file '/no/such/file'"]),
        (["--password", "abc"], ["password: value must be at least 5 characters long"]),
        (["--pool", "x"], ["option 'pool' is not supported yet"]),
        (["--force", "1"], ["option 'force' has no effect unless a backup is restored"]),
        (["--unique", "1"], ["unique: missing property - 'unique' requires this property: 'restore'"]),
        (["--start", "1", "--net0", "name=eth0,bridge=nosuch0"], ["net0: bridge 'nosuch0' does not exist", "vmbr0"]),
        (["--start", "1", "--hookscript", "local:snippets/x"], ["option 'hookscript' is not supported yet"]),
    ],
)  # fmt: skip
def test_wrong_options_of_create(root: Root, local_template: str, options: list[str], said: list[str]) -> None:
    plain = root / "plain"
    plain.mkdir()
    (root / "etc/pve/storage.cfg").write_text(
        f"dir: local\n\tpath {root.path}/var/lib/vz\n\tcontent rootdir,images,vztmpl\n\n"
        f"dir: plain\n\tpath {plain}\n\tcontent iso\n"
    )
    before = state(root)
    done = root.cli("pct", "create", 101, local_template, *options)
    assert done.status != 0 and "Traceback" not in done.stderr and "internal error" not in done.stderr, done
    for words in said:
        assert words in done.stderr
    if "--start" in options:  # made, but not to be started
        assert "101" in root.cli("pct", "list", ok=True).stdout
        assert root.running() == {}
        return
    assert state(root) == before


@pytest.mark.parametrize("vmid", [99, 1000000000, "abc", "-5"])
def test_ids_out_of_range(refused: Callable[..., str], local_template: str, vmid: object) -> None:
    assert "vmid" in refused("create", vmid, local_template)


def test_an_id_in_use(refused: Callable[..., str], root: Root, local_template: str) -> None:
    root.cli("pct", "create", 101, local_template, "--rootfs", "local:0", ok=True)
    assert "CT 101 already exists" in refused("create", 101, local_template)
    node = next((root / "etc/pve/nodes").iterdir())
    (node / "qemu-server/102.conf").write_text("memory: 512\n")
    assert "VM 102 already exists" in refused("create", 102, local_template)
    assert "is a virtual machine: use qm" in refused("start", 102)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("local:vztmpl/missing.tar.zst", "template 'local:vztmpl/missing.tar.zst' does not exist"),
        ("nosuch:vztmpl/x.tar.zst", "storage 'nosuch' does not exist"),
        ("local:iso/x.iso", "is of content type 'iso', not vztmpl"),
        ("local:vztmpl/../../dump/x.tar", "'..'"),
        ("local:101/vm-101-disk-0.raw", "is of content type 'images', not vztmpl"),
        ("/no/such/file.tar", "does not exist"),
        ("nonsense", "nonsense"),
    ],
)
def test_templates_that_are_not_there(refused: Callable[..., str], template: str, said: str) -> None:
    assert said in refused("create", 101, template)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("command", ["gzip", "zstd", "cat"])
def test_truncated_templates(
    refused: Callable[..., str], root: Root, ct_template_small: Path, command: str, cut: float
) -> None:
    plain = subprocess.run(["zstd", "-dc"], stdin=ct_template_small.open("rb"), capture_output=True, check=True).stdout
    data = subprocess.run([command], input=plain, capture_output=True, check=True).stdout
    file = root / "var/lib/vz/template/cache/t.tar"
    # the end of a plain tar is padding: less is no loss
    file.write_bytes(data[: int(len(data.rstrip(b"\0")) * cut)])
    said = refused("create", 101, "local:vztmpl/t.tar", "--rootfs", "local:1")
    assert "unpacking 't.tar' failed" in said


def test_bit_flipped_templates(refused: Callable[..., str], root: Root, ct_template_small: Path) -> None:
    data = bytearray(ct_template_small.read_bytes())
    data[len(data) // 2] ^= 0x10
    (root / "var/lib/vz/template/cache/t.tar.zst").write_bytes(data)
    assert "cannot decompress" in refused("create", 101, "local:vztmpl/t.tar.zst", "--rootfs", "local:1")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(1000), os.urandom(100000), bytes(20480)])
def test_foreign_templates(refused: Callable[..., str], root: Root, content: bytes) -> None:
    (root / "var/lib/vz/template/cache/t.tar.gz").write_bytes(content)
    assert "'t.tar.gz' is not a tar archive" in refused("create", 101, "local:vztmpl/t.tar.gz")


def test_an_archive_without_a_root_file_system(refused: Callable[..., str], root: Root) -> None:
    _write(root, [("./some/file", tarfile.REGTYPE, "", b"x")])
    assert "holds no root file system" in refused("create", 101, "local:vztmpl/t.tar", "--rootfs", "local:0")


def _write(root: Root, members: list[tuple[str, bytes, str, bytes]]) -> None:
    with tarfile.open(root / "var/lib/vz/template/cache/t.tar", "w") as tar:
        for name, kind, link, data in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size, entry.mode = kind, link, len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))


REG, SYM, LNK = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize("unprivileged", [0, 1])
@pytest.mark.parametrize(
    "attack",
    [
        [("{up}{out}/evil", REG, "", b"x")],
        [("{out}/evil", REG, "", b"x")],
        [("./a", SYM, "{out}", b""), ("./a/evil", REG, "", b"x")],
        [("./a", SYM, "{up}{out}", b""), ("./a/evil", REG, "", b"x")],
        [("./a", SYM, "b", b""), ("./b", SYM, "{up}{out}", b""), ("./a/evil", REG, "", b"x")],
        [("./a", LNK, "{out}/secret", b""), ("./a", REG, "", b"overwritten")],
        [("./a", LNK, "{up}{out}/secret", b""), ("./a", REG, "", b"overwritten")],
        [("./root", SYM, "{out}", b"")],
        [("./etc/hosts", SYM, "{out}/secret", b""), ("./etc/hostname", SYM, "../../../../../../..{out}/secret", b"")],
        [("./etc/network", SYM, "{out}", b""), ("./etc/resolv.conf", LNK, "{out}/secret", b"")],
    ],
)
def test_members_that_point_outside_never_get_there(
    root: Root, tmp_path: Path, attack: list[tuple[str, bytes, str, bytes]], unprivileged: int
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "secret").write_text("of the host")
    (outside / "secret").chmod(0o666)
    places = {"out": str(outside), "up": "../" * 12}
    members = [("./bin/sh", REG, "", SHELL), ("./etc/debian_version", REG, "", b"12.0\n")]
    members += [(name.format(**places), kind, link.format(**places), data) for name, kind, link, data in attack]
    _write(root, members)
    keys = root / "keys"
    keys.write_text("ssh-ed25519 AAAA x\n")
    done = root.cli("pct", "create", 101, "local:vztmpl/t.tar", "--rootfs", "local:0", "--unprivileged", unprivileged,
                    "--ssh-public-keys", keys, "--net0", "name=eth0,ip=dhcp")  # fmt: skip
    assert "internal error" not in done.stderr, done
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "of the host"
    assert (outside / "secret").stat().st_nlink == 1
    if done.status:
        assert not root.config(101).exists()
        assert list((root / "var/lib/vz/images").iterdir()) == []


@pytest.fixture
def tight(root: Root) -> Iterator[str]:
    """A storage with 8 MiB."""
    place = root / "tight"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", place], check=True)
    (root / "etc/pve/storage.cfg").write_text(
        f"dir: local\n\tpath {root.path}/var/lib/vz\n\tcontent rootdir,images,vztmpl\n\n"
        f"dir: tight\n\tpath {place}\n\tcontent rootdir,images\n"
    )
    yield "tight"
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("size", ["1", "0"])
def test_a_full_storage(root: Root, ct_template: Path, tight: str, size: str) -> None:
    done = root.cli("pct", "create", 101, put_template(root, ct_template), "--rootfs", f"{tight}:{size}")
    assert done.status != 0 and "internal error" not in done.stderr, done
    assert "No space left on device" in done.stderr or "its storage is full" in done.stderr, done
    assert not root.config(101).exists()
    assert not list((root / "tight/images").rglob("*disk*"))
    assert root.loops() == []


def test_a_range_of_ids_that_root_may_not_use(refused: Callable[..., str], local_template: str) -> None:
    file = Path("/etc/subgid")  # of the sandbox
    before = file.read_text()
    file.write_text("")
    try:
        said = refused("create", 101, local_template)
    finally:
        file.write_text(before)
    assert "/etc/subgid does not let root use the gids 100000 to 165535; add the line: root:100000:65536" in said


def test_changes_that_are_refused(refused: Callable[..., str], root: Root, local_template: str) -> None:
    root.cli("pct", "create", 101, local_template, "--rootfs", "local:0", "--protection", 1, ok=True)
    assert "unprivileged: cannot be changed" in refused("set", 101, "--unprivileged", 0)
    assert "unprivileged: cannot be changed" in refused("set", 101, "--delete", "unprivileged")
    assert "detected modified configuration" in refused("set", 101, "--memory", 64, "--digest", "0" * 40)
    assert "delete: 'nonsense'" in refused("set", 101, "--delete", "nonsense")
    assert "protection mode enabled" in refused("destroy", 101)
    assert "volume" in refused("set", 101, "--mp0", "local:102/vm-102-disk-0.raw,mp=/x")
    root.cli("pct", "set", 101, "--lock", "backup", "--protection", 0, ok=True)
    for command in ("start", "destroy"):
        assert "CT is locked (backup)" in refused(command, 101)
    root.cli("pct", "unlock", 101, ok=True)
    root.cli("pct", "destroy", 101, ok=True)


@pytest.mark.parametrize("command", ["start", "stop", "status", "config", "df", "destroy", "enter", "console", "mount"])
def test_a_container_that_does_not_exist(refused: Callable[..., str], command: str) -> None:
    assert "Configuration file 'nodes/pvetest/lxc/777.conf' does not exist" in refused(command, 777)


def test_commands_inside_need_a_running_container(refused: Callable[..., str], root: Root, local_template: str) -> None:
    root.cli("pct", "create", 101, local_template, "--rootfs", "local:0", ok=True)
    for command in (("exec", 101, "--", "true"), ("enter", 101), ("console", 101), ("fstrim", 101),
                    ("pull", 101, "/etc/hostname", "/tmp/x"), ("push", 101, "/etc/hostname", "/x")):  # fmt: skip
        assert "container '101' not running!" in refused(*command)


def test_a_volume_that_has_gone(refused: Callable[..., str], root: Root, local_template: str) -> None:
    root.cli("pct", "create", 101, local_template, "--rootfs", "local:1", ok=True)
    (root / "var/lib/vz/images/101/vm-101-disk-0.raw").unlink()
    assert "'rootfs': volume 'local:101/vm-101-disk-0.raw' does not exist" in refused("start", 101)


def test_a_damaged_file_system(refused: Callable[..., str], root: Root, local_template: str) -> None:
    root.cli("pct", "create", 101, local_template, "--rootfs", "local:1", ok=True)
    with (root / "var/lib/vz/images/101/vm-101-disk-0.raw").open("r+b") as image:
        image.write(bytes(1 << 20))
    assert "command 'mount' failed" in refused("start", 101)


def test_two_creations_of_one_id_at_once(root: Root, local_template: str) -> None:
    both = [root.spawn("pct", "create", 101, local_template, "--rootfs", "local:1", stderr=subprocess.DEVNULL)
            for _ in range(2)]  # fmt: skip
    assert sorted(process.wait(60) for process in both) == [0, 255]
    assert len(list((root / "var/lib/vz/images/101").iterdir())) == 1
    root.cli("pct", "start", 101, ok=True)


def test_only_root_may(root: Root) -> None:
    code = "import os; os.setuid(65534); from pvetools.cli.pct import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "list"], env=root.environment(), capture_output=True, text=True)
    assert done.returncode != 0 and "please run as root" in done.stderr
