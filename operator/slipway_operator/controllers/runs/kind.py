"""What a kind of run adds to the ladder that all share: its spec, what it waits for, what it tells its run, its result.

Implementations are pure. They read what was observed and change the draft; they never talk to anybody.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from slipway_api.run import Report, ReportTarget, RunEnd, RunIdentity
from slipway_api.trainjob import Retry, Workers
from slipway_operator.kube.resource import Resource

if TYPE_CHECKING:
    from slipway_operator.controllers.runs.observed import Observed, Plan, Settings
    from slipway_operator.controllers.runs.status import StatusDraft


class RunSpecification(Protocol):
    """The fields of a spec that the ladder reads."""

    @property
    def workers(self) -> Workers: ...
    @property
    def retry(self) -> Retry: ...
    @property
    def suspend(self) -> bool: ...
    @property
    def queue(self) -> str | None: ...
    @property
    def active_deadline_seconds(self) -> int | None: ...
    @property
    def ttl_seconds_after_finished(self) -> int | None: ...


SpecT = TypeVar("SpecT", bound=RunSpecification)


@dataclass(frozen=True)
class RunPlace:
    """Which attempt a run is, where it keeps things, and whom it tells."""

    namespace: str
    name: str
    uid: str
    attempt: int
    storage: str  # prefix of what the object stores
    shared: str  # prefix of what the namespace shares
    report: ReportTarget

    def identity(self) -> dict[str, Any]:
        """The fields of RunIdentity, but for the kind."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "attempt": self.attempt,
            "storage": self.storage,
            "cache": f"{self.shared}/cache",
            "report": self.report,
        }


class RunKind(ABC, Generic[SpecT]):
    """One kind of run."""

    resource: Resource
    entrypoint: str
    """What its RayJobs run."""
    kept: str
    """What a deadline does not take away, for its message."""
    stopped: str = "stopped because spec.suspend is true"
    """Why an attempt is stopped, for its record."""
    driver_alone: bool = False
    """Whether its driver does the work by itself: then the head gets what a worker would have, and there is none."""

    @abstractmethod
    def child_name(self, name: str, attempt: int) -> str:
        """The name of an attempt's RayJob: deterministic, so that a lost answer can never make a second one."""

    @abstractmethod
    def parse(self, job: dict[str, Any]) -> SpecT:
        """The spec of the object."""

    @abstractmethod
    def references(self, job: dict[str, Any]) -> list[str]:
        """Names of the TrainJobs, of the same namespace, whose models it needs."""

    def makes(self, job: dict[str, Any]) -> list[str]:
        """Names of the TrainJobs and EvalJobs, of the same namespace, that are made for it. Usually none."""
        return []

    def labels(self, job: dict[str, Any]) -> dict[str, str]:
        """Further labels of its RayJobs. Usually none."""
        return {}

    def without_a_run(self, observed: Observed, now: datetime, plan: Plan) -> bool:
        """Whether the job needs no run of its own; then this fills the plan in the ladder's place."""
        return False

    @abstractmethod
    def plan(self, observed: Observed, spec: SpecT, settings: Settings, plan: Plan) -> SpecT | None:
        """What will run: references resolved, and made smaller after each end for want of memory.

        None when it cannot run (yet); then the draft says why.
        """

    @abstractmethod
    def say_planned(self, observed: Observed, spec: SpecT, settings: Settings, draft: StatusDraft) -> None:
        """An attempt was found that this status knows nothing of: say what was planned for it."""

    @abstractmethod
    def run(self, spec: SpecT, place: RunPlace) -> RunIdentity:
        """The run contract of an attempt."""

    @abstractmethod
    def fold(self, report: Report, draft: StatusDraft) -> None:
        """Take over what the run says of itself."""

    @abstractmethod
    def result_of(self, end: RunEnd) -> dict[str, Any] | None:
        """What a run that succeeded has made; None when it does not say."""

    @abstractmethod
    def succeed(self, result: dict[str, Any], draft: StatusDraft) -> None:
        """Put the result into status."""

    @abstractmethod
    def conclude(self, job: dict[str, Any], draft: StatusDraft) -> None:
        """The last word of each look at the object, whatever the ladder did."""
