"""Texts of the container tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pvetools.render.output import columns

_LIST = (("VMID", -10), ("Status", -10), ("Lock", -12), ("Name", -20))


def listing(data: Sequence[Mapping[str, Any]], params: object, options: object) -> str:
    """``pct list``: nothing at all without containers."""
    if not data:
        return ""
    rows = [[row["vmid"], row["status"], row.get("lock", ""), row.get("name", "")] for row in data]
    return columns(_LIST, rows)


def space(data: Sequence[Mapping[str, Any]], params: object, options: object) -> str:
    """``pct df``."""
    head = ["MP", "Volume", "Size", "Used", "Avail", "Use%", "Path"]
    rows = [head]
    for row in data:
        share = row["used"] / (row["used"] + row["avail"]) if row["used"] + row["avail"] else 0
        sizes = [_short(row[key]) for key in ("size", "used", "avail")]
        rows.append([row["mp"], row["volume"], *sizes, f"{share:.1f}", row["path"]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(" ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)  # fmt: skip


def _short(size: float) -> str:
    power = 0
    while size >= 1024 and power < 4:
        size, power = size / 1024, power + 1
    return f"{size:.1f}{'BKMGT'[power]}"


def cpusets(data: Mapping[str, Any], params: object, options: object) -> str:
    """``pct cpusets``: one line a container, one column a CPU."""
    bound: Mapping[int, Sequence[int]] = data["containers"]
    if not bound:
        return "no running containers with a limited number of CPUs"
    rows = [f"{vmid}:".ljust(10) + " ".join(f"{cpu:>3}" if cpu in cpus else "   " for cpu in data["cpus"])
            for vmid, cpus in bound.items()]  # fmt: skip
    line = "-" * max(len(row.rstrip()) for row in rows)
    return "\n".join([line, *(row.rstrip() for row in rows), line])
