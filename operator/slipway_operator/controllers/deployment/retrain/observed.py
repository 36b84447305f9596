"""What a decision about retrains sees beside the Deployment itself. Data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slipway_api import GROUP

LABEL_RETRAIN = f"{GROUP}/retrain"  # on every job of a retrain: its id
APPROVE, ABORT = f"{GROUP}/approve-retrain", f"{GROUP}/abort-retrain"

Job = dict[str, Any]


@dataclass(frozen=True)
class RetrainObserved:
    """The world as the caches show it."""

    jobs: Sequence[Job] = ()  # TrainJobs and EvalJobs that the Deployment controls
    foreign: Sequence[Job] = ()  # jobs of somebody else that bear a name which the retrain at work needs
    template: Job | None = None  # the TrainJob that spec.drift.retrain.trainJob names
    refusals: Mapping[str, str] = field(default_factory=dict)  # job -> why the API server has just refused to make it

    def find(self, kind: str, name: str) -> Job | None:
        """One of our jobs."""
        return next((job for job in self.jobs if job["kind"] == kind and job["metadata"]["name"] == name), None)

    def taken(self, kind: str, name: str) -> bool:
        """Whether somebody else has the name."""
        return any(job["kind"] == kind and job["metadata"]["name"] == name for job in self.foreign)

    def of(self, run: str) -> list[Job]:
        """The jobs of one retrain."""
        return [job for job in self.jobs if run_of(job) == run]


def run_of(job: Job) -> str | None:
    """The retrain that a job belongs to."""
    found: str | None = (job["metadata"].get("labels") or {}).get(LABEL_RETRAIN)
    return found


def check_name(run: str, index: int) -> str:
    """The EvalJob that asks the requirement at that place of the new model."""
    return f"{run}-q{index}"


def names_of(run: str, requirements: int) -> list[str]:
    """Every name that the jobs of a retrain bear."""
    return [run, *(check_name(run, index) for index in range(requirements))]
