"""Which backups stay: the ``keep-*`` rules applied to one guest's archives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pvetools.backup import names
from pvetools.options.backup import keep_all_conflict
from pvetools.system.errors import PveError

Mark = Literal["keep", "remove", "protected", "renamed"]


def _period(form: str) -> Callable[[int], str]:
    return lambda ctime: time.strftime(form, time.localtime(ctime))


# In the order in which the options are applied; a backup belongs to one period of each (local time, ISO weeks).
PERIODS: dict[str, Callable[[int], str]] = {
    "keep-last": str,
    "keep-hourly": _period("%Y-%m-%d %H"),
    "keep-daily": _period("%Y-%m-%d"),
    "keep-weekly": _period("%G-%V"),
    "keep-monthly": _period("%Y-%m"),
    "keep-yearly": _period("%Y"),
}


@dataclass(frozen=True, slots=True)
class Backup:
    """One archive as the pruning sees it; ``kind`` is ``unknown`` for a name outside the scheme."""

    volid: str
    ctime: int
    vmid: int | None = None
    protected: bool = False
    kind: str = "unknown"
    mark: Mark = "keep"


def limits(keep: Mapping[str, Any]) -> dict[str, int]:
    """The positive ``keep-*`` limits in the order of their use; empty means that everything stays.

    Raises:
        PveError: ``keep-all`` beside a limit, or a negative limit.
    """
    found = {option: int(keep.get(option) or 0) for option in PERIODS}
    for option, value in found.items():
        if value < 0:
            raise PveError(f"invalid value '{value}' for {option}: must be 0 or more")
    if conflict := keep_all_conflict(keep):
        raise PveError(conflict)
    return {option: value for option, value in found.items() if value}


def describe(keep: Mapping[str, Any]) -> str:
    """The list for log lines: sorted by name, only what is in force."""
    return ", ".join(f"{option}={value}" for option, value in sorted(limits(keep).items())) or "keep-all=1"


def _select(ctimes: Iterable[int], keep: Mapping[str, int]) -> list[bool]:
    """Decide for each of one guest's backups, newest first, whether it stays."""
    times = list(ctimes)
    decided: list[bool | None] = [None] * len(times)
    for option, limit in keep.items():
        period = PERIODS[option]
        covered = {period(ctime) for ctime, stays in zip(times, decided, strict=True) if stays}
        fresh: set[str] = set()
        for index, ctime in enumerate(times):
            name = period(ctime)
            if decided[index] is not None or name in covered:
                continue
            if name in fresh:
                decided[index] = False
            elif len(fresh) < limit:
                fresh.add(name)
                decided[index] = True
            else:
                break
    return [bool(stays) for stays in decided]


def classify(backup: Backup) -> Backup:
    """Fill in what the name says. Archives that retention must not touch get their final mark here."""
    try:
        info = names.parse(backup.volid)
    except PveError:
        return replace(backup, mark="protected" if backup.protected else "renamed")
    known = replace(backup, kind=info.kind, vmid=info.vmid if info.vmid is not None else backup.vmid)
    if info.ctime is not None:
        known = replace(known, ctime=info.ctime)
    if backup.protected:
        return replace(known, mark="protected")
    return replace(known, mark="keep" if info.standard else "renamed")


def prune(
    backups: Iterable[Backup], keep: Mapping[str, Any], *, vmid: int | None = None, kind: str | None = None
) -> list[Backup]:
    """Mark backups ``keep``, ``remove``, ``protected`` or ``renamed``; each guest is judged by itself.

    Only volume id, time and protection of the input matter, kind and id come from the name. The result is sorted
    by volume id; ``vmid`` and ``kind`` choose the guests to look at.

    Raises:
        PveError: contradicting or negative limits.
    """
    rules = limits(keep)
    chosen = [
        backup
        for backup in map(classify, backups)
        if vmid in (None, backup.vmid) and kind in (None, backup.kind)
    ]  # fmt: skip
    groups: dict[tuple[str, int | None], list[int]] = {}
    for index, backup in enumerate(chosen):
        if backup.mark == "keep":
            groups.setdefault((backup.kind, backup.vmid), []).append(index)
    for members in groups.values() if rules else ():
        members.sort(key=lambda index: chosen[index].ctime, reverse=True)
        for index, stays in zip(members, _select((chosen[i].ctime for i in members), rules), strict=True):
            chosen[index] = replace(chosen[index], mark="keep" if stays else "remove")
    return sorted(chosen, key=lambda backup: backup.volid)
