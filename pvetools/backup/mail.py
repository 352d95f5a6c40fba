"""The report of a job by mail, through the host's own ``sendmail``."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from pvetools.backup import joblog, progress
from pvetools.system import files, paths, run
from pvetools.system.errors import PveError

MAX_LOG = 1 << 20
_TIMEOUT = 60.0


@dataclass
class Result:
    """How the backup of one guest went; ``state`` is todo, ok or err."""

    vmid: int
    name: str = ""
    state: str = "todo"
    seconds: float = 0.0
    size: int = 0
    filename: str = ""
    reason: str = ""
    log: Path | None = None
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a mail tells."""

    results: Sequence[Result]
    command: str
    hook_log: str
    seconds: float
    error: str = ""

    @property
    def reasons(self) -> list[str]:
        """Why the job failed; empty when it did not."""
        failed = [f"{result.vmid}: {result.reason}" for result in self.results if result.state == "err"]
        return ([self.error] if self.error else []) + failed

    def subject(self) -> str:
        """One line with the outcome."""
        start = f"vzdump backup status ({socket.getfqdn()}): backup "
        if not self.reasons:
            return start + "successful"
        return start + ("failed: multiple problems" if len(self.reasons) > 1 else f"failed: {self.reasons[0]}")

    def body(self) -> str:
        """The whole text: errors, table, sums, logs."""
        parts: list[str] = []
        if len(self.reasons) > 1:
            parts.append("\n".join(self.reasons))
        parts.append(self._table())
        good = sum(result.size for result in self.results if result.state == "ok")
        parts.append(
            f"Total running time: {progress.duration(self.seconds)}\nTotal size: {progress.archive_size(good)}"
        )
        parts.append(f"Logs\n====\n{self.command}")
        parts += [self.hook_log.rstrip("\n")] if self.hook_log else []
        parts += [_guest_log(result) for result in self.results]
        return _bounded("\n\n".join(part for part in parts if part) + "\n")

    def _table(self) -> str:
        header = ("VMID", "Name", "Status", "Time", "Size", "Filename")
        rows = [header, *(_row(result) for result in self.results)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def _row(result: Result) -> tuple[str, ...]:
    good = result.state == "ok"
    return (
        str(result.vmid), result.name, result.state, progress.duration(result.seconds),
        progress.archive_size(result.size) if good else "", result.filename if good else "",
    )  # fmt: skip


def _guest_log(result: Result) -> str:
    text = (files.read_text(result.log) if result.log else None) or ""
    if not text:
        return ""
    if len(text) > MAX_LOG:
        return f"{result.vmid}: log is too long for a mail, see {result.log}"
    return "\n".join(f"{result.vmid}: {line}" for line in text.splitlines())


def _bounded(text: str) -> str:
    return text if len(text) <= 2 * MAX_LOG else text[:MAX_LOG] + "\n... (cut: the logs are too long for a mail)\n"


def _addresses(wanted: Sequence[str]) -> list[str]:
    """Mail addresses; names of users are looked up in the user list."""
    users = {
        fields[1]: fields[6]
        for line in (files.read_text(paths.etc_pve() / "user.cfg") or "").splitlines()
        if line.startswith("user:") and len(fields := line.split(":")) > 6
    }
    found: list[str] = []
    for name in wanted:
        address = users.get(name, "" if re.search(r"@(?:pam|pve)$", name) else name)
        if address:
            found.append(address)
        else:
            joblog.warn(f"no mail to '{name}': no address is known for this user")
    return found


def send(report: Report, wanted: Sequence[str], job_id: str = "") -> None:
    """Mail a report. That it cannot be sent is a warning, never an error of the job."""
    addresses = _addresses(wanted)
    if not addresses:
        return
    message = EmailMessage()
    message["Subject"] = report.subject().replace("\n", " ")
    message["From"] = "vzdump backup tool <root>"
    message["To"] = ", ".join(addresses)
    if job_id:
        message["X-Vzdump-Job"] = job_id
    message.set_content(report.body().encode("utf-8", "replace").decode())
    try:
        run.run(["sendmail", "-B", "8BITMIME", "-f", "root", "--", *addresses], stdin=bytes(message), timeout=_TIMEOUT)
    except PveError as error:
        joblog.warn(f"could not send the report to {', '.join(addresses)}: {error}")
