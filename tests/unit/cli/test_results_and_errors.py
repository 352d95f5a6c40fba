"""What a tool prints, where, and with which exit status."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import yaml

from pvetools.render.output import OutputOptions, generic
from pvetools.system import stdio
from tests.unit.cli.conftest import Ran

Run = Callable[..., Ran]


def test_an_error_is_one_sentence_on_standard_error_with_its_own_status(run: Run) -> None:
    assert run("fail", "100") == Ran(2, "", "there is no such thing as 'x'\n")


def test_a_fault_of_ours_shows_no_traceback(run: Run) -> None:
    ran = run("crash", "100")
    assert ran.code == 255
    assert ran.err == "internal error: ZeroDivisionError: oops (PVETOOLS_DEBUG=1 shows where)\n"


def test_debugging_shows_where_an_error_comes_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVETOOLS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("crash", "100")


def test_only_root_may_run_commands_but_everybody_may_read_help(run: Run) -> None:
    assert run("status", "100", euid=1000) == Ran(255, "", "please run as root\n")
    assert run("help", euid=1000).code == 0


def test_results_are_printed_in_every_format(run: Run) -> None:
    wanted = {"vmid": 100, "name": "ä", "node": "here"}
    words = ("set", "100", "--name", "ä", "--output-format")
    assert run(*words, "json").out == '{"name":"ä","node":"here","vmid":100}\n'
    assert run(*words, "json-pretty").data == wanted
    assert yaml.safe_load(run(*words, "yaml").out) == wanted
    assert run(*words, "text", "--noborder", "--noheader").out == "name ä\nnode here\nvmid 100\n"
    assert run(*words, "text", "--quiet").out == ""
    assert "output-format: value 'xml' does not have a value" in run(*words, "xml").err


def test_json_stays_whole_whatever_bytes_a_name_has(run: Run) -> None:
    ran = run("set", "100", "--name", "caf\udce9", "--output-format", "json")
    assert '"name":"caf\\udce9"' in ran.out
    assert json.loads(ran.out.encode()) == {"vmid": 100, "name": "caf\udce9", "node": "here"}


def test_signs_that_steer_a_terminal_are_spelled_out_there_and_only_there() -> None:
    text, screen, pipe = "a\tb\x1b[2J\x07\x9b\ufeffé\n", io.StringIO(), io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    assert stdio.harmless(text, screen) == "a\tb\\x1b[2J\\x07\\x9b\ufeffé\n"
    assert stdio.harmless(text, pipe) == text


def test_a_command_without_a_result_takes_no_output_options(run: Run) -> None:
    assert "Unknown option: output-format" in run("fail", "100", "--output-format", "json").err


def test_a_table_is_drawn_with_plain_characters_when_no_terminal_reads_it() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": None, "b": True}]
    options = OutputOptions()
    assert generic(rows, options).splitlines() == [
        "+---+---+",
        "| a | b |",
        "+===+===+",
        "| 1 | x |",
        "+---+---+",
        "|   | 1 |",
        "+---+---+",
    ]
    assert generic(rows, OutputOptions(noborder=True)).splitlines() == ["a b", "1 x", "  1"]


def test_sizes_and_times_are_shown_for_people_unless_switched_off() -> None:
    data = {"maxmem": 2 << 30, "uptime": 3700, "cpu": 0.5, "count": 3, "age": 60}
    returns = {"properties": {"age": {"renderer": "duration"}}}

    def lines(human: bool) -> list[str]:
        options = OutputOptions(human_readable=human, noborder=True, noheader=True)
        return [line.split(maxsplit=1)[1] for line in generic(data, options, returns).splitlines()]

    assert dict(zip(sorted(data), lines(True), strict=True)) == {
        "age": "1m",
        "count": "3",
        "cpu": "50.00%",
        "maxmem": "2.00 GiB",
        "uptime": "1h 1m 40s",
    }
    assert dict(zip(sorted(data), lines(False), strict=True))["maxmem"] == str(2 << 30)


@pytest.mark.timeout(30)
def test_a_reader_that_has_enough_ends_the_tool_quietly() -> None:
    code = (
        "import sys; from pvetools.cli import app; from tests.unit.cli import demo; "
        "sys.modules['pvetools.demo'] = demo; sys.argv = ['demo', 'set', '100', '--name', 'x' * 1000000];"
        "app.main(demo.TOOL)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_help_shows_all_commands_or_one_with_its_options(run: Run) -> None:
    whole = run("help").out
    assert "demo disk import <vmid>" in whole
    assert "--memory" not in whole
    assert "--memory <integer> (16 - N)" in run("help", "--verbose").out
    one = run("help", "set").out
    assert one == run("set", "--help").out == run("set", "100", "-h").out
    assert "--memory <integer> (16 - N)" in one
    assert "Default: 512." in one
    assert "--node" not in one
    assert "disk import <vmid>" in run("help", "disk").out
    assert "unknown command 'demo x'" in run("help", "x").err


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").out.startswith("demo ")


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("demo set 100 --name x 2>/dev/full", 0, "| x ", ""),
        ("demo fail 100 2>/dev/full", 2, "", ""),
        ("demo set 100 --name x 2>&-", 0, "| x ", ""),
        ("demo fail 100 2>&-", 2, "", ""),
        ("demo set 100 --name x >&-", 0, "", ""),
        ("demo set 100 --name x <&- >&- 2>&-", 0, "", ""),
        ("demo set 100 --name x >/dev/full", 255, "", "can't write to standard output: No space left on device\n"),
        ("demo help >/dev/full", 255, "", "can't write to standard output: No space left on device\n"),
    ],
)
def test_closed_and_full_standard_files_change_nothing_else(line: str, code: int, out: str, err: str) -> None:
    program = (
        "import sys; from pvetools.cli import app; from tests.unit.cli import demo; "
        "sys.modules['pvetools.demo'] = demo; sys.argv[0] = 'demo'; app.main(demo.TOOL)"
    )
    script = f'demo() {{ \'{sys.executable}\' -c "{program}" "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, err)
    assert out in done.stdout
