"""How a reconcile can end. Four outcomes, told apart by type: any other exception means "back off and try again"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """Nothing to do until something changes."""


@dataclass(frozen=True)
class RequeueAfter:
    """Look again after that many seconds, or as soon as something changes."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"cannot requeue after {self.seconds} seconds")


Outcome = Done | RequeueAfter


class TerminalError(Exception):
    """Trying again cannot help until somebody changes an object: the key is dropped, not retried."""


class ReconcileTimeout(Exception):  # noqa: N818 - it is an outcome, told apart from the TimeoutError of a library
    """A reconcile ran past its time limit. Never raised for a shutdown."""
