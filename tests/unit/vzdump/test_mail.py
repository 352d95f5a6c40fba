"""The report by mail: a real program stands in for sendmail."""

from email import message_from_bytes, policy
from pathlib import Path

import pytest

from pvetools.backup.mail import MAX_LOG, Report, Result, send
from pvetools.system import log


@pytest.fixture
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sendmail").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail\n')
    (folder / "sendmail").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    return tmp_path


def report(tmp_path: Path, *, failed: int = 0) -> Report:
    good = tmp_path / "good.log"
    good.write_text("2024-01-02 03:04:05 INFO: Starting Backup of VM 100 (qemu)\n")
    results = [Result(100, "web", "ok", 62.0, 5 << 20, "vzdump-qemu-100.vma", log=good)]
    results += [Result(200 + n, "", "err", 1.0, reason=f"disk {n} is full") for n in range(failed)]
    return Report(results, "vzdump 100 200", "hook said hello\n", 63.0)


def test_a_good_job_is_told_with_table_sums_and_logs(outbox: Path):
    send(report(outbox), ["admin@example.com", "other@example.com"], "nightly")
    mail = message_from_bytes((outbox / "mail").read_bytes(), policy=policy.default)
    assert mail["Subject"].endswith("backup successful")
    assert mail["To"] == "admin@example.com, other@example.com"
    text = mail.get_content()
    assert "100   web   ok      00:01:02  5MB   vzdump-qemu-100.vma" in text
    assert "Total running time: 00:01:03\nTotal size: 5MB" in text
    assert "vzdump 100 200\n\nhook said hello\n\n100: 2024-01-02 03:04:05 INFO: Starting Backup" in text
    assert (outbox / "arguments").read_text() == "-B 8BITMIME -f root -- admin@example.com other@example.com\n"


@pytest.mark.parametrize(("failed", "end"), [(1, "failed: 200: disk 0 is full"), (2, "failed: multiple problems")])
def test_the_subject_says_what_failed(tmp_path: Path, failed: int, end: str):
    assert report(tmp_path, failed=failed).subject().endswith(end)


def test_failures_are_listed_and_have_no_size(tmp_path: Path):
    text = report(tmp_path, failed=2).body()
    assert text.startswith("200: disk 0 is full\n201: disk 1 is full\n")
    assert "200         err     00:00:01\n" in text


def test_a_huge_log_becomes_a_hint(tmp_path: Path):
    made = report(tmp_path)
    made.results[0].log.write_text("x" * (MAX_LOG + 1))
    assert f"100: log is too long for a mail, see {made.results[0].log}" in made.body()


def test_users_are_looked_up_and_unknown_ones_are_a_warning(outbox: Path):
    (outbox / "etc/pve").mkdir(parents=True)
    (outbox / "etc/pve/user.cfg").write_text("user:root@pam:1:0:Ada:L:root@example.com:::\n")
    said: list[str] = []
    with log.console(said.append):
        send(report(outbox), ["root@pam", "nobody@pve"])
    assert (outbox / "arguments").read_text().endswith("-- root@example.com\n")
    assert said == ["WARN: no mail to 'nobody@pve': no address is known for this user"]


def test_a_host_without_sendmail_is_a_warning(outbox: Path, monkeypatch: pytest.MonkeyPatch):
    (outbox / "bin/sendmail").write_text("#!/bin/sh\nexit 75\n")
    said: list[str] = []
    with log.console(said.append):
        send(report(outbox), ["admin@example.com"])
    assert said[0].startswith("WARN: could not send the report to admin@example.com: ")
