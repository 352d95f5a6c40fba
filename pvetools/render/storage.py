"""Storages and their content as text, in the columns of Proxmox VE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pvetools.render.output import OutputOptions

Row = Mapping[str, Any]


def status_table(data: Sequence[Row], params: object, options: OutputOptions) -> str:
    """Storages with their space in KiB."""
    width = max((len(row["storage"]) for row in data), default=0) + 1
    line = f"{{:{width}}} {{:>10}} {{:>10}} {{:>15}} {{:>15}} {{:>15}} {{:>8}}"
    lines = [line.format("Name", "Type", "Status", "Total", "Used", "Available", "%")]
    for row in sorted(data, key=lambda row: str(row["storage"])):
        share = f"{row['used'] * 100 / row['total'] if row['total'] else 0:.2f}%" if row["enabled"] else "N/A"
        state = "disabled" if not row["enabled"] else "active" if row["active"] else "inactive"
        kib = (row[key] // 1024 for key in ("total", "used", "avail"))
        lines.append(line.format(row["storage"], row["type"], state, *kib, share))
    return "\n".join(lines[options.noheader :])


def content_table(data: Sequence[Row], params: object, options: OutputOptions) -> str:
    """Volumes with their sizes in bytes."""
    width = max((len(row["volid"]) for row in data), default=0)
    digits = max((len(str(row["size"])) for row in data), default=1)
    line = f"{{:{width}}} {{:7}} {{:9}} {{:>{digits}}} {{}}"
    lines = [line.format("Volid", "Format", "Type", "Size", "VMID")]
    for row in data:
        lines.append(line.format(row["volid"], row["format"], row["content"], row["size"], row.get("vmid", "")))
    return "\n".join(line.rstrip() for line in lines[options.noheader :])


def created(data: str, params: object, options: object) -> str:
    """The volume that was made."""
    return f"successfully created '{data}'"


def imported(data: str, params: object, options: object) -> str:
    """Output of ``pvesm import``."""
    return f"successfully imported '{data}'"


def prune_table(data: Sequence[Row], params: object, options: OutputOptions) -> str:
    """Backups with what retention would do to them; those of one guest together, oldest first."""
    if not data:
        return "no backups found"
    width = max(len(row["volid"]) for row in data) + 1
    line = f"{{:{width}}} {{:>15}} {{:>10}}"
    head = ["This is a preview: backups that are made or removed meanwhile change the result.", ""]
    lines = [] if options.noheader else [*head, line.format("Backup", "Backup-ID", "Prune-Mark")]
    for row in sorted(data, key=lambda row: (row.get("vmid") or 0, row["ctime"])):
        guest = f"{row['type']}/{row['vmid']}" if row.get("vmid") else row["type"]
        lines.append(line.format(row["volid"], guest, row["mark"]))
    return "\n".join(lines)


def versions(data: Row, params: object, options: object) -> str:
    """Output of ``pvesm apiinfo``."""
    return f"APIVER {data['apiver']}\nAPIAGE {data['apiage']}"


def scanned(data: Sequence[Row], params: object, options: object) -> str:
    """What was found, a line each: the name, and what else is known of it in a column of its own."""
    rows = [[str(value) for value in row.values()] for row in data]
    width = max((len(row[0]) for row in rows), default=0)
    return "\n".join(" ".join([row[0].ljust(width), *row[1:]]).rstrip() for row in rows)
