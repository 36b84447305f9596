"""What a decision about a Deployment sees and what it says. Data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from slipway_operator.controllers.deployment.analysis import Tally


@dataclass(frozen=True)
class Observed:
    """The world as the caches show it."""

    deployment: dict[str, Any]
    ray_service: dict[str, Any] | None = None  # of the Deployment's name, and controlled by its UID
    foreign_ray_service: bool = False  # one of that name exists and belongs to somebody else
    ray_operator_missing: bool = False
    train_job: dict[str, Any] | None = None  # that spec.model.trainJob names
    eval_jobs: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # by name, of spec.requires
    tallies: Mapping[str, Tally] = field(default_factory=dict)  # version -> what the routers say, added up


@dataclass(frozen=True)
class Note:
    """A Kubernetes Event to record."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """What is to be done. Order: apply, delete, one status write, events, requeue."""

    status: dict[str, Any]
    apply: Sequence[dict[str, Any]] = ()
    delete: Sequence[dict[str, Any]] = ()
    events: Sequence[Note] = ()
    requeue_after: float | None = None


@dataclass
class Plan:
    """The mutable part of a decision."""

    apply: list[dict[str, Any]] = field(default_factory=list)
    delete: list[dict[str, Any]] = field(default_factory=list)
    events: list[Note] = field(default_factory=list)
    requeue_after: float | None = None

    def note(self, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tell it as an Event."""
        self.events.append(Note(type_, reason, message))

    def requeue(self, seconds: float) -> None:
        """Come back after that long, or earlier if something else already asked for it."""
        seconds = max(0.2, seconds)
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)
