"""The models that a job takes from TrainJobs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slipway_api import conditions as c
from slipway_operator.controllers.runs.observed import Observed


@dataclass(frozen=True)
class Trained:
    """What a reference leads to. `message` says why there is no model (yet)."""

    model: dict[str, Any] | None  # status.model of the TrainJob
    failed: bool = False  # there will never be one
    message: str = ""


def trained_model(field: str, name: str, observed: Observed) -> Trained:
    """The model of TrainJob `name`, which the manifest's `field` refers to."""
    job = observed.train_jobs.get(name)
    where = f"{field}: TrainJob {name}"
    if job is None:
        return Trained(None, message=f"{where} does not exist")
    status = job.get("status") or {}
    if c.is_true(status.get("conditions", []), c.FAILED):
        return Trained(None, failed=True, message=f"{where} has failed")
    if "model" not in status:
        return Trained(None, message=f"{where} has not succeeded yet")
    return Trained(status["model"])
