"""The errors of drift detection: what cannot be compared is refused by name, never compared anyway."""

from __future__ import annotations


class DriftError(Exception):
    """Something cannot be compared; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ProfileError(DriftError):
    """The reference profile is missing, damaged, of another version, or belongs to another tokenizer."""


class SketchError(DriftError):
    """Two summaries cannot be merged or compared: they were made with different bins, sizes or seeds."""


class StateError(DriftError):
    """A saved state does not belong to this profile or these settings."""
