"""Completion and manual pages are generated from the tables, committed, and up to date."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pvetools.cli import generate
from pvetools.options.lxc import LxcOptions
from pvetools.options.qemu import QemuOptions
from pvetools.options.storage import StorageOptions
from pvetools.render import manpages
from pvetools.schema.core import Record

REPOSITORY = Path(__file__).parents[3]
PAGES = [*(f"{name}.1" for name in generate.TOOLS), "qm.conf.5", "pct.conf.5", "storage.cfg.5", "vzdump.conf.5"]


def test_the_committed_files_are_what_the_tables_give() -> None:
    fresh = generate.files()
    committed = {
        str(path.relative_to(REPOSITORY)): path.read_text()
        for folder in ("completions", "man")
        for path in (REPOSITORY / folder).iterdir()
    }
    stale = [name for name in sorted(fresh.keys() | committed.keys()) if fresh.get(name) != committed.get(name)]
    assert stale == [], "run: make generate"


def test_generating_writes_only_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> list[str]:
        generate.write(tmp_path)
        return capsys.readouterr().out.split()

    assert set(write()) == {"completions/pvetools.bash", *(f"man/{name}" for name in PAGES)}
    assert write() == []
    (tmp_path / "man/qm.1").write_text("old")
    assert write() == ["man/qm.1"]


def _shown(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    man = shutil.which("man")
    assert man, "install man-db"
    environment = {"LC_ALL": "C.UTF-8", "MANWIDTH": "100", "PATH": "/usr/bin:/bin", "MANOPT": "", "TERM": "dumb"}
    command = [man, *options, "--local-file", str(page)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_valid_and_readable(name: str) -> None:
    page = REPOSITORY / "man" / name
    done = _shown(page, "--warnings=all", "-Tutf8", "-Z")
    assert (done.stderr, done.returncode) == ("", 0)
    text = re.sub(".\b", "", _shown(page, "--pager=cat").stdout)
    assert f"{name.rpartition('.')[0].upper()}({name[-1]})" in text
    assert "SEE ALSO" in text
    assert "\\" not in text.replace("\\n", "")


@pytest.mark.parametrize(
    ("name", "record"), [("qm.conf.5", QemuOptions), ("pct.conf.5", LxcOptions), ("storage.cfg.5", StorageOptions)]
)
def test_a_file_page_explains_every_option(name: str, record: type[Record]) -> None:
    text = (REPOSITORY / "man" / name).read_text()
    for row in record.FIELDS.values():
        if row.name not in ("storage", "type") or record is not StorageOptions:
            assert re.search(rf"^\\fB{re.escape(manpages.escape(row.label))}:?\\fR", text, re.MULTILINE), row.label


def test_text_that_roff_would_take_for_commands_is_escaped() -> None:
    assert manpages.escape(".x\n'y -1 \\z") == "\\&.x\n\\&'y \\-1 \\ez"
