"""What a decision sees and what it says: the types between observing, deciding and doing. Data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from slipway_api.run import Report
from slipway_operator.config import OperatorConfig
from slipway_operator.controllers.runs.status import StatusDraft


@dataclass(frozen=True)
class Settings:
    """What a decision needs from the operator's configuration."""

    config: OperatorConfig
    report_key: bytes
    report_ca: str | None = None  # PEM; None: runs trust what their image trusts


@dataclass(frozen=True)
class Observed:
    """The world as the caches show it."""

    job: dict[str, Any]
    ray_jobs: Sequence[dict[str, Any]]  # controlled by this job's UID
    report: Report | None = None  # of the attempt `report_attempt`
    report_attempt: int = 0
    train_jobs: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # by name: those that it refers to
    made_jobs: Sequence[dict[str, Any]] = ()  # TrainJobs and EvalJobs that bear the names of those that it makes
    ray_operator_missing: bool = False
    foreign_ray_job: dict[str, Any] | None = None  # bears our next name, but is not ours
    pods: Sequence[dict[str, Any]] = ()  # of the newest RayJob's cluster, projected; none where no pods are served
    pods_current: bool = False  # the cache of pods is as new as that RayJob: what is absent is really absent
    kueue_missing: bool = False  # looked up only when the job names a queue


@dataclass(frozen=True)
class EventNote:
    """A Kubernetes Event to record about the job."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Patch:
    """A change of some fields of an object that exists, as a JSON merge patch of what was observed."""

    obj: dict[str, Any]
    body: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """What is to be done. Order: apply, patch, delete, one status write, events, requeue."""

    status: dict[str, Any]
    apply: Sequence[dict[str, Any]] = ()
    patch: Sequence[Patch] = ()
    delete: Sequence[dict[str, Any]] = ()
    delete_job: bool = False
    events: Sequence[EventNote] = ()
    requeue_after: float | None = None
    ended_attempt: int | None = None  # its end is in `status`; the run may be told so


@dataclass
class Plan:
    """The mutable draft that the ladder fills."""

    draft: StatusDraft
    apply: list[dict[str, Any]] = field(default_factory=list)
    patch: list[Patch] = field(default_factory=list)
    delete: list[dict[str, Any]] = field(default_factory=list)
    events: list[EventNote] = field(default_factory=list)
    requeue_after: float | None = None
    delete_job: bool = False

    def note(self, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tell it as an Event."""
        self.events.append(EventNote(type_, reason, message))

    def fail(self, reason: str, message: str) -> None:
        """The job is over without a result."""
        self.draft.fail(reason, message)
        self.note("Warning", reason, message)

    def requeue(self, seconds: float) -> None:
        """Come back after that long, or earlier if something else already asked for it."""
        seconds = max(0.1, seconds)
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)
