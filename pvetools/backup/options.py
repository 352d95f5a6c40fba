"""What a backup job shall do: command line over ``/etc/vzdump.conf`` over defaults, and exceptions to that rule."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvetools.backup import joblog, notes, retention
from pvetools.guest.lxc.tar import STANDARD_EXCLUDES
from pvetools.options.backup import Fleecing, Performance, PruneBackups, VzdumpDefaults, VzdumpOptions
from pvetools.system import files, paths
from pvetools.system.errors import ParamErrors, PveError, Refused

DEFAULT_STORAGE = "local"

_LINE = re.compile(r"\s*([a-z][a-z0-9_-]*)\s*:\s*(.*?)\s*")


@dataclass(frozen=True, slots=True)
class Settings:
    """The options in force.

    ``options`` holds the merged values; ``keep`` are the retention limits (``{"keep-all": 1}`` or positive numbers),
    ``excludes`` the patterns for containers in their order. Either ``storage`` or ``dumpdir`` is set, neither for
    an archive on standard output.
    """

    options: VzdumpOptions
    keep: Mapping[str, int]
    remove: bool
    excludes: tuple[str, ...]
    storage: str = ""
    dumpdir: Path | None = None

    @property
    def workers(self) -> int:
        """Read requests in flight at a time, at most."""
        return (self.options.performance or Performance()).max_workers


def read_conf(text: str) -> VzdumpDefaults:
    """Parse ``vzdump.conf``; lines that cannot be understood are left out with a warning."""
    raw: dict[str, str] = {}
    excludes: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        problem = _take(match[1], match[2], raw, excludes) if match else f"unable to parse '{line.strip()}'"
        if problem:
            joblog.warn(f"/etc/vzdump.conf line {number}: {problem}")
    return VzdumpDefaults.read(raw).replaced(exclude_path=excludes or None)


def _take(key: str, value: str, raw: dict[str, str], excludes: list[str]) -> str:
    """Note one line; gives what is wrong with it."""
    try:
        if key == "exclude-path":
            excludes.extend(shlex.split(value))
        elif not VzdumpDefaults.find(key):
            return f"unknown option '{key}'"
        elif value or key == "mailto":
            VzdumpDefaults.read({key: value})
            raw[key] = value
    except ValueError as error:
        return f"'{key}': {error}".replace("\n", " ")
    return ""


def load_conf() -> VzdumpDefaults:
    """The host's defaults; an absent file has none."""
    return read_conf(files.read_text(paths.vzdump_config()) or "")


def merge(given: VzdumpOptions, conf: VzdumpDefaults) -> VzdumpOptions:
    """Command line over file. The target is taken from the file only when the command line names none.

    Raises:
        ParamErrors: two targets on the command line.
    """
    if given.storage and given.dumpdir:
        raise ParamErrors({"dumpdir": "cannot be combined with 'storage'"})
    defaults = dict(conf.given)
    if "storage" in defaults and "dumpdir" in defaults:
        joblog.warn("both 'storage' and 'dumpdir' are set in /etc/vzdump.conf, 'dumpdir' is ignored")
        del defaults["dumpdir"]
    if given.storage or given.dumpdir or given.stdout:
        defaults.pop("storage", None)
        defaults.pop("dumpdir", None)
    if given.vmid or given.all or given.exclude or given.stop:
        defaults.pop("pool", None)
    merged = {**defaults, **given.given}
    merged["exclude-path"] = [*(conf.exclude_path or ()), *(given.exclude_path or ())]
    merged["performance"] = _merged_performance(given, conf)
    _convert_maxfiles(merged)
    return VzdumpOptions(**{_attribute(name): value for name, value in merged.items()})


def _attribute(name: str) -> str:
    found = VzdumpOptions.find(name)
    return found[0].attr if found else name


def _merged_performance(given: VzdumpOptions, conf: VzdumpDefaults) -> Performance | None:
    parts = [part.given for part in (conf.performance, given.performance) if part]
    whole = {name.replace("-", "_"): value for part in parts for name, value in part.items()}
    return Performance(**whole) if whole else None


def _convert_maxfiles(merged: dict[str, Any]) -> None:
    """The old option stands for ``keep-last``, where the new one is not given."""
    limit = merged.pop("maxfiles", None)
    if limit and "prune-backups" not in merged:
        joblog.warn("option 'maxfiles' is outdated, use 'prune-backups' with 'keep-last'")
        merged["prune-backups"] = PruneBackups(keep_last=limit)


