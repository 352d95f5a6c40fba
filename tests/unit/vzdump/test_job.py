"""Backup jobs of stopped virtual machines, end to end: archives, logs, hooks, locks, retention, signals."""

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pvetools.backup import qemu_backup, vma
from pvetools.config import guest as config
from pvetools.system import paths
from tests.signals import ask_to_end
from tests.unit.vzdump.conftest import Node, Outcome

Vzdump = Callable[..., Outcome]
KIB = 1024


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} seconds"
        time.sleep(0.01)


def read_disk(archive: Path, size: int, tmp_path: Path) -> bytes:
    with archive.open("rb") as file:
        vma.extract(file.fileno(), tmp_path / "extracted")
    return (tmp_path / "extracted/disk-drive-scsi0.raw").read_bytes()[:size]


def test_an_archive_and_its_log_come_into_being_and_nothing_else(node: Node, vzdump: Vzdump, tmp_path: Path):
    image = node.vm(100)
    before = node.files()
    assert vzdump(100).error == ""
    (archive,) = node.archives()
    assert re.fullmatch(r"vzdump-qemu-100-\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d\.vma", archive.name)
    assert node.files() - before == {str(p.relative_to(node.root)) for p in (archive, archive.with_suffix(".log"))}
    assert read_disk(archive, image.stat().st_size, tmp_path) == image.read_bytes()
    assert config.load("qemu", 100).lock == ""


