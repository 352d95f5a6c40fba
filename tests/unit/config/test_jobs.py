"""Backup jobs forget guests that are destroyed with --purge."""

import pytest

from pvetools.config import jobs
from pvetools.system import paths

JOBS = """\
vzdump: nightly
\tvmid 100,101
\tschedule 03:00

vzdump: lonely
\tvmid 100
\tschedule 04:00

vzdump: rest
\tall 1
\texclude 100

realm-sync: other
\tvmid 100
"""


@pytest.fixture
def job_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    path = paths.etc_pve() / "jobs.cfg"
    path.parent.mkdir(parents=True)
    path.write_text(JOBS)
    return path


def test_a_guest_leaves_the_lists_and_empty_jobs_go(job_file):
    jobs.forget_guest(100)
    text = job_file.read_text()
    assert "\tvmid 101\n" in text
    assert "lonely" not in text
    assert "exclude" not in text
    assert "realm-sync: other\n\tvmid 100" in text


def test_a_guest_that_no_job_names_changes_nothing(job_file):
    jobs.forget_guest(999)
    assert job_file.read_text() == JOBS