def resolve(given: VzdumpOptions, conf: VzdumpDefaults, storage_keep: PruneBackups | None = None) -> Settings:
    """Work out what is in force.

    Args:
        given: the command line, or a job's options.
        conf: the host's defaults.
        storage_keep: retention of the target storage's definition.

    Raises:
        ParamErrors: values that do not fit together. Refused: an option that has no effect here.
    """
    options = merge(given, conf)
    _refuse_without_effect(given, options)
    _check(options)
    keep = limits(_own_keep(given) or storage_keep or options.prune_backups)
    patterns = [*(options.exclude_path or ()), *(STANDARD_EXCLUDES if options.stdexcludes else ())]
    storage = "" if options.dumpdir or options.stdout else options.storage or DEFAULT_STORAGE
    return Settings(
        options,
        keep,
        options.remove and "keep-all" not in keep,
        tuple(patterns),
        storage,
        Path(options.dumpdir) if options.dumpdir else None,
    )


def target_storage(given: VzdumpOptions, conf: VzdumpDefaults) -> str:
    """Name of the storage that the job will write to; empty for a directory or standard output."""
    if given.dumpdir or given.stdout:
        return ""
    return given.storage or conf.storage or ("" if conf.dumpdir else DEFAULT_STORAGE)


def _own_keep(given: VzdumpOptions) -> PruneBackups | None:
    """Retention that the command line itself asks for."""
    keep: PruneBackups | None = given.given.get("prune-backups")
    return keep or (PruneBackups(keep_last=given.maxfiles) if given.maxfiles else None)


def limits(keep: PruneBackups) -> dict[str, int]:
    """The retention limits that were said; where none is positive, everything is kept.

    Raises:
        ParamErrors: ``keep-all`` beside a limit.
    """
    try:
        if not retention.limits(keep.given):
            return {"keep-all": 1}
    except PveError as error:
        raise ParamErrors({"prune-backups": str(error)}) from None
    return {option: int(value) for option, value in keep.given.items() if option != "keep-all"}


def _refuse_without_effect(given: VzdumpOptions, options: VzdumpOptions) -> None:
    if options.pool:
        raise Refused(f"option 'pool': there are no pools yet, name the guests instead of pool '{options.pool}'")
    if options.notification_mode == "notification-system":
        raise Refused("option 'notification-mode': only mail by sendmail is available, use 'auto' or 'legacy-sendmail'")
    if given.pbs_change_detection_mode or (given.performance and "pbs-entries-max" in given.performance.given):
        raise Refused("options 'pbs-change-detection-mode' and 'pbs-entries-max' need a Proxmox Backup Server")


def _check(options: VzdumpOptions) -> None:
    errors: dict[str, str] = {}
    for name, folder in (("tmpdir", options.tmpdir), ("dumpdir", options.dumpdir)):
        if folder and not (Path(folder).is_absolute() and Path(folder).is_dir()):
            errors[name] = f"directory '{folder}' does not exist (an absolute path is needed)"
    if options.notes_template:
        try:
            notes.check(options.notes_template)
        except ValueError as error:
            errors["notes-template"] = str(error)
    fleecing = options.fleecing or Fleecing()
    if fleecing.enabled and not fleecing.storage:
        errors["fleecing"] = "needs a storage: enabled=1,storage=ID"
    if options.stdout and (options.storage or options.dumpdir or len(options.vmid or ()) != 1):
        errors["stdout"] = "needs exactly one guest, and neither storage nor dumpdir"
    if errors:
        raise ParamErrors(errors)


def defaults(conf: VzdumpDefaults, storage_keep: PruneBackups | None) -> dict[str, Any]:
    """What applies when nothing is said: for ``/nodes/{node}/vzdump/defaults``."""
    shown: dict[str, Any] = {}
    for row in VzdumpDefaults.FIELDS.values():
        value = conf.given.get(row.name, row.default)
        if value is not None and row.name != "pool":
            shown[row.name] = _plain(row.kind.format, value, array=row.kind.array)
    keep = limits(storage_keep or conf.prune_backups)
    shown["prune-backups"] = ",".join(f"{name}={count}" for name, count in sorted(keep.items()))
    shown["remove"] = int(conf.remove and "keep-all" not in keep)
    return shown


def _plain(form: Any, value: Any, *, array: bool) -> Any:
    if isinstance(value, bool):
        return int(value)
    return value if array or isinstance(value, int) else form(value)
