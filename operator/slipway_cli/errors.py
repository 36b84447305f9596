"""The errors of the command line, drawn in one place: each is shown as what is wrong, which target, what to type.

Nothing here ends the process: `main` alone turns an error into words and an exit status.
"""

from __future__ import annotations


class CliError(Exception):
    """A command cannot do what it was asked. `hint` says what to type; `details` are further lines."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details


class UsageError(CliError):
    """The words of the command line do not fit together."""

    exit_code = 2


class TargetError(CliError):
    """No API server was named, or the one that was cannot be talked to."""


class ManifestError(CliError):
    """A manifest cannot be read, or the API would refuse it. `details` name file, document and field."""


class AnswerError(CliError):
    """The API server said no."""


class WaitError(CliError):
    """What was waited for did not happen, or cannot happen any more."""


class LogError(CliError):
    """There is no log to show, or it cannot be read from here."""


class ModelError(CliError):
    """There is no model to look at, or it cannot be loaded."""
