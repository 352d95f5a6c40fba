"""The user's script that is called at every step of a backup job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pvetools.backup import joblog
from pvetools.system.errors import ParamErrors, PveError, RunError


@dataclass(frozen=True, slots=True)
class Hooks:
    """The script, and the variables that it sees: nothing else of the environment is passed on."""

    script: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    def with_variables(self, **variables: str) -> Hooks:
        """The same script with further variables; empty ones are left out."""
        return replace(self, variables={**self.variables, **{name: text for name, text in variables.items() if text}})

    def call(self, phase: str, mode: str = "", vmid: int = 0) -> None:
        """Run the script for a phase; guest phases have a mode and an id. What it says is logged.

        Raises:
            PveError: it ended with an error.
        """
        if not self.script:
            return
        assignments = [f"{name}={text}" for name, text in sorted(self.variables.items())]
        arguments = [phase, mode, str(vmid)] if vmid else [phase]
        try:
            joblog.logged(["env", "-i", *assignments, self.script, *arguments])
        except RunError as error:
            said = " ".join([self.script, *arguments])
            raise PveError(f"command '{said}' failed: exit code {error.code}") from None

    def try_call(self, phase: str, mode: str = "", vmid: int = 0) -> None:
        """Run the script for a phase in which nothing can fail any more: an error is only a warning."""
        try:
            self.call(phase, mode, vmid)
        except PveError as error:
            joblog.warn(str(error))


def check_script(script: str | None) -> str:
    """Accept the script of a job.

    Raises:
        ParamErrors: it is no executable file.
    """
    if not script:
        return ""
    path = Path(script)
    if not path.is_file():
        raise ParamErrors({"script": f"hook script '{script}' does not exist"})
    if not path.is_absolute() or not os.access(path, os.X_OK):
        raise ParamErrors({"script": f"hook script '{script}' is not an executable file with an absolute path"})
    return script
