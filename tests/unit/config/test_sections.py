"""Section files: storage.cfg and its like."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.config import sections
from pvetools.system.errors import ConfigError, DigestMismatch, Exists, LockTimeout, NotFound, PveError

TEXT = """# our storages

# the first one
dir: local
\tpath /var/lib/vz
\tcontent iso,backup

# comment of the second
nfs: far
    # a comment inside
    path /mnt/pve/far
    server 10.0.0.1
    disable
    tag a
    tag b


dir: last
\tpath /last
# the end
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    path = tmp_path / "etc/pve/storage.cfg"
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    return path


def test_sections_are_read_with_their_properties(path: Path) -> None:
    file = sections.load(path)
    assert {name: (part.type, part.values) for name, part in file.ids().items()} == {
        "local": ("dir", {"path": "/var/lib/vz", "content": "iso,backup"}),
        "far": ("nfs", {"path": "/mnt/pve/far", "server": "10.0.0.1", "disable": "1", "tag": ["a", "b"]}),
        "last": ("dir", {"path": "/last"}),
    }
    assert not file.problems
    assert file.digest == hashlib.sha1(TEXT.encode()).hexdigest()


def test_a_missing_file_is_an_empty_one(tmp_path: Path) -> None:
    file = sections.load(tmp_path / "no.cfg")
    assert file.sections == []
    assert file.text() == ""


def test_a_change_rewrites_only_its_section(path: Path) -> None:
    with sections.editing(path) as file:
        file.ids()["local"].values["shared"] = "1"
    assert path.read_text() == TEXT.replace(
        "\tpath /var/lib/vz\n\tcontent iso,backup\n", "\tpath /var/lib/vz\n\tcontent iso,backup\n\tshared 1\n"
    )


def test_a_new_section_is_set_apart_by_a_blank_line(path: Path) -> None:
    path.write_text("dir: a\n\tpath /a")
    with sections.editing(path) as file:
        file.add("dir", "b", {"path": "/b", "disable": "1", "tag": ["x", "y"], "comment": "my words"})
    assert path.read_text() == (
        "dir: a\n\tpath /a\n\ndir: b\n\tcomment my words\n\tdisable\n\tpath /b\n\ttag x\n\ttag y\n"
    )
    with sections.editing(path) as file:
        file.add("dir", "cc", {"path": "/c"})
    assert path.read_text().endswith("\ttag y\n\ndir: cc\n\tpath /c\n")


def test_removing_a_section_takes_its_comment_and_nothing_else(path: Path) -> None:
    with sections.editing(path) as file:
        file.remove("local")
    assert path.read_text().startswith("# our storages\n\n# comment of the second\nnfs: far\n")
    with sections.editing(path) as file:
        file.remove("far")
    assert path.read_text() == "# our storages\n\n\ndir: last\n\tpath /last\n# the end\n"
    with sections.editing(path) as file:
        file.remove("last")
    assert sections.load(path).sections == []


def test_used_and_unknown_ids_are_refused(path: Path) -> None:
    file = sections.load(path)
    with pytest.raises(Exists, match="'local' is already defined"):
        file.add("dir", "local", {})
    with pytest.raises(NotFound, match="'nope' is not defined"):
        file.remove("nope")


def test_an_error_inside_the_block_changes_nothing(path: Path) -> None:
    with pytest.raises(RuntimeError), sections.editing(path) as file:
        file.remove("local")
        raise RuntimeError
    assert path.read_text() == TEXT


def test_digests_guard_against_lost_updates(path: Path) -> None:
    with pytest.raises(DigestMismatch, match=r"storage\.cfg"), sections.editing(path, "0" * 40):
        pass
    with pytest.raises(DigestMismatch), sections.editing(path) as file:
        path.write_text("dir: other\n\tpath /o\n")
        file.remove("local")
    assert path.read_text() == "dir: other\n\tpath /o\n"


def test_two_editors_wait_for_each_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections.lock.config_lock, "__defaults__", (0.05,))
    with sections.editing(path), pytest.raises(LockTimeout), sections.editing(path):
        pass


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("nonsense\n", 1, "ignore config line: nonsense"),
        ("dir: a b\n", 1, "ignore config line: dir: a b"),
        ("dir: a\npath /x\n", 2, "section 'a' - ignore config line: path /x"),
        ("dir: a\n\tpath /a\n\n\tcontent iso\n", 4, "ignore config line: \tcontent iso"),
        ("dir: a\n\ndir: a\n", 3, "duplicate section: a"),
    ],
)
def test_damaged_lines_are_reported_with_their_place(path: Path, text: str, line: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{path} line {line}: {reason}"):
        sections.parse(text, path, strict=True)
    file = sections.parse(text, path)
    assert [problem.line for problem in file.problems] == [line]
    assert file.text() == text


def test_a_damaged_section_is_not_rewritten_but_others_are(path: Path) -> None:
    path.write_text("dir: a\n\tpath /a\nbroken\n\ndir: b\n\tpath /b\n")
    with pytest.raises(ConfigError, match=r"line 3: .*mend the file first"), sections.editing(path) as file:
        file.ids()["a"].values["shared"] = "1"
    with sections.editing(path) as file:
        file.ids()["b"].values["shared"] = "1"
    assert path.read_text() == "dir: a\n\tpath /a\nbroken\n\ndir: b\n\tpath /b\n\tshared 1\n"


@pytest.mark.parametrize("value", ["", " ", "a\nb"])
def test_values_that_a_file_cannot_hold_are_refused(path: Path, value: str) -> None:
    with pytest.raises(PveError, match="'local': value of 'shared'"), sections.editing(path) as file:
        file.ids()["local"].values["shared"] = value
    assert path.read_text() == TEXT


FRAGMENTS = ["dir: a", "dir: b", "\n", "\n", "\tpath /x", " k v", "#c", "\tk", "junk", ":", "\r", "\x0b", "\u2028", " "]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=30).map("".join)


@given(TEXTS)
def test_any_text_is_written_back_byte_for_byte(text: str) -> None:
    assert sections.parse(text, Path("x.cfg")).text() == text


WORDS = st.from_regex(r"[a-z][a-z0-9-]{1,6}", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=10).filter(
    lambda text: text == text.strip(" \t\r\f\v")
)


@given(TEXTS, st.dictionaries(WORDS, st.dictionaries(WORDS, VALUES | st.lists(VALUES, min_size=2)), max_size=3))
def test_what_is_added_is_read_back_and_the_rest_stays(text: str, new: dict[str, dict[str, sections.Value]]) -> None:
    file = sections.parse(text, Path("x.cfg"))
    before = {name: part.values for name, part in file.ids().items()}
    for name, values in new.items():
        file.add("dir", name, values)
    again = sections.parse(file.text(), Path("x.cfg"))
    found = {name: part.values for name, part in again.ids().items()}
    assert found == before | new
    assert [problem.reason for problem in again.problems] == [problem.reason for problem in file.problems]
    for name in new:
        again.remove(name)
    last = sections.parse(again.text(), Path("x.cfg"))
    assert {name: part.values for name, part in last.ids().items()} == before