def test_the_messages_come_in_the_order_that_other_tools_know(node: Node, vzdump: Vzdump):
    node.vm(
        100, "scsi1: local:100/vm-100-disk-0.raw,backup=0", "unused3: local:100/vm-100-disk-9.raw",
        "efidisk0: local:100/vm-100-disk-0.raw", "[PENDING]", "memory: 128", "", "[before]", "memory: 32",
    )  # fmt: skip
    job = vzdump(100, bwlimit=100000, notes_template="{{guestname}}", storage="local", protected=1)
    expected = [
        r"INFO: starting new backup job: vzdump 100 --bwlimit 100000 --notes-template '\{\{guestname\}\}' "
        r"--protected 1 --storage local",
        r"INFO: Starting Backup of VM 100 \(qemu\)",
        r"INFO: Backup started at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
        r"INFO: status = stopped",
        r"INFO: VM Name: vm100",
        r"INFO: exclude disk 'efidisk0' 'local:100/vm-100-disk-0.raw' \(efidisk but no OVMF BIOS\)",
        r"INFO: include disk 'scsi0' 'local:100/vm-100-disk-0.raw' 256K",
        r"INFO: exclude disk 'scsi1' 'local:100/vm-100-disk-0.raw' \(backup=no\)",
        r"INFO: backup mode: stop",
        r"INFO: bandwidth limit: 100000 KiB/s",
        r"INFO: ionice priority: 7",
        r"INFO: skip unused drive 'local:100/vm-100-disk-9.raw' \(not included into backup\)",
        r"INFO: snapshots found \(not included into backup\)",
        r"INFO: pending configuration changes found \(not included into backup\)",
        r"INFO: creating vzdump archive '/.*/dump/vzdump-qemu-100-.*\.vma'",
        r"INFO: started backup task '[0-9a-f-]{36}'",
        r"INFO: 100% \(256\.0 KiB of 256\.0 KiB\) in 0s, read: .*iB/s, write: .*iB/s",
        r"INFO: transferred 256\.00 KiB in 1 seconds \(.*iB/s\)",
        r"INFO: archive file size: 2\d\dKB",
        r"INFO: adding notes to backup",
        r"INFO: marking backup as protected",
        r"INFO: Finished Backup of VM 100 \(00:00:0\d\)",
        r"INFO: Backup finished at .*",
        r"INFO: Backup job finished successfully",
    ]  # fmt: skip
    assert len(job.lines) == len(expected), job.lines
    for line, pattern in zip(job.lines, expected, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"


def test_the_log_has_times_and_leaves_out_what_is_for_the_console(node: Node, vzdump: Vzdump):
    node.vm(100)
    vzdump(100)
    text = node.archives()[0].with_suffix(".log").read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO: ", line) for line in text.splitlines())
    assert "Starting Backup of VM 100 (qemu)" in text
    assert "Finished Backup of VM 100" in text
    assert not re.search("Backup (started|finished) at|new backup job", text)
    assert (paths.vzdump_log_dir() / "qemu-100.log").read_text() == text


def test_the_archive_holds_the_current_configuration_and_the_firewall_rules(node: Node, vzdump: Vzdump):
    node.vm(100, "unused0: local:100/x.raw", "[PENDING]", "memory: 128")
    paths.firewall_config(100).write_text("[OPTIONS]\nenable: 1\n")
    vzdump(100)
    with node.archives()[0].open("rb") as file:
        configs = vma.Reader(file.fileno()).configs
    assert configs["qemu-server.conf"].decode() == (
        "kvm: 0\nmemory: 64\nname: vm100\nscsi0: local:100/vm-100-disk-0.raw,size=256K\n"
        "#qmdump#map:scsi0:drive-scsi0:local:raw:\n"
    )
    assert configs["qemu-server.fw"] == b"[OPTIONS]\nenable: 1\n"


def test_a_machine_without_disks_has_an_archive_too(node: Node, vzdump: Vzdump):
    node.vm(100, disk=0)
    job = vzdump(100)
    assert "INFO: starting diskless backup" in job.lines
    with node.archives()[0].open("rb") as file:
        reader = vma.Reader(file.fileno())
        reader.verify()
    assert reader.devices == []


def test_all_means_all_but_the_excluded_in_numerical_order(node: Node, vzdump: Vzdump):
    for vmid in (1000, 101, 100):
        node.vm(vmid, disk=0)
    job = vzdump(all=1, exclude="101")
    assert [line.split()[5] for line in job.said("INFO: Starting Backup")] == ["100", "1000"]


def test_a_failing_guest_does_not_stop_the_job_but_makes_it_fail(node: Node, vzdump: Vzdump):
    node.vm(100).unlink()
    node.vm(101)
    job = vzdump(100, 101)
    assert job.error == "job errors"
    (error,) = job.said("ERROR:")
    assert error.startswith("ERROR: Backup of VM 100 failed - ")
    assert "local:100/vm-100-disk-0.raw" in error
    assert job.lines[-1] == "INFO: Backup job finished with errors"
    assert len(job.said("INFO: Failed at ")) == 1
    assert [p.name.split("-")[2] for p in node.archives()] == ["101"]
    assert len(list(node.dump.glob("vzdump-qemu-100-*.log"))) == 1
    assert config.load("qemu", 100).lock == ""


def test_an_id_that_exists_nowhere_fails_visibly(node: Node, vzdump: Vzdump):
    job = vzdump(4711)
    assert job.said("ERROR:") == ["ERROR: Backup of VM 4711 failed - unable to find VM '4711'"]


def test_guests_of_other_nodes_are_skipped_and_alone_are_nothing_to_do(node: Node, vzdump: Vzdump):
    node.vm(100, disk=0)
    folder = paths.etc_pve() / "nodes/elsewhere/qemu-server"
    folder.mkdir(parents=True)
    (folder / "200.conf").write_text("memory: 64\n")
    assert "INFO: skip external VMs: 200" in vzdump(100, 200).lines
    assert vzdump(200).lines == []
    assert vzdump(100, node="elsewhere").lines == []


# -- targets and options ----------------------------------------------------------------------------------------------


def test_a_plain_directory_takes_archives_without_notes_and_protection(node: Node, vzdump: Vzdump, tmp_path: Path):
    node.vm(100)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (node.root / "etc/vzdump.conf").write_text("notes-template: x\nprotected: 1\nstorage: local\n")
    assert vzdump(100, dumpdir=folder).error == ""
    assert sorted(p.suffix for p in folder.iterdir()) == [".log", ".vma"]
    assert node.archives() == []


def test_defaults_come_from_the_file_and_yield_to_the_command_line(node: Node, vzdump: Vzdump):
    node.vm(100)
    (node.root / "etc/vzdump.conf").write_text("compress: gzip\nionice: 3\n")
    assert "INFO: ionice priority: 3" in vzdump(100).lines
    assert node.archives()[0].suffix == ".gz"
    vzdump(100, compress="lzo")
    assert sorted(p.suffix for p in node.archives()) == [".gz", ".lzo"]


def test_notes_and_protection_lie_beside_the_archive(node: Node, vzdump: Vzdump):
    node.vm(100)
    vzdump(100, storage="local", notes_template=r"{{guestname}} {{vmid}}\n{{node}} {{cluster}}", protected=1)
    (archive,) = node.archives()
    notes = archive.with_name(archive.name + ".notes").read_text()
    assert notes == f"vm100 100\n{paths.node()} standalone node"
    mark = archive.with_name(archive.name + ".protected")
    assert (mark.read_bytes(), mark.stat().st_mode & 0o777) == (b"", 0o644)


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("dir: local\n\tpath {root}/var/lib/vz\n\tcontent iso\n", "does not support content type 'backup'"),
        ("dir: local\n\tpath {root}/var/lib/vz\n\tcontent backup\n\tdisable 1\n", "is disabled"),
    ],
)
def test_a_storage_that_takes_no_backups_fails_the_whole_job(
    node: Node, vzdump: Vzdump, definition: str, reason: str
):  # fmt: skip
    node.vm(100, disk=0)
    paths.storage_config().write_text(definition.format(root=node.root))
    job = vzdump(100)
    assert reason in job.error
    assert job.said("ERROR: Backup job failed - ")
    assert node.archives() == []


