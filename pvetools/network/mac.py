"""MAC addresses for new interfaces of guests."""

from __future__ import annotations

import re
import secrets

from pvetools.system import files, paths

PREFIX = "BC:24:11"  # assigned to Proxmox
_OPTION = re.compile(r"^mac_prefix:\s*([0-9a-f:]+)\s*$", re.IGNORECASE | re.MULTILINE)


def prefix() -> str:
    """``mac_prefix`` of ``datacenter.cfg``, or the usual one."""
    found = _OPTION.search(files.read_text(paths.etc_pve() / "datacenter.cfg") or "")
    return (found[1] if found else PREFIX).rstrip(":").upper()


def generate() -> str:
    """A random address behind the prefix."""
    given = prefix().split(":")
    return ":".join([*given, *(f"{byte:02X}" for byte in secrets.token_bytes(6 - len(given)))])
