"""Guests as text: lists, configurations, pending changes, states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pvetools.render.output import OutputOptions, cell, columns

_QM_COLUMNS = (("VMID", 10), ("NAME", -20), ("STATUS", -10), ("MEM(MB)", -10), ("BOOTDISK(GB)", 12), ("PID", -10))
_MIB, _GIB = 1 << 20, 1 << 30


def qm_list(data: Sequence[Mapping[str, Any]], params: object, options: OutputOptions) -> str:
    """The table of ``qm list``; nothing at all without guests."""
    if not data:
        return ""
    rows = [
        (
            row["vmid"],
            row["name"],
            row["status"],
            row["maxmem"] // _MIB,
            f"{row['maxdisk'] / _GIB:.2f}",
            row.get("pid", 0),
        )
        for row in data
    ]
    return columns(_QM_COLUMNS, rows, header=not options.noheader)


def _encoded(key: str, value: Any) -> str:
    """A value on one line; descriptions as they stand in a file."""
    if key == "description":
        from pvetools.config.guest import encode_text

        return encode_text(str(value))
    return cell(value)


def config(data: Mapping[str, Any], params: object, options: OutputOptions) -> str:
    """``key: value`` lines of a configuration, raw ``lxc.*`` lines last; without the digest."""
    lines = [f"{key}: {_encoded(key, data[key])}" for key in sorted(data) if key not in ("digest", "lxc")]
    return "\n".join(lines + [f"{key}: {value}" for key, value in data.get("lxc", ())])


def pending(data: Sequence[Mapping[str, Any]], params: object, options: OutputOptions) -> str:
    """``cur``, ``new`` and ``del`` lines of a configuration with pending changes."""
    lines: list[str] = []
    for row in data:
        key = row["key"]
        if "value" in row:
            lines.append(f"{'del' if row.get('delete') else 'cur'} {key}: {_encoded(key, row['value'])}")
        if "pending" in row and not row.get("delete"):
            lines.append(f"new {key}: {_encoded(key, row['pending'])}")
    return "\n".join(lines)


def status(data: Mapping[str, Any], params: object, options: OutputOptions) -> str:
    """``status: running``, or all that is known, with nested values indented."""
    lines: list[str] = []
    for key in sorted(data):
        value = data[key]
        if isinstance(value, Mapping):
            lines += [f"{key}:", *(f"\t{inner}: {cell(value[inner])}" for inner in sorted(value))]
        else:
            lines.append(f"{key}: {cell(value)}")
    return "\n".join(lines)


def line(data: str, params: object, options: OutputOptions) -> str:
    """One text, as it is."""
    return data
