"""A small tool for the tests of the command-line framework: every manner in one table."""

from __future__ import annotations

from typing import Any, ClassVar

from pvetools.render.command import Command, Local, Tool
from pvetools.schema import formats
from pvetools.schema.core import Record, array, field, indexed
from pvetools.schema.kinds import boolean, integer, listing, string
from pvetools.system.errors import NotFound


class Params(Record):
    ALIASES: ClassVar = {"disk": "ide"}

    vmid: int = field(formats.vmid, "Id.", required=True)
    memory: int = field(integer(16), "Memory.", default=512)
    onboot: bool = field(boolean, "Start at boot.", default=False)
    name: str = field(string(), "Name.", default="")
    delete: list[str] = field(listing(formats.config_id), "Keys to remove.", default=[])
    command: list[str] = field(array(string()), "Words.", default=[])
    ide: str = field(string(), "Disk.", default="")
    net: Any = indexed(string(), "Card.", count=4)
    password: str = field(string(min_length=5), "Password.", default="")
    keys: str = field(formats.url_encoded(), "SSH keys.", default="")
    script: str = field(string(), "Script.", default="")
    node: str = field(formats.node, "Node.", default="")


class Words(Record):
    vmid: int = field(formats.vmid, "Id.", required=True)
    extra: list[str] = field(array(string()), "Words.", default=[])


def _given(params: Record) -> dict[str, Any]:
    """Show what was given."""
    return params.given


def _fail(params: Record) -> None:
    """Fail for a reason."""
    raise NotFound("there is no such thing as 'x'")


def _crash(params: Record) -> None:
    """Fail without one."""
    raise ZeroDivisionError("oops")


SET = Local(Params, _given)
RUN = Local(Words, _given)
FAIL = Local(Words, _fail)
CRASH = Local(Words, _crash)
TOOL = Tool(
    "demo",
    "A tool for tests.",
    {
        "set": Command(
            "demo:SET",
            ("vmid",),
            {"node": "here"},
            file_params=("keys", "script"),
            prompted=("password",),
        ),
        "exec": Command("demo:RUN", ("vmid", "extra...")),
        "fail": Command("demo:FAIL", ("vmid",), text="none"),
        "crash": Command("demo:CRASH", ("vmid",), text="none"),
        "status": Command("demo:RUN", ("vmid",)),
        "start": Command("demo:RUN", ("vmid",)),
        "disk import": Command("demo:RUN", ("vmid",)),
        "disk resize": Command("demo:RUN", ("vmid",)),
    },
    {"importdisk": "disk import"},
)
