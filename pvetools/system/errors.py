"""Errors that a user may see: each class owns its sentence, its HTTP status and its exit code.

Callers raise facts; only the entry layer (``cli``, later ``rest``) prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class PveError(Exception):
    """Base of everything that is reported to the user as one sentence, without a traceback."""

    status = 500
    exit_code = 255


class ParamErrors(PveError):
    """One or more wrong parameters, keyed by name; all of them are reported at once."""

    status = 400

    def __init__(self, errors: Mapping[str, str]) -> None:
        self.errors = dict(errors)
        lines = "".join(f"\n{name}: {reason}" for name, reason in self.errors.items())
        super().__init__("Parameter verification failed." + lines)


class NotFound(PveError):
    """The named thing does not exist."""

    status = 404
    exit_code = 2


class Exists(PveError):
    """The named thing exists already."""


class NotImplementedMethod(PveError):
    """No method under that path and verb."""

    status = 501


class Refused(PveError):
    """An option or a state that this version, this host or this guest cannot serve; nothing was changed."""


class Forbidden(PveError):
    """The caller may not do this (root only, or a missing privilege)."""

    status = 403


class LockTimeout(PveError):
    """A lock file stayed taken by another process for longer than the time-out."""


class Locked(PveError):
    """The guest's configuration carries a ``lock`` entry."""


class DigestMismatch(PveError):
    """The file was changed since the caller read it."""

    def __init__(self, name: str = "configuration") -> None:
        super().__init__(f"detected modified {name} - file changed by other user? Try again.")


class ConfigError(PveError):
    """A damaged line of a configuration file."""

    def __init__(self, path: object, line: int, reason: str) -> None:
        self.path, self.line, self.reason = path, line, reason
        super().__init__(f"{path} line {line}: {reason}")


class MissingTool(PveError):
    """A program that the host lacks."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"program '{tool}' is not installed; install it with: apt install {package}")


class RunError(PveError):
    """A program ended with an error.

    ``status`` of the class is the HTTP status; ``code`` is the program's exit status (negative: signal).
    """

    def __init__(self, argv: Sequence[str], code: int, stderr: str) -> None:
        self.argv, self.code, self.stderr = list(argv), code, stderr.strip()
        ended = f"exit code {code}" if code >= 0 else f"signal {-code}"
        super().__init__(f"command '{argv[0]}' failed: {self.stderr or 'no message'} ({ended})")


class Interrupted(PveError):
    """The user or the system asked the running command to stop."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted by signal")
