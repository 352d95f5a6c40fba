"""Standard output carries the result and nothing else; errors are numbered lines on standard error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import yaml

from tests.sandbox.root import Result

Cli = Callable[..., Result]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def create(local_template: str) -> tuple[str, ...]:
    """Words that make a container."""
    words = {"vmid": "101", "ostemplate": local_template, "ostype": "unmanaged", "memory": "64", "rootfs": "local:0"}
    return ("create", "/nodes/localhost/lxc", *(word for key, value in words.items() for word in (f"-{key}", value)))


def test_a_task_gives_its_id_and_programs_get_no_other_word(cli: Cli, create: tuple[str, ...]) -> None:
    made = cli("pvesh", *create, "--output-format", "json", ok=True)
    assert json.loads(made.stdout).startswith("UPID:")
    assert made.stderr == ""
    removed = cli("pvesh", "delete", "/nodes/localhost/lxc/101", ok=True)
    assert re.fullmatch(r"UPID:\S+:vzdestroy:101:root@pam:\n", removed.stdout)


def test_each_format_can_be_read_by_its_reader(cli: Cli) -> None:
    def get(form: str) -> str:
        return cli("pvesh", "get", "/nodes", "--output-format", form, ok=True).stdout

    assert json.loads(get("json"))[0]["status"] == "online"
    assert json.loads(get("json-pretty"))[0]["status"] == "online"
    assert yaml.safe_load(get("yaml"))[0]["status"] == "online"
    assert "online" in get("text")
    assert cli("pvesh", "get", "/nodes", "--quiet", ok=True).stdout == ""


def test_a_method_without_result_prints_nothing_as_text_and_null_for_programs(
    cli: Cli, create: tuple[str, ...]
) -> None:
    cli("pvesh", *create, ok=True)
    assert cli("pvesh", "set", "/nodes/localhost/lxc/101/config", "-memory", "96", ok=True).stdout == ""
    done = cli("pvesh", "set", "/nodes/localhost/lxc/101/config", "-memory", "128", "--output-format", "json", ok=True)
    assert (json.loads(done.stdout), done.stderr) == (None, "")
    shown = cli("pvesh", "get", "/nodes/localhost/lxc/101/config", "--output-format", "json", ok=True)
    assert json.loads(shown.stdout)["memory"] == 128


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("get", "/nodes/localhost/nothing"), ["501 Method 'GET /nodes/localhost/nothing' not implemented"]),
        (("set", "/version"), ["501 Method 'PUT /version' not implemented"]),
        (
            ("get", "/nodes/localhost/tasks", "-limit", "x", "-source", "y"),
            [
                "400 Parameter verification failed.",
                "limit: type check ('integer') failed - got 'x'",
                "source: value 'y' does not have a value in the enumeration 'archive, active, all'",
            ],
        ),
        (
            ("get", "/nodes/far/tasks"),
            ["400 Parameter verification failed.", "node: no such node 'far', this host is 'pvetest'"],
        ),
        (("get",), ["400 not enough arguments: no path given", "usage: pvesh get <api_path> [OPTIONS]"]),
    ],
)
def test_an_error_is_numbered_and_names_every_wrong_parameter(
    cli: Cli, words: tuple[str, ...], lines: list[str]
) -> None:
    done = cli("pvesh", *words)
    assert done.status != 0
    assert (done.stdout, done.stderr.splitlines()) == ("", lines)


def test_what_lies_below_a_path_is_listed_with_what_can_be_done(cli: Cli, create: tuple[str, ...]) -> None:
    cli("pvesh", *create, ok=True)

    def ls(path: str) -> dict[str, str]:
        lines = cli("pvesh", "ls", path, ok=True).stdout.splitlines()
        return {name: letters for letters, name in (line.split() for line in lines)}

    assert ls("/")["nodes"] == "Dr---"
    assert ls("/")["version"] == "-r---"
    assert ls("/nodes") == {"pvetest": "Dr---"}
    assert ls("/nodes/pvetest")["lxc"] == "Dr-c-"
    assert ls("/nodes/pvetest/lxc") == {"101": "Dr--d"}
    assert ls("/nodes/pvetest/lxc/101")["config"] == "-rw--"
    assert ls("/nodes/pvetest/storage")["local"] == "Dr---"
    assert ls("/version") == {}
    assert json.loads(cli("pvesh", "ls", "/nodes", "--output-format", "json").stdout) == [
        {"name": "pvetest", "capabilities": "Dr---"}
    ]
    assert cli("pvesh", "ls", "/nowhere").status != 0


def test_usage_tells_how_to_call_a_method(cli: Cli) -> None:
    short = cli("pvesh", "usage", "/nodes/localhost/qemu", ok=True).stdout
    assert "USAGE: pvesh get /nodes/localhost/qemu [OPTIONS]" in short
    assert re.search(r"USAGE: pvesh create /nodes/localhost/qemu --vmid \S+", short)
    long = cli("pvesh", "usage", "/nodes/localhost/qemu", "--command", "create", "--verbose", ok=True).stdout
    assert "--scsi[n]" in long
    assert "pvesh get" not in long
    changes = cli("pvesh", "usage", "/storage/local", "--command", "set", ok=True).stdout
    assert changes.startswith("USAGE: pvesh set /storage/local [OPTIONS]")
    returns = cli("pvesh", "usage", "/version", "--returns", ok=True).stdout
    assert json.loads(returns.partition("Returns: ")[2])["properties"]["release"] == {"type": "string"}
    assert cli("pvesh", "usage", "/nowhere").stderr == "501 no method at '/nowhere'\n"