def test_the_archive_goes_to_standard_output_and_everything_else_to_standard_error(node: Node, tmp_path: Path):
    image = node.vm(100)
    done = node.cli("vzdump", 100, "--stdout", "1")
    assert done.returncode == 0
    assert b"INFO: sending archive to stdout" in done.stderr
    archive = tmp_path / "out.vma"
    archive.write_bytes(done.stdout)
    assert read_disk(archive, image.stat().st_size, tmp_path) == image.read_bytes()
    assert list(node.dump.iterdir()) == []


def test_a_quiet_job_says_nothing_when_all_is_well_and_names_what_failed(node: Node):
    node.vm(100)
    good = node.cli("vzdump", 100, "--quiet", "1")
    assert (good.returncode, good.stdout, good.stderr) == (0, b"", b"")
    bad = node.cli("vzdump", 100, 999, "--quiet", "1")
    assert (bad.returncode, bad.stdout) == (255, b"")
    assert bad.stderr == b"ERROR: Backup of VM 999 failed - unable to find VM '999'\njob errors\n"


@pytest.mark.parametrize(
    "words", [[], ["100", "--mode", "never"], ["100", "--all", "1"], ["100", "--storage", "nowhere"], ["--pool", "p"]]
)
def test_wrong_parameters_are_told_and_nothing_is_run(node: Node, words: list[str]):
    node.vm(100)
    done = node.cli("vzdump", *words)
    assert done.returncode not in (0, None)
    assert done.stderr
    assert b"Traceback" not in done.stderr
    assert node.archives() == []


def test_a_failing_compressor_is_named_and_leaves_nothing(
    node: Node, vzdump: Vzdump, fake_tool: Callable[[str, str], Path]
):  # fmt: skip
    node.vm(100)
    fake_tool("zstd", "cat > /dev/null; echo no space left >&2; exit 3")
    job = vzdump(100, compress="zstd")
    assert job.said("ERROR:") == ["ERROR: Backup of VM 100 failed - wrong exit status 3 (no space left)"]
    assert [p.suffix for p in node.dump.iterdir()] == [".log"]


# -- retention --------------------------------------------------------------------------------------------------------


def old_backups(node: Node, *days: int) -> list[Path]:
    found = []
    for day in days:
        path = node.dump / f"vzdump-qemu-100-2020_01_{day:02d}-00_00_00.vma.zst"
        for name in (path.name, path.name + ".notes", path.name.partition(".")[0] + ".log"):
            (node.dump / name).touch()
        found.append(path)
    return found


def test_old_backups_go_with_their_log_and_notes_but_protected_and_foreign_ones_stay(node: Node, vzdump: Vzdump):
    node.vm(100)
    first, second, third = old_backups(node, 1, 2, 3)
    Path(f"{second}.protected").touch()
    other = node.dump / "vzdump-qemu-1000-2020_01_01-00_00_00.vma"
    named = node.dump / "vzdump-qemu-100-before-upgrade.vma"
    other.touch()
    named.touch()
    job = vzdump(100, prune_backups="keep-last=1")
    assert "INFO: prune older backups with retention: keep-last=1" in job.lines
    assert job.said("INFO: removing backup") == [
        f"INFO: removing backup 'local:backup/{path.name}'" for path in (first, third)
    ]
    assert "INFO: pruned 2 backup(s) not covered by keep-retention policy" in job.lines
    assert {second, other, named} < set(node.dump.iterdir())
    assert not {p for old in (first, third) for p in node.dump.glob(old.name.partition(".")[0] + "*")}


def test_without_removal_a_reached_limit_stops_the_backup_before_it_begins(node: Node, vzdump: Vzdump):
    node.vm(100)
    old_backups(node, 1, 2)
    job = vzdump(100, prune_backups="keep-last=1,keep-daily=1", remove=0)
    assert "max backup limit of 2" in job.said("ERROR:")[0]
    assert "INFO: status = stopped" not in job.lines
    assert len(node.archives(100)) == 2


