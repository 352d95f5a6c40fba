"""The hook script and the log of a guest."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.backup import hooks, joblog, progress
from pvetools.system import log
from pvetools.system.errors import ParamErrors, PveError


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    with log.console(lines.append):
        yield lines


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "hook"
    path.write_text(
        '#!/bin/sh\nenv | grep -v "^PWD=\\|^SHLVL=\\|^_=" | sort\necho "$@" >&2\ntest "$1" != pre-stop || exit 3\n'
    )
    path.chmod(0o755)
    return path


def test_the_script_sees_its_phase_and_only_its_own_variables(script: Path, said: list[str]):
    hook = hooks.Hooks(str(script)).with_variables(STOREID="local", DUMPDIR="", HOSTNAME="web one")
    hook.call("backup-start", "snapshot", 100)
    assert sorted(said) == ["INFO: HOSTNAME=web one", "INFO: STOREID=local", "INFO: backup-start snapshot 100"]


def test_job_phases_have_no_further_arguments(script: Path, said: list[str]):
    hooks.Hooks(str(script)).call("job-init")
    assert said == ["INFO: job-init"]


def test_a_failing_script_is_an_error_and_a_late_one_a_warning(script: Path, said: list[str]):
    hook = hooks.Hooks(str(script))
    with pytest.raises(PveError, match=r"hook pre-stop stop 100' failed: exit code 3"):
        hook.call("pre-stop", "stop", 100)
    hook.try_call("pre-stop", "stop", 100)
    assert said[-1].startswith("WARN: command ")


def test_without_a_script_nothing_happens(said: list[str]):
    hooks.Hooks().call("job-start")
    assert said == []


def test_a_script_must_be_an_executable_file(tmp_path: Path):
    path = tmp_path / "plain"
    with pytest.raises(ParamErrors, match="does not exist"):
        hooks.check_script(str(path))
    path.write_text("")
    with pytest.raises(ParamErrors, match="not an executable file"):
        hooks.check_script(str(path))


def test_the_file_gets_times_and_levels_but_not_what_is_for_the_console(tmp_path: Path, said: list[str]):
    guest = joblog.GuestLog(tmp_path / "sub/qemu-100.log")
    with guest.recording():
        joblog.info("one\ntwo")
        guest.console("Backup started")
        log.emit("from elsewhere")
        joblog.warn("careful\nreally")
        joblog.error("broken")
    joblog.info("after")
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    expected = ["INFO: one", "INFO: two", "INFO: from elsewhere", "WARN: careful", "WARN: really", "ERROR: broken"]
    lines = guest.path.read_text().splitlines()
    assert [re.sub(f"^{stamp}", "", line) for line in lines] == expected
    assert all(re.match(stamp, line) for line in lines)
    assert said[2] == "INFO: Backup started"


def test_a_quiet_console_shows_errors_only(capsys: pytest.CaptureFixture[str]):
    console = joblog.Console(quiet=True)
    for line in ("INFO: fine", "WARN: hm", "ERROR: Backup of VM 100 failed - disk full"):
        console.take(line)
    assert capsys.readouterr().err == "ERROR: Backup of VM 100 failed - disk full\n"


def test_progress_is_told_when_time_and_percentage_moved(said: list[str]):
    now = [0.0]
    told = progress.Progress({"a": 100 << 20, "b": 100 << 20}, clock=lambda: now[0])
    for second, done in ((1, 10), (3, 20), (4, 40), (7, 40), (8, 60)):
        now[0] = float(second)
        told("a", done << 20, 10 << 20)
    now[0] = 10.0
    told("a", 100 << 20, 10 << 20)
    told("b", 100 << 20, 90 << 20)
    told.finish()
    assert said == [
        "INFO:  10% (20.0 MiB of 200.0 MiB) in 3s, read: 6.7 MiB/s, write: 3.3 MiB/s",
        "INFO:  20% (40.0 MiB of 200.0 MiB) in 7s, read: 5.0 MiB/s, write: 5.0 MiB/s",
        "INFO:  50% (100.0 MiB of 200.0 MiB) in 10s, read: 20.0 MiB/s, write: 20.0 MiB/s",
        "INFO: 100% (200.0 MiB of 200.0 MiB) in 10s, read: 97.7 GiB/s, write: 9.8 GiB/s",
        "INFO: backup is sparse: 100.00 MiB (50%) total zero data",
        "INFO: transferred 200.00 MiB in 10 seconds (20.0 MiB/s)",
    ]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0KB"), (5 << 20, "5MB"), (4 << 30, "4.00GB"), ((1 << 40) * 3 // 2, "1.50TB")]
)
def test_archive_sizes_are_short(size: int, text: str):
    assert progress.archive_size(size) == text
