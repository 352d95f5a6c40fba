"""Public cases of command lines, task ids and sizes.

Command lines go through ``cli.app.parse`` with a declaration made from the case's schema. Not expressible, and skipped
with the reason that ``declare.NOT_OURS`` gives: schemas with ``oneOf`` (an option set chosen by another option). Usage
texts are our own and are not compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvetools.cli import app
from pvetools.render.command import Command, Local, UsageError, parameters
from pvetools.render.output import OutputOptions
from pvetools.schema.core import Record
from pvetools.system import task
from pvetools.system.errors import PveError
from pvetools.system.units import convert_size
from tests.conformance import declare, loader

OPTION_CASES = [case for case in loader.table("common/get_options")[0] if case.values[0]["kind"] == "parse"]
UPID_CASES, _ = loader.table("common/upid")
SIZE_CASES, _ = loader.table("common/convert_size")


def _command(case: dict[str, Any]) -> tuple[Command, Local]:
    try:
        params = declare.record(case["schema"])
    except declare.Inexpressible as reason:
        pytest.skip(str(reason))
    for option in case.get("formatter_properties", {}):
        assert option in OutputOptions.FIELDS
    text = "" if case.get("formatter_properties") else "none"
    return Command("", tuple(case["arg_param"]), case["fixed_param"], text), Local(params, lambda params: None)


def _values(params: type[Record], raw: dict[str, str | list[str]]) -> dict[str, Any]:
    return params.check(raw).given


@pytest.mark.parametrize("case", OPTION_CASES)
def test_a_command_line_gives_its_parameters(case: dict[str, Any]) -> None:
    command, target = _command(case)
    if "error" in case:
        with pytest.raises(PveError) as caught:
            app.call(target, app.completed(app.parse(command, case["args"], target=target)))
        status, _, message = case["error"].rstrip("\n").partition(" ")
        assert (str(caught.value.status), str(caught.value).split("\n")[0]) == (status, message)
        assert isinstance(caught.value, UsageError)
        return
    raw = app.completed(app.parse(command, case["args"], target=target))
    output = app.split_output(command, target, raw)
    expected = {key: int(value) if key == "vmid" else value for key, value in case["expected"].items()}
    assert _values(target.params, raw) == expected
    wanted = case.get("expected_format_options", {})
    assert {key: output.given[key] for key in wanted} == wanted
    assert parameters(command, target).check(raw)


@pytest.mark.parametrize("case", [case for case in UPID_CASES if case.values[0]["kind"] == "decode"])
def test_a_task_id_is_taken_apart_and_written_again(case: dict[str, Any]) -> None:
    if case.get("must_fail"):
        with pytest.raises(PveError):
            task.parse_upid(case["upid"])
        return
    upid = task.parse_upid(case["upid"])
    assert upid._asdict() == case["expected"]
    assert str(upid) == case["upid"]


@pytest.mark.parametrize("case", [case for case in UPID_CASES if case.values[0]["kind"] == "status"])
def test_the_last_line_of_a_log_is_the_result(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    upid = task.parse_upid(case["upid"])
    path = task.log_path(upid)
    path.parent.mkdir(parents=True)
    path.write_text(case["log"])
    assert task.result_in_log(upid) == case["expected"]


@pytest.mark.parametrize("case", SIZE_CASES)
def test_a_size_is_converted(case: dict[str, Any]) -> None:
    def convert() -> int:
        return convert_size(case["input"], case["from"], case["to"], round_up=not case["no_round_up"])

    if "error" in case:
        with pytest.raises(ValueError, match="value") as caught:
            convert()
        assert str(caught.value) == case["error"]
    else:
        assert convert() == case["expected"]