def test_the_storage_limits_the_number_of_protected_backups(node: Node, vzdump: Vzdump):
    node.vm(100)
    paths.storage_config().write_text(
        f"dir: local\n\tpath {node.root}/var/lib/vz\n\tcontent backup,images\n\tmax-protected-backups 1\n"
    )
    assert vzdump(100, storage="local", protected=1).error == ""
    assert "limit (1)" in vzdump(100, storage="local", protected=1).said("ERROR:")[0]


def test_two_backups_in_one_second_get_two_names(node: Node, vzdump: Vzdump):
    node.vm(100, disk=0)
    for _ in range(2):
        assert vzdump(100).error == ""
    assert len(node.archives()) == 2


# -- hooks ------------------------------------------------------------------------------------------------------------


def hook(tmp_path: Path, body: str) -> Path:
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return script


def test_hooks_see_phase_mode_guest_and_their_variables(node: Node, vzdump: Vzdump, tmp_path: Path):
    node.vm(100)
    script = hook(tmp_path, 'echo "HOOK $*|$STOREID|$DUMPDIR|$VMTYPE|$HOSTNAME|$TARGET|$LOGFILE|$PATH_IN"')
    job = vzdump(100, script=script)
    (archive,) = node.archives()
    guest = f"local|{node.dump}|qemu|vm100|{archive}|{archive.with_suffix('.log')}|"
    assert [line.removeprefix("INFO: HOOK ") for line in job.said("INFO: HOOK")] == [
        "job-init|local||||||",
        f"job-start|local|{node.dump}|||||",
        f"backup-start stop 100|{guest}",
        f"backup-end stop 100|{guest}",
        f"log-end stop 100|{guest}",
        f"job-end|local|{node.dump}|||||",
    ]


def test_a_failing_guest_hook_fails_the_guest_and_aborts_it(node: Node, vzdump: Vzdump, tmp_path: Path):
    node.vm(100)
    script = hook(tmp_path, 'echo "HOOK $1"; test "$1" != backup-start')
    job = vzdump(100, script=script)
    assert job.error == "job errors"
    assert f"failed - command '{script} backup-start stop 100' failed: exit code 1" in job.said("ERROR:")[0]
    phases = [line.split()[2] for line in job.said("INFO: HOOK")]
    assert phases == ["job-init", "job-start", "backup-start", "backup-abort", "log-end", "job-end"]


@pytest.mark.parametrize(("phase", "after"), [("job-init", []), ("job-start", ["job-abort"])])
def test_a_failing_job_hook_fails_the_job(
    node: Node, vzdump: Vzdump, tmp_path: Path, phase: str, after: list[str]
):  # fmt: skip
    node.vm(100)
    script = hook(tmp_path, f'echo "HOOK $1"; test "$1" != {phase}')
    job = vzdump(100, script=script)
    assert f"hook {phase}' failed: exit code 1" in job.error
    phases = [line.split()[2] for line in job.said("INFO: HOOK")]
    assert phases[phases.index(phase) + 1 :] == after
    assert node.archives() == []


def test_failures_of_the_last_hooks_are_warnings(node: Node, vzdump: Vzdump, tmp_path: Path):
    node.vm(100)
    job = vzdump(100, script=hook(tmp_path, 'test "$1" != log-end'))
    assert job.error == ""
    assert "log-end" in job.said("WARN:")[0]


# -- report -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vmid", "options", "mailed"),
    [
        (100, {"mailto": "a@example.com"}, "backup successful"),
        (100, {"mailto": "a@example.com", "mailnotification": "failure"}, ""),
        (999, {"mailto": "a@example.com", "mailnotification": "failure"}, "999: unable to find VM '999'"),
        (999, {}, ""),
    ],
)
def test_the_report_is_mailed_when_it_is_wanted(
    node: Node, vzdump: Vzdump, fake_tool: Callable[[str, str], Path], tmp_path: Path, vmid: int,
    options: dict[str, str], mailed: str,
):  # fmt: skip
    node.vm(100)
    fake_tool("sendmail", f"cat > {tmp_path}/mail")
    vzdump(vmid, **options)
    if not mailed:
        assert not (tmp_path / "mail").exists()
        return
    text = (tmp_path / "mail").read_text()
    assert mailed in text
    assert "Starting Backup of VM" in text


