"""Which model is to serve, and whether it may: spec.model, or what a retrain has made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipway_api import conditions as c
from slipway_api.deployment import DeploymentSpec
from slipway_api.drift import RetrainRun, RetrainStatus
from slipway_api.references import ModelReference
from slipway_operator.controllers.deployment.gate import Verdict, judge
from slipway_operator.controllers.deployment.status import Draft
from slipway_operator.controllers.deployment.versions import Resolved, Unresolved, resolve


def desired_model(spec: DeploymentSpec, draft: Draft, train_job: dict[str, Any] | None) -> Resolved | Unresolved:
    """The model of a retrain that is being rolled out or was promoted, else the one that spec.model names."""
    state = RetrainStatus.model_validate(draft.value("retrain") or {})
    if state.current is not None and state.current.stage == "RollingOut":
        return trained_by(state.current)
    if state.model is not None:
        return _retrained(state.model, state.model_digest, state.model_run)
    return resolve(spec, train_job)


def trained_by(run: RetrainRun) -> Resolved:
    """The model that a retrain has made."""
    assert run.model is not None
    return _retrained(run.model, run.model_digest, run.id)


def _retrained(uri: str, digest: str, run: str | None) -> Resolved:
    return Resolved(ModelReference(uri=uri), digest, f"trainjob/{run}")


def judge_desired(
    spec: DeploymentSpec, model: Resolved, eval_jobs: Mapping[str, dict[str, Any]], draft: Draft
) -> Verdict:
    """The gate. A retrained model has been measured by copies of the required EvalJobs, before it was taken."""
    state = RetrainStatus.model_validate(draft.value("retrain") or {})
    rolling = state.current if state.current is not None and state.current.stage == "RollingOut" else None
    if rolling is None and state.model is None:
        return judge(spec, model, eval_jobs)
    measured = rolling.requirements if rolling is not None else state.model_requirements
    left = [one for one in spec.requires if one.eval_job is None or one.eval_job.name not in measured]
    if spec.requires and not left:
        return Verdict(
            True,
            c.REQUIREMENTS_HOLD,
            f"retrain {rolling.id if rolling is not None else state.model_run} has passed copies of EvalJobs "
            f"{', '.join(measured)}",
        )
    return judge(spec.model_copy(update={"requires": left}), model, eval_jobs)
