"""What a disk says about its own health (S.M.A.R.T.), as smartctl reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvetools.system import run
from pvetools.system.errors import PveError

UNKNOWN = "UNKNOWN"
TIMEOUT = 60  # seconds; a dying disk answers late
_HEALTH = re.compile(r"(?:Health Status|self-assessment test result): (.*)$")
_ATTRIBUTE = re.compile(r"([ \d]{2}\d)\s+(\S+)\s+(\S{6})\s+(\d+)\s+(\d+)\s+(\d+|---)\s+(\S+)\s+(.*)", re.ASCII)
_WORN = re.compile(r"Percentage Used(?: endurance indicator)?:\s*(\d+(?:\.\d+)?)%", re.IGNORECASE | re.ASCII)
_SECTION = re.compile(r"=== START OF (?:READ )?SMART DATA SECTION ===")
_TABLE = "Vendor Specific SMART Attributes with Thresholds:"
_FATAL = 0b11  # bits of smartctl's exit status: bad command line, device not opened; others describe the disk
# Attributes that tell how much of a solid state disk is left, in the order in which they are trusted.
_LIFE = (
    "Media_Wearout_Indicator", "SSD_Life_Left", "Wear_Leveling_Count", "Perc_Write/Erase_Ct_BC",
    "Perc_Rated_Life_Remain", "Remaining_Lifetime_Perc", "Percent_Lifetime_Remain", "Lifetime_Left",
    "PCT_Life_Remaining", "Lifetime_Remaining", "Percent_Life_Remaining", "Percent_Lifetime_Used",
    "Perc_Rated_Life_Used",
)  # fmt: skip


@dataclass(slots=True)
class Report:
    """What a disk said.

    ``type`` is ``ata`` (a table of ``attributes``), ``text`` (SAS and NVMe: only lines for people), or empty.
    ``worn`` is the part of its life that the disk has used, in percent, where the text says so.
    """

    health: str = ""
    type: str = ""
    text: str = ""
    attributes: list[dict[str, Any]] = field(default_factory=list)
    worn: float | None = None

    @property
    def left(self) -> float | None:
        """How much of its life a solid state disk has left, in percent."""
        if self.worn is not None:
            left = 100 - self.worn
            return int(left) if left == int(left) else left
        for name in _LIFE:
            for row in self.attributes:
                if name in row["name"]:
                    return int(row["value"])
        return None

    def as_data(self) -> dict[str, Any]:
        """The fields that apply, for output."""
        data: dict[str, Any] = {"health": self.health or UNKNOWN}
        optional = {"type": self.type, "text": self.text, "attributes": self.attributes}
        data |= {key: value for key, value in optional.items() if value}
        if self.worn is not None:
            data["wearout"] = self.left
        return data


def _attribute(match: re.Match[str]) -> dict[str, Any]:
    ident, name, flags, value, worst, threshold, fail, raw = match.groups()
    return {
        "id": ident, "name": name, "flags": flags, "value": int(value), "normalized": int(value), "worst": int(worst),
        "threshold": 0 if threshold == "---" else int(threshold), "fail": fail, "raw": raw,
    }  # fmt: skip


def parse(output: str) -> Report:
    """Read the output of ``smartctl -H`` or ``smartctl -H -A -f brief``."""
    report = Report()
    for line in output.splitlines():
        if report.type == "ata" and (row := _ATTRIBUTE.fullmatch(line)):
            report.attributes.append(_attribute(row))
        elif found := _HEALTH.search(line):
            report.health = found[1]
        elif _TABLE in line:
            report.type, report.text = "ata", ""
        elif _SECTION.search(line):
            report.type = "text"
        elif report.type == "text":
            report.text += f"{line}\n"
            if worn := _WORN.search(line):
                report.worn = float(worn[1])
        elif "SMART Disabled" in line:
            report.health = "SMART Disabled"
    return report


def read(device: Path, *, health_only: bool = False) -> Report:
    """Ask a disk.

    Raises:
        PveError: it cannot be asked: it has no S.M.A.R.T., or does not answer. MissingTool.
    """
    table = [] if health_only else ["-A", "-f", "brief"]
    done = run.run(["smartctl", "-H", *table, device], check=False, timeout=TIMEOUT)
    if done.code < 0 or done.code & _FATAL:
        said = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith(("smartctl", "Copy"))]
        raise PveError(f"can't read the health of disk '{device}': {said[0] if said else f'exit code {done.code}'}")
    return parse(done.stdout)