# -- one at a time, signals, kills ------------------------------------------------------------------------------------


@contextlib.contextmanager
def busy_job(node: Node, tmp_path: Path, *options: object):
    """A job of VM 100 that is held in the middle: the slow compressor reads nothing until told."""
    node.vm(100)
    process = node.spawn("vzdump", 100, "--compress", "zstd", *options)
    try:
        wait_for(lambda: list(node.dump.glob("*.dat")), "the archive's beginning")
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def slow(fake_tool: Callable[[str, str], Path]) -> None:
    fake_tool("zstd", "exec sleep 60")


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_job_and_cleans_up(node: Node, tmp_path: Path, number: signal.Signals):
    before = node.files()
    with busy_job(node, tmp_path) as process:
        ask_to_end(process, number)
        _, said = process.communicate()
    assert process.returncode == 255
    assert b"ERROR: Backup of VM 100 failed - interrupted by signal" in said
    assert said.endswith(b"interrupted by signal\n")
    left = {name for name in node.files() - before if not name.endswith((".log", ".raw", "100.conf"))}
    assert left == set()
    assert config.load("qemu", 100).lock == ""


@pytest.mark.usefixtures("slow")
def test_a_second_job_waits_for_the_first_as_long_as_it_may(node: Node, vzdump: Vzdump, tmp_path: Path):
    with busy_job(node, tmp_path):
        job = vzdump(100, lockwait=0)
    assert "another backup job is running" in job.error
    assert job.said("ERROR: Backup job failed - can't acquire lock '")


@pytest.mark.usefixtures("slow")
def test_stop_ends_the_running_job_and_then_does_its_own(node: Node, vzdump: Vzdump, tmp_path: Path):
    with busy_job(node, tmp_path) as process:
        assert vzdump(stop=1).error == ""
        assert process.wait(timeout=30) == 255
    assert node.archives() == []
    assert vzdump(100, stop=1).error == ""
    assert len(node.archives()) == 1


@pytest.mark.usefixtures("slow")
def test_after_a_kill_the_next_job_cleans_up_and_names_who_left_the_lock(
    node: Node, vzdump: Vzdump, tmp_path: Path
):  # fmt: skip
    with busy_job(node, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not running_nbd_servers(node), "the end of the killed job's qemu-nbd")
    assert config.load("qemu", 100).lock == "backup"
    assert list(node.dump.glob("*.dat"))
    job = vzdump(100)
    assert job.said("INFO: cleaning up after the killed backup of guest 100 (UPID:")
    assert not list(node.dump.glob("*.dat")) + list(node.dump.glob("*.tmp"))
    (error,) = job.said("ERROR:")
    assert re.search(r"VM is locked \(backup\) by the task 'UPID:.*:vzdump:100:.*', .*'qm unlock 100'", error)
    again = vzdump(100)
    assert "by the task 'UPID:" in again.said("ERROR:")[0]
    config.clear_lock("qemu", 100)
    assert vzdump(100).error == ""
    assert vzdump(100).said("INFO: cleaning up") == []


def running_nbd_servers(node: Node) -> bytes:
    done = subprocess.run(["pgrep", "-af", f"qemu-nbd.*{node.images}"], capture_output=True, check=False)
    return done.stdout


def test_another_lock_is_respected_and_kept(node: Node, vzdump: Vzdump):
    node.vm(100, "lock: snapshot")
    job = vzdump(100)
    assert "VM is locked (snapshot)" in job.said("ERROR:")[0]
    assert config.load("qemu", 100).lock == "snapshot"


def test_a_reader_that_goes_away_ends_the_job_cleanly(node: Node, tmp_path: Path):
    node.vm(100)
    script = hook(tmp_path, 'test "$1" != backup-start || sleep 0.5')
    process = node.spawn("vzdump", 100, "--script", script)
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=20) != 0
    process.stdout.close()
    assert node.archives() == []
    assert config.load("qemu", 100).lock == ""


def test_a_machine_that_stops_before_the_lock_is_there_is_saved_as_one_that_is_off(
    node: Node, vzdump: Vzdump, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    answers = iter([True])
    monkeypatch.setattr(qemu_backup.QemuEngine, "is_running", lambda _self, _vmid: next(answers, False))
    node.vm(100)
    done = vzdump(100, mode="snapshot")
    assert done.error == ""
    assert [line for line in done.lines if "status =" in line or "backup mode" in line] == [
        "INFO: status = running", "INFO: status = stopped", "INFO: backup mode: stop",
    ]  # fmt: skip
