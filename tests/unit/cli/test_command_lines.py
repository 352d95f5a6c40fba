"""Manners of the command line, as users of Proxmox VE know them."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.cli import app
from pvetools.render.command import Tool, UsageError, pick
from tests.unit.cli import demo
from tests.unit.cli.conftest import Ran

Run = Callable[..., Ran]


def _parse(tool: Tool, *words: str) -> dict[str, Any]:
    name, rest = pick(tool, words)
    return app.parse(tool.commands[name], rest).raw


@pytest.mark.parametrize(
    "words",
    [
        ("--name", "x"),
        ("--name=x",),
        ("-name", "x"),
        ("-name=x",),
    ],
)
def test_an_option_is_written_with_one_or_two_dashes_and_with_or_without_equals_sign(
    tool: Tool, words: tuple[str, ...]
) -> None:
    assert _parse(tool, "set", "100", *words) == {"vmid": "100", "name": "x"}
    assert _parse(tool, "set", *words, "100") == {"vmid": "100", "name": "x"}


@pytest.mark.parametrize("value", ["-5", "--name", "a=b", "", "--", "ä b"])
def test_a_value_may_look_like_anything(tool: Tool, value: str) -> None:
    assert _parse(tool, "set", "100", "--name", value)["name"] == value
    assert _parse(tool, "set", "100", f"--name={value}")["name"] == value


_WORD = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))


@given(_WORD, _WORD, st.lists(_WORD, min_size=1))
def test_whatever_is_given_arrives_unchanged(name: str, script: str, extra: list[str]) -> None:
    raw = app.parse(demo.TOOL.commands["set"], ["--name", name, f"-script={script}", "100"], target=demo.SET).raw
    assert raw == {"vmid": "100", "name": name, "script": script}
    raw = app.parse(demo.TOOL.commands["exec"], ["100", "--", *extra], target=demo.RUN).raw
    assert raw == {"vmid": "100", "extra": extra}


def test_a_boolean_stands_alone_or_with_its_value(tool: Tool) -> None:
    assert _parse(tool, "set", "100", "--onboot") == {"vmid": "100", "onboot": "1"}
    assert _parse(tool, "set", "100", "--onboot", "0")["onboot"] == "0"
    assert _parse(tool, "set", "100", "--onboot", "--name", "x") == {"vmid": "100", "onboot": "1", "name": "x"}
    assert _parse(tool, "set", "--onboot", "--", "100") == {"vmid": "100", "onboot": "1"}


def test_a_list_option_is_repeated_or_written_in_one_word(tool: Tool) -> None:
    assert _parse(tool, "set", "100", "--delete", "a0,b0", "--delete", "c0")["delete"] == "a0,b0,c0"
    assert _parse(tool, "set", "100", "--command", "a", "--command", "b,c")["command"] == ["a", "b,c"]


def test_of_a_repeated_plain_option_the_last_one_counts(tool: Tool) -> None:
    assert _parse(tool, "set", "100", "--name", "a", "--name", "b")["name"] == "b"


def test_words_behind_two_dashes_are_taken_as_they_are(tool: Tool) -> None:
    assert _parse(tool, "exec", "100", "--", "ls", "-l", "--", "--help") == {
        "vmid": "100",
        "extra": ["ls", "-l", "--", "--help"],
    }


def test_where_words_may_follow_the_way_to_give_them_is_told(run: Run) -> None:
    assert run("exec", "100", "ls", "-l").err.splitlines()[:3] == [
        "400 unable to parse option",
        "Unknown option: l",
        "(words that begin with a dash and are no options stand behind '--')",
    ]


def test_an_alias_and_a_family_of_options_are_known(run: Run) -> None:
    ran = run("set", "100", "--disk", "x", "--net3", "y", "--output-format", "json")
    assert ran.data == {"vmid": 100, "ide": "x", "net3": "y", "node": "here"}


def test_all_wrong_options_are_reported_at_once(run: Run) -> None:
    ran = run("set", "100", "--foo", "--memory", "3", "--net4", "x", "--onboot", "perhaps", "--name")
    assert ran.code == 255
    assert ran.out == ""
    assert ran.err.splitlines()[:6] == [
        "400 unable to parse option",
        "Unknown option: foo",
        "Unknown option: net4",
        "Option name requires an argument",
        "memory: value must have a minimum value of 16",
        "onboot: type check ('boolean') failed - got 'perhaps'",
    ]


def test_wrong_values_are_reported_with_their_names(run: Run) -> None:
    ran = run("set", "7", "--memory", "x", "--onboot", "perhaps")
    assert ran.code == 255
    assert ran.err.splitlines() == [
        "400 Parameter verification failed.",
        "vmid: value must have a minimum value of 100",
        "memory: type check ('integer') failed - got 'x'",
        "onboot: type check ('boolean') failed - got 'perhaps'",
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("set",), "not enough arguments"),
        (("set", "100", "101"), "too many arguments"),
        (("set", "100", "--vmid", "101"), "too many arguments"),
        (("set", "100", "--node", "there"), "Unknown option: node"),
        ((), "no command specified"),
        (("disk",), "no command specified after 'disk'"),
        (("disk", "eat", "100"), "unknown command 'demo disk eat'"),
        (("sta", "100"), "command 'demo sta' is ambiguous: start, status"),
        (("frobnicate",), "unknown command 'demo frobnicate'"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_sentence(run: Run, words: tuple[str, ...], complaint: str) -> None:
    ran = run(*words)
    assert ran.code == 255
    assert ran.out == ""
    assert complaint in ran.err.splitlines()[0] + "\n" + ran.err.splitlines()[1]


def test_a_wrong_value_is_told_beside_a_missing_argument(run: Run) -> None:
    assert run("set", "--memory", "3").err.splitlines()[:2] == [
        "400 not enough arguments",
        "memory: value must have a minimum value of 16",
    ]


def test_unique_prefixes_of_commands_and_aliases_are_enough(tool: Tool) -> None:
    assert pick(tool, ["stat", "100"]) == ("status", ["100"])
    assert pick(tool, ["d", "im", "100"]) == ("disk import", ["100"])
    assert pick(tool, ["importdisk", "100"]) == ("disk import", ["100"])
    assert pick(tool, ["imp", "100"]) == ("disk import", ["100"])
    with pytest.raises(UsageError):
        pick(tool, ["s"])


def test_a_file_parameter_is_replaced_by_the_content_encoded_where_the_option_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("ssh-rsa AA+/= me@x\n")
    name = str(tmp_path / "file")
    ran = run("set", "100", "--keys", name, "--script", name, "--output-format", "json")
    assert ran.data["keys"] == "ssh-rsa%20AA%2B%2F%3D%20me%40x%0A"
    assert ran.data["script"] == "ssh-rsa AA+/= me@x\n"


def test_an_unreadable_file_parameter_is_named(run: Run) -> None:
    ran = run("set", "100", "--keys", "/nonexistent/keys")
    assert (ran.code, ran.err) == (255, "can't read file '/nonexistent/keys': No such file or directory\n")


def _on_a_terminal(code: str, *talk: tuple[str, str]) -> tuple[int, str]:
    """Run Python code on a terminal of its own and answer its questions; gives its status and what was shown."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    for question, answer in talk:
        while question.encode() not in shown:
            shown += os.read(fd, 1024)
        os.write(fd, answer.encode() + b"\n")
    with contextlib.suppress(OSError):  # how the end of a terminal is told
        while part := os.read(fd, 1024):
            shown += part
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


