from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pvetools.cli import app
from pvetools.render.command import Tool
from tests.unit.cli import demo


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    """The tool of `demo`, which lies outside the package where commands are looked up."""
    monkeypatch.setitem(sys.modules, "pvetools.demo", demo)
    return demo.TOOL


@pytest.fixture
def run(tool: Tool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run one command line of the tool; root or not is up to `euid`."""

    def run(*words: str, euid: int = 0) -> Ran:
        monkeypatch.setattr(sys, "argv", ["demo", *words])
        monkeypatch.setattr("os.geteuid", lambda: euid)
        with pytest.raises(SystemExit) as ended:
            app.main(tool)
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run
