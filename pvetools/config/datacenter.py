"""Options of ``datacenter.cfg``: one ``key: value`` a line."""

from __future__ import annotations

from pvetools.system import files, paths


def option(name: str) -> str | None:
    """Text of one option; None when it is not set."""
    for line in (files.read_text(paths.etc_pve() / "datacenter.cfg") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None