_SCRIPT = """
import sys
from tests.unit.cli import demo
from pvetools.cli import app
sys.modules["pvetools.demo"] = demo
sys.argv = ["demo", "set", "100", "--password", "--output-format", "json"]
app.main(demo.TOOL)
"""


@pytest.mark.timeout(20)
def test_a_password_is_asked_twice_and_never_shown() -> None:
    code, shown = _on_a_terminal(_SCRIPT, ("Enter new", "secret1"), ("Retype", "secret1"))
    asked, _, printed = shown.rpartition("Retype new password:")
    assert code == 0
    assert "Enter new password:" in asked
    assert "secret1" not in asked
    assert '"password":"secret1"' in printed


@pytest.mark.timeout(20)
def test_two_different_passwords_are_refused() -> None:
    code, shown = _on_a_terminal(_SCRIPT, ("Enter new", "secret1"), ("Retype", "secret2"))
    assert code == 255
    assert "password: the two inputs differ" in shown


def test_without_a_terminal_nobody_is_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_terminal(path: str, *more: Any) -> int:
        raise OSError(6, "No such device or address")

    monkeypatch.setattr("os.open", no_terminal)
    ran = run("set", "100", "--password")
    assert ran.code == 255
    assert "password: no value given, and there is no terminal to ask for it" in ran.err


def test_typer_reads_the_signature_that_a_function_states(tool: Tool) -> None:
    """The contract with Typer: parameters come from ``__signature__``, not from the function's own."""
    assert _parse(tool, "set", "100", "--net0", "a=b,c", "--delete", "x0") == {
        "vmid": "100",
        "net0": "a=b,c",
        "delete": "x0",
    }
