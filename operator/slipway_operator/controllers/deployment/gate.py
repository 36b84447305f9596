"""Whether a model may serve: what spec.requires says of it. Pure.

A verdict counts only for the model that was measured. An EvalJob names the digest of what it loaded, so a TrainJob that
was deleted and trained again under its name cannot pass on the scores of its predecessor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipway_api import conditions as c
from slipway_api.deployment import DeploymentSpec
from slipway_operator.controllers.deployment.versions import Resolved


@dataclass(frozen=True)
class Verdict:
    """`passed` None: it is not known yet."""

    passed: bool | None
    reason: str
    message: str


def judge(spec: DeploymentSpec, model: Resolved, eval_jobs: Mapping[str, dict[str, Any]]) -> Verdict:
    """The first requirement that fails, else the first that is open, else all hold."""
    names = [requirement.eval_job.name for requirement in spec.requires if requirement.eval_job]
    if not names:
        return Verdict(True, c.NO_REQUIREMENTS, "spec.requires asks for nothing: any model may serve")
    verdicts = [_of_eval_job(name, eval_jobs.get(name), model) for name in names]
    for wanted in (False, None):
        found = next((verdict for verdict in verdicts if verdict.passed is wanted), None)
        if found is not None:
            return found
    return Verdict(True, c.REQUIREMENTS_HOLD, "; ".join(verdict.message for verdict in verdicts))


def _of_eval_job(name: str, job: dict[str, Any] | None, model: Resolved) -> Verdict:
    where = f"spec.requires: EvalJob {name}"
    if job is None:
        return Verdict(None, c.EVALUATION_PENDING, f"{where} does not exist; waiting for it")
    if (job.get("spec") or {}).get("crossValidation"):
        return Verdict(
            False,
            c.EVALUATION_OF_NO_MODEL,
            f"{where} is a cross-validation: it measures models that it trains itself, and never this one. Name an "
            "EvalJob whose spec.model is this model; the cross-validation may still decide whether you train it",
        )
    status = job.get("status") or {}
    conditions = status.get("conditions", [])
    failed, passed = (c.find_condition(conditions, type_) for type_ in (c.FAILED, c.PASSED))
    if failed is not None and failed["status"] == "True":
        return Verdict(False, c.EVALUATION_NOT_PASSED, f"{where} has failed: {failed['message']}")
    if passed is None or passed["status"] == "Unknown":
        return Verdict(None, c.EVALUATION_PENDING, f"{where} has not ended; waiting for it")
    measured = status.get("model") or {}
    if not model.is_same_as(measured):
        return Verdict(
            False,
            c.OTHER_MODEL_EVALUATED,
            f"{where} measured {measured.get('uri')} ({measured.get('digest')}), not {model.uri or model.source} "
            f"({model.digest or 'digest unknown'}): evaluate this model, or name the EvalJob that does",
        )
    if passed["status"] != "True":
        return Verdict(False, c.EVALUATION_NOT_PASSED, f"{where}: {passed['message']}")
    return Verdict(True, c.REQUIREMENTS_HOLD, f"{where} passed")
