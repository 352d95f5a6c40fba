"""Volumes, folders and devices in containers, and the care for them on the host."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox.root import Root


def inside(root: Root, command: str) -> str:
    return root.cli("pct", "exec", 101, "--", "sh", "-c", command, ok=True).stdout


def config(root: Root) -> dict[str, str]:
    lines = root.cli("pct", "config", 101, ok=True).stdout.splitlines()
    return {key: value for key, _, value in (line.partition(": ") for line in lines)}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "with blank"
    folder.mkdir()
    (folder / "hello").write_text("from the host")
    return folder


@pytest.mark.parametrize("unprivileged", [1, 0])
def test_mount_points_of_every_kind(small: Callable[..., Root], shared: Path, unprivileged: int) -> None:
    root = small(
        "--unprivileged", unprivileged, "--rootfs", "local:1", "--mp0", "local:1,mp=/data,mountoptions=nosuid;noatime",
        "--mp1", f"{shared},mp=/shared,ro=1", "--mp2", "local:0,mp=/data/deep/er", "--start", 1,
    )  # fmt: skip
    mounts = dict(line.split()[1:3] for line in inside(root, "cat /proc/mounts").splitlines())
    options = {line.split()[1]: line.split()[3].split(",") for line in inside(root, "cat /proc/mounts").splitlines()}
    assert mounts["/"] == mounts["/data"] == "ext4"
    assert {"nosuid", "noatime"} <= {*options["/data"]}
    assert inside(root, "cat /shared/hello") == "from the host"
    assert root.cli("pct", "exec", 101, "--", "touch", "/shared/x").status != 0
    inside(root, "echo kept > /data/file; echo kept > /data/deep/er/file")
    root.cli("pct", "stop", 101, ok=True)
    assert root.running() == {}
    root.cli("pct", "start", 101, ok=True)
    assert inside(root, "cat /data/file /data/deep/er/file") == "kept\nkept\n"
    lines = root.cli("pct", "df", 101, ok=True).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["rootfs", "mp0", "mp1", "mp2"]
    root.cli("pct", "destroy", 101, "--force", 1, ok=True)
    assert (shared / "hello").read_text() == "from the host"
    assert list((root / "var/lib/vz/images").iterdir()) == []


def test_a_read_only_root_is_adapted_and_then_sealed(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1,ro=1", "--hostname", "sealed", "--start", 1)
    assert inside(root, "cat /etc/hostname") == "sealed\n"
    assert root.cli("pct", "exec", 101, "--", "touch", "/x").status != 0


def test_a_mount_path_that_is_a_link_stays_inside(small: Callable[..., Root], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = small("--rootfs", "local:0", "--start", 1)
    inside(root, f"ln -s {outside} /data")
    root.cli("pct", "stop", 101, ok=True)
    root.cli("pct", "set", 101, "--mp0", "local:1,mp=/data", ok=True)
    root.cli("pct", "start", 101)
    assert not os.path.ismount(outside)
    root.cli("pct", "stop", 101)
    root.cli("pct", "mount", 101)
    assert not os.path.ismount(outside)
    assert str(outside) not in Path("/proc/self/mounts").read_text()


def test_a_volume_comes_and_goes_as_unused(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--mp0", "local:1,mp=/data")
    volume = config(root)["mp0"].partition(",")[0]
    root.cli("pct", "set", 101, "--delete", "mp0", ok=True)
    assert config(root)["unused0"] == volume
    root.cli("pct", "set", 101, "--mp3", f"{volume},mp=/other", ok=True)
    assert config(root)["mp3"] == f"{volume},mp=/other,size=1G" and "unused0" not in config(root)
    root.cli("pct", "set", 101, "--delete", "mp3", ok=True)
    root.cli("pct", "set", 101, "--delete", "unused0", ok=True)
    assert not list((root / "var/lib/vz/images/101").glob("*.raw"))


def test_rescan_finds_what_no_configuration_names(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--mp0", "local:1,mp=/data")
    volume = config(root)["mp0"].partition(",")[0]
    file = root.config(101)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("mp0")))
    told = root.cli("pct", "rescan", "--dryrun", 1, ok=True)
    assert volume in told.stderr + told.stdout and "unused0" not in config(root)
    root.cli("pct", "rescan", "--vmid", 101, ok=True)
    assert config(root)["unused0"] == volume


def test_a_device_of_the_host_with_owner_and_mode(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:0", "--dev0", "/dev/fuse,gid=5,mode=0640", "--start", 1)
    found = inside(root, "stat -c '%F %a %u %g %t:%T' /dev/fuse").strip()
    number = Path("/dev/fuse").stat().st_rdev
    assert found == f"character special file 640 0 5 {os.major(number):x}:{os.minor(number):x}"
    root.cli("pct", "stop", 101, ok=True)
    assert root.running() == {}


@pytest.mark.parametrize("unprivileged", [1, 0])
def test_a_device_can_be_read_only(small: Callable[..., Root], unprivileged: int) -> None:
    root = small("--rootfs", "local:0", "--unprivileged", unprivileged, "--dev0", "/dev/fuse,deny-write=1,mode=0666",
                 "--start", 1)  # fmt: skip
    assert root.cli("pct", "exec", 101, "--", "sh", "-c", "exec 3>>/dev/fuse").status != 0
    root.cli("pct", "exec", 101, "--", "sh", "-c", "exec 3</dev/fuse", ok=True)


def test_mounted_on_the_host_and_unmounted(small: Callable[..., Root], shared: Path) -> None:
    root = small("--rootfs", "local:1", "--mp0", "local:1,mp=/data", "--mp1", f"{shared},mp=/shared")
    told = root.cli("pct", "mount", 101, ok=True)
    home = root / "var/lib/lxc/101/rootfs"
    assert f"mounted CT 101 in '{home}'" in told.stderr
    assert (home / "shared/hello").read_text() == "from the host"
    assert (home / "data/lost+found").is_dir() and (home / "etc/hostname").is_file()
    assert config(root)["lock"] == "mounted"
    for command in ("start", "destroy", "mount"):
        assert root.cli("pct", command, 101).status != 0
    root.cli("pct", "unlock", 101, ok=True)
    for command in ("start", "destroy"):
        refused = root.cli("pct", command, 101)
        assert refused.status != 0 and "pct unmount 101" in refused.stderr
    root.cli("pct", "unmount", 101, ok=True)
    assert root.running() == {}
    root.cli("pct", "start", 101, ok=True)
    running = root.cli("pct", "mount", 101)
    assert running.status != 0 and "is running" in running.stderr


def test_a_volume_grows_with_its_file_system(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1", "--start", 1)
    before = int(inside(root, "df -k / | tail -1").split()[1])
    running = root.cli("pct", "resize", 101, "rootfs", "+1G")
    assert running.status != 0 and "is running" in running.stderr
    root.cli("pct", "stop", 101, ok=True)
    root.cli("pct", "resize", 101, "rootfs", "+512M", ok=True)
    assert config(root)["rootfs"].endswith("size=1536M")
    root.cli("pct", "start", 101, ok=True)
    assert int(inside(root, "df -k / | tail -1").split()[1]) > before * 1.4
    root.cli("pct", "stop", 101, ok=True)
    smaller = root.cli("pct", "resize", 101, "rootfs", "1G")
    assert smaller.status != 0 and "can only grow" in smaller.stderr


def test_a_growth_that_was_cut_off_is_finished(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1")
    image = root / "var/lib/vz/images/101/vm-101-disk-0.raw"
    os.truncate(image, 1536 << 20)  # as far as it came
    nothing = root.cli("pct", "resize", 101, "rootfs", "+0")
    assert nothing.status != 0 and "can only grow" in nothing.stderr
    root.cli("pct", "resize", 101, "rootfs", "1536M", ok=True)
    assert config(root)["rootfs"].endswith("size=1536M")
    said = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    found = {key: value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())}
    assert int(found["Block count"]) * int(found["Block size"]) == 1536 << 20


def test_a_volume_with_a_damaged_file_system_does_not_grow(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1")
    image = root / "var/lib/vz/images/101/vm-101-disk-0.raw"
    with image.open("r+b") as file:
        file.write(bytes(8 << 20))
    for _ in range(2):
        broken = root.cli("pct", "resize", 101, "rootfs", "+512M")
        assert broken.status != 0 and "is damaged" in broken.stderr
    assert image.stat().st_size == 1 << 30


def test_fsck_mends_and_tells(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1", "--mp0", "local:0,mp=/data")
    assert "files" in root.cli("pct", "fsck", 101, "--force", 1, ok=True).stderr
    assert "plain directory" in root.cli("pct", "fsck", 101, "--device", "mp0").stderr
    with (root / "var/lib/vz/images/101/vm-101-disk-0.raw").open("r+b") as image:
        image.write(bytes(8 << 20))
    broken = root.cli("pct", "fsck", 101)
    assert broken.status != 0 and "file system of 'local:101/vm-101-disk-0.raw'" in broken.stderr


def test_fstrim_gives_space_back(small: Callable[..., Root]) -> None:
    root = small("--rootfs", "local:1", "--start", 1)
    image = root / "var/lib/vz/images/101/vm-101-disk-0.raw"
    inside(root, "dd if=/dev/urandom of=/big bs=1M count=50 && sync; rm /big; sync")
    before = image.stat().st_blocks
    assert "/: " in root.cli("pct", "fstrim", 101, ok=True).stderr
    assert image.stat().st_blocks < before - (40 << 20) // 512
    assert inside(root, "cat /etc/hostname")  # it goes on


@pytest.mark.parametrize("command", ["gzip", "xz", "zstd", "bzip2", "lzop", "cat"])
def test_the_template_may_be_compressed_in_any_usual_way(root: Root, ct_template_small: Path, command: str) -> None:
    plain = subprocess.run(["zstd", "-dc"], stdin=ct_template_small.open("rb"), capture_output=True, check=True).stdout
    packed = root / "var/lib/vz/template/cache/t.tar.gz"  # the content counts, not the name
    packed.write_bytes(subprocess.run([command], input=plain, capture_output=True, check=True).stdout)
    root.cli("pct", "create", 101, "local:vztmpl/t.tar.gz", "--rootfs", "local:0", ok=True)
    found = (root / "var/lib/vz/images/101/subvol-101-disk-0.subvol/etc/debian_version").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (100000, 0o644)


def test_owners_modes_links_and_capabilities_are_those_of_the_template(root: Root, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("bin", "etc", "tmp"):
        (tree / folder).mkdir(parents=True)
    (tree / "etc/debian_version").write_text("12.0\n")
    for name, owner, mode in (("setuid", (0, 0), 0o4755), ("user", (1000, 1001), 0o600)):
        (tree / "bin" / name).write_text("x")
        os.chown(tree / "bin" / name, *owner)
        (tree / "bin" / name).chmod(mode)
    os.setxattr(tree / "bin/user", "user.note", b"kept")
    (tree / "tmp").chmod(0o1777)
    (tree / "bin/link").symlink_to("/etc/debian_version")
    os.link(tree / "bin/user", tree / "bin/hard")
    archive = root / "var/lib/vz/template/cache/own.tar.gz"
    subprocess.run(["tar", "-C", tree, "--xattrs", "-czf", archive, "."], check=True)
    root.cli("pct", "create", 101, "local:vztmpl/own.tar.gz", "--rootfs", "local:0", ok=True)
    made = root / "var/lib/vz/images/101/subvol-101-disk-0.subvol"
    one, two = (made / "bin/setuid").stat(), (made / "bin/user").stat()
    assert (one.st_uid, stat.S_IMODE(one.st_mode)) == (100000, 0o4755)
    assert (two.st_uid, two.st_gid, stat.S_IMODE(two.st_mode)) == (101000, 101001, 0o600)
    assert os.getxattr(made / "bin/user", "user.note") == b"kept"
    assert two.st_ino == (made / "bin/hard").stat().st_ino
    assert str((made / "bin/link").readlink()) == "/etc/debian_version"
    assert stat.S_IMODE((made / "tmp").stat().st_mode) == 0o1777


def test_own_id_maps_reach_every_file(root: Root, local_template: str) -> None:
    """Raw ``lxc.idmap`` lines, as they come with a restored or hand-edited configuration."""
    root.cli("pct", "create", 101, local_template, "--rootfs", "local:0", "--unprivileged", 0, ok=True)
    tree = root / "var/lib/vz/images/101/subvol-101-disk-0.subvol"
    subprocess.run(["chown", "-hR", "110000:110000", tree], check=True)
    with root.config(101).open("a") as file:
        file.write("lxc.idmap: u 0 110000 2000\nlxc.idmap: g 0 110000 2000\n")
    root.cli("pct", "start", 101, ok=True)
    assert inside(root, "cat /proc/self/uid_map").split() == ["0", "110000", "2000"]
    assert inside(root, "stat -c %u /etc/hostname") == "0\n"
    root.cli("pct", "stop", 101, ok=True)
    with root.config(101).open("a") as file:
        file.write("lxc.idmap: u 2000 300000 5\n")
    refused = root.cli("pct", "start", 101)
    assert refused.status != 0 and "add the line: root:300000:5" in refused.stderr
