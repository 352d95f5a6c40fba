"""``pvenode``: this host as a node."""

from __future__ import annotations

from typing import NoReturn

from pvetools.cli import app
from pvetools.render.command import LOCAL_NODE, Command, Local, Tool
from pvetools.schema.core import Record
from pvetools.system.errors import PveError


class DoctorParams(Record):
    """The doctor asks nothing."""


class Unfit(PveError):
    """The host lacks something necessary."""

    exit_code = 1


def _doctor(params: DoctorParams) -> list[dict[str, str]]:
    """Check what this host has and lacks for running guests, and how to mend it."""
    from pvetools.api import doctor

    return [finding._asdict() for finding in doctor.examine()]


DOCTOR = Local(DoctorParams, _doctor)
_HERE = {"node": LOCAL_NODE}

TOOL = Tool(
    "pvenode",
    "Look after this host as a node.",
    {
        "doctor": Command("cli.pvenode:DOCTOR", text="render.tasks:findings", anyone=True),
        "startall": Command("api.nodes:start_all", fixed=_HERE, text="none"),
        "stopall": Command("api.nodes:stop_all", fixed=_HERE, text="none"),
        "task list": Command("api.nodes:task_list", fixed=_HERE, text="render.tasks:task_table"),
        "task log": Command("api.nodes:task_log", ("upid",), {**_HERE, "limit": "0"}, text="render.tasks:log_lines"),
        "task status": Command("api.nodes:task_status", ("upid",), _HERE),
    },
)


def run(tool: Tool, words: list[str]) -> None:
    """Run one command line; the doctor fails when something necessary is missing.

    Raises:
        PveError: whatever went wrong.
    """
    name, result = app.dispatch(tool, words)
    missing = [finding["check"] for finding in result if finding["status"] == "error"] if name == "doctor" else []
    if missing:
        raise Unfit(f"this host cannot run guests yet: {', '.join(missing)}")


def main() -> NoReturn:
    """Run the tool."""
    app.main(TOOL, run=run)


if __name__ == "__main__":
    main()
