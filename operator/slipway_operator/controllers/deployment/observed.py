"""What a decision about a Deployment sees and what it says. Data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from slipway_api.drift import DriftStatus
from slipway_operator.controllers.deployment.analysis import Tally
from slipway_operator.controllers.deployment.retrain.observed import RetrainObserved
from slipway_operator.controllers.runs import observed as runs


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
    retrain: RetrainObserved = field(default_factory=RetrainObserved)
    pods: Sequence[dict[str, Any]] = ()  # of the RayService's clusters, projected
    remembered_pods: Sequence[dict[str, Any]] = ()  # those that were deleted since, as they were last
    runs: runs.Observed | None = None  # its compressions; None: no RayJob is there and none has reported
    drift: DriftStatus | None = None  # what the watcher said last


@dataclass(frozen=True)
class Note:
    """A Kubernetes Event to record."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """What is to be done. Order: create, apply, patch, delete, one status write, events, requeue."""

    status: dict[str, Any]
    apply: Sequence[dict[str, Any]] = ()
    create: Sequence[dict[str, Any]] = ()  # jobs: made once and never applied again, for users may change them
    patch: Sequence[runs.Patch] = ()
    delete: Sequence[dict[str, Any]] = ()
    events: Sequence[Note] = ()
    requeue_after: float | None = None
    ended_attempt: int | None = None  # of a compression: its end is in `status`, and the run may be told so


@dataclass
class Plan:
    """The mutable part of a decision."""

    apply: list[dict[str, Any]] = field(default_factory=list)
    create: list[dict[str, Any]] = field(default_factory=list)
    patch: list[runs.Patch] = field(default_factory=list)
    apply_last: list[dict[str, Any]] = field(default_factory=list)  # what is refused here must not keep back the others
    delete: list[dict[str, Any]] = field(default_factory=list)
    events: list[Note] = field(default_factory=list)
    requeue_after: float | None = None
    ended_attempt: int | None = None

    def note(self, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tell it as an Event."""
        self.events.append(Note(type_, reason, message))

    def requeue(self, seconds: float) -> None:
        """Come back after that long, or earlier if something else already asked for it."""
        seconds = max(0.2, seconds)
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)
