"""Decides what becomes of alarms and schedules: (Deployment, its jobs, status, now) -> jobs, status.retrain. Pure.

    what the user changed -> the retrain at work, one step -> is another one asked for? -> may it begin? -> begin

A retrain begins by being written into status.retrain.current, and only a decision that finds it stored makes its jobs.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime

from slipway_api import conditions as c
from slipway_api.cron import CronError
from slipway_api.deployment import DeploymentSpec
from slipway_api.drift import DriftAlarm, Retrain, RetrainRun
from slipway_operator.controllers.deployment.observed import Observed, Plan
from slipway_operator.controllers.deployment.retrain.causes import (
    LONGEST_SLEEP,
    Cause,
    due_schedule,
    pending_alarms,
)
from slipway_operator.controllers.deployment.retrain.data import NoSuchDataError, documents
from slipway_operator.controllers.deployment.retrain.desired import desired_model
from slipway_operator.controllers.deployment.retrain.ledger import Ledger
from slipway_operator.controllers.deployment.retrain.limits import Refusal, gave_up, held_back
from slipway_operator.controllers.deployment.retrain.observed import APPROVE
from slipway_operator.controllers.deployment.retrain.stages import Step, hold, tidy
from slipway_operator.controllers.deployment.status import Draft
from slipway_operator.controllers.deployment.versions import Unresolved, resolve, version_of
from slipway_operator.controllers.runs.attempts import format_time

_NAME_PART = 27  # with -r, eight digits and -q0 a name has 40 characters, as many as an EvalJob's may have


def advance(observed: Observed, spec: DeploymentSpec, draft: Draft, plan: Plan) -> None:
    """One look, before the rollout's: what is begun, made, ended or refused."""
    retrain = spec.drift.retrain if spec.drift else None
    if retrain is None and draft.value("retrain") is None:
        return
    ledger = Ledger(draft)
    changed = ledger.heed(spec, resolve(spec, observed.train_job))
    if ledger.current is not None:
        _go_on(observed, spec, retrain, ledger, draft, plan, changed=changed)
    refusal = _consider(observed, spec, retrain, ledger, draft, plan) if retrain else None
    tidy(observed, ledger, plan)
    _tell(retrain, refusal, ledger, draft)
    ledger.save(draft)


def suspend(observed: Observed, draft: Draft, plan: Plan) -> None:
    """Nothing runs while the Deployment is suspended."""
    if draft.value("retrain") is not None:
        hold(observed, Ledger(draft), plan)
        draft.set(c.RETRAINING, "False", c.SUSPENDED_BY_USER, "spec.suspend is true")


def _go_on(
    observed: Observed,
    spec: DeploymentSpec,
    retrain: Retrain | None,
    ledger: Ledger,
    draft: Draft,
    plan: Plan,
    *,
    changed: bool,
) -> None:
    wanted = retrain or Retrain.model_validate({"trainJob": {"name": "none"}})
    step = Step(observed, spec, wanted, ledger, draft, plan)
    assert ledger.current is not None
    so_far = f"; it was {ledger.current.stage}. {ledger.current.message}".rstrip(". ")
    if changed:
        return step.end("Superseded", c.SUPERSEDED, f"spec.model names another model meanwhile{so_far}")
    if retrain is None:
        return step.end("Superseded", c.SUPERSEDED, f"spec.drift.retrain was taken out meanwhile{so_far}")
    return step.take()


# --- whether another one begins -----------------------------------------------------------------------------------


def _consider(
    observed: Observed, spec: DeploymentSpec, retrain: Retrain, ledger: Ledger, draft: Draft, plan: Plan
) -> Refusal | None:
    """Begins one, or says why not. None also where nothing asks for one."""
    now = draft.time
    pending = pending_alarms(retrain, ledger, draft.stable, plan)
    try:
        scheduled = due_schedule(retrain, ledger, now, plan)
    except CronError as error:
        if not pending and ledger.current is None:
            refusal = Refusal(c.SCHEDULE_INVALID, f"spec.drift.retrain.schedule: {error}")
            return _refuse("schedule", refusal, ledger, plan)
        scheduled = None
    causes = [Cause(alarm=pending[0])] if pending else [Cause(scheduled=scheduled)] if scheduled else []
    if not causes:
        return None
    cause = causes[0]
    if ledger.current is not None:
        message = f"{cause.words}: retrain {ledger.current.id} is at work ({ledger.current.stage}), and there is one"
        return _refuse(cause.key, Refusal(c.RETRAIN_IN_FLIGHT, message), ledger, plan)
    found = _refusal(observed, spec, retrain, ledger, draft)
    if found is None:
        _begin(observed, spec, retrain, cause, pending, ledger, draft, plan)
        return None
    again = f"; it may begin from {format_time(found.until)} on" if found.until else ""
    stays = " if the signal is still drifted then" if cause.alarm and found.until else ""
    return _refuse(
        cause.key,
        Refusal(found.reason, f"{cause.words}: {found.message}{again}{stays}", found.until),
        ledger,
        plan,
        now,
    )


def _refuse(key: str, refusal: Refusal, ledger: Ledger, plan: Plan, now: datetime | None = None) -> Refusal:
    if ledger.refuse(key, refusal.reason, refusal.message):
        plan.note("Warning", refusal.reason, refusal.message)
    if refusal.until is not None and now is not None:
        plan.requeue(min((refusal.until - now).total_seconds() + 1, LONGEST_SLEEP))
    return refusal


def _refusal(
    observed: Observed, spec: DeploymentSpec, retrain: Retrain, ledger: Ledger, draft: Draft
) -> Refusal | None:
    """The first thing that stands against it. The limits go first: they are what an attacker meets."""
    return (
        held_back(retrain, ledger, draft.time)
        or _rollout_under_way(observed, spec, draft)
        or _requirements_missing(observed, spec)
        or _nothing_to_learn(observed, retrain, ledger)
    )


def _rollout_under_way(observed: Observed, spec: DeploymentSpec, draft: Draft) -> Refusal | None:
    if draft.stable is None:
        return Refusal(c.ROLLOUT_UNDER_WAY, "no version has been served yet")
    if draft.candidate is not None:
        return Refusal(c.ROLLOUT_UNDER_WAY, f"version {draft.candidate.version} is being rolled out")
    model = desired_model(spec, draft, observed.train_job)
    if isinstance(model, Unresolved):
        return Refusal(c.ROLLOUT_UNDER_WAY, model.message)
    version = version_of(model, spec).version
    if version != draft.stable.version and draft.rejection_of(version) is None:
        return Refusal(c.ROLLOUT_UNDER_WAY, f"version {version} is about to be rolled out")
    return None


def _required(spec: DeploymentSpec) -> list[str]:
    return [one.eval_job.name for one in spec.requires if one.eval_job]


def _requirements_missing(observed: Observed, spec: DeploymentSpec) -> Refusal | None:
    missing = [name for name in _required(spec) if name not in observed.eval_jobs]
    if not missing:
        return None
    message = (
        f"spec.requires: EvalJobs {', '.join(missing)} do not exist, so the new model could not be measured by them"
    )
    return Refusal(c.REQUIREMENT_MISSING, message)


def _nothing_to_learn(observed: Observed, retrain: Retrain, ledger: Ledger) -> Refusal | None:
    template = observed.retrain.template
    if template is None:
        message = f"spec.drift.retrain.trainJob: TrainJob {retrain.train_job.name} does not exist"
        return Refusal(c.TEMPLATE_UNFIT, message)
    snapshot = ledger.drift.snapshot if ledger.drift and retrain.data.captured else None
    if retrain.data.captured and (snapshot is None or not snapshot.examples or not snapshot.held_out):
        message = (
            "there are no captured examples to learn from and to measure on yet: spec.capture.content must be "
            "examples; or set spec.drift.retrain.data.captured to false and name sources"
        )
        return Refusal(c.NO_EXAMPLES, message)
    try:
        documents(retrain, template, snapshot, 0)
    except NoSuchDataError as error:
        return Refusal(c.TEMPLATE_UNFIT, str(error))
    return None


def _begin(
    observed: Observed,
    spec: DeploymentSpec,
    retrain: Retrain,
    cause: Cause,
    pending: list[DriftAlarm],
    ledger: Ledger,
    draft: Draft,
    plan: Plan,
) -> None:
    assert draft.stable is not None
    manual = retrain.approval == "manual"
    alarm = cause.alarm
    run = RetrainRun(
        id=_name(observed, cause, ledger.state.begun),
        cause="drift" if alarm else "schedule",
        alarm=alarm.id if alarm else None,
        signal=alarm.signal if alarm else None,
        scheduled=cause.scheduled,
        base_version=draft.stable.version,
        base=draft.stable.reference,
        snapshot=ledger.drift.snapshot if ledger.drift and retrain.data.captured else None,
        requirements=_required(spec),
        stage="AwaitingApproval" if manual else "Training",
        started=draft.now,
    )
    ledger.begin(run)
    ledger.handle([one.id for one in pending if alarm is None or one.id != alarm.id])  # they are answered by it too
    wait = f"; it waits for the annotation {APPROVE}={run.id}" if manual else ""
    reason = c.AWAITING_APPROVAL if manual else c.TRAINING
    plan.note("Normal", reason, f"retrain {run.id} of version {run.base_version} for {cause.words}{wait}")
    plan.requeue(0)


def _name(observed: Observed, cause: Cause, begun: int) -> str:
    """Follows from the cause and from how many there were before: the same decision made twice gives the same name."""
    metadata = observed.deployment["metadata"]
    identity = json.dumps([metadata["uid"], cause.key, begun])
    prefix = metadata["name"][:_NAME_PART].rstrip("-.")
    return f"{prefix}-r{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


# --- what is told -------------------------------------------------------------------------------------------------

_STAGE_REASONS = {"Training": c.TRAINING, "Evaluating": c.EVALUATING, "RollingOut": c.ROLLING_OUT}


def _tell(retrain: Retrain | None, refusal: Refusal | None, ledger: Ledger, draft: Draft) -> None:
    run = ledger.current
    if run is not None and run.stage == "AwaitingApproval":
        message = f"retrain {run.id} ({_cause(run)}) waits for the annotation {APPROVE}={run.id}"
        return draft.set(c.RETRAINING, "False", c.AWAITING_APPROVAL, message)
    if run is not None:
        message = f"retrain {run.id} ({_cause(run)}) of version {run.base_version}"
        return draft.set(c.RETRAINING, "True", _STAGE_REASONS[run.stage], message)
    if refusal is not None:
        return draft.set(c.RETRAINING, "False", refusal.reason, refusal.message)
    if retrain is not None and gave_up(retrain, ledger):
        found = held_back(retrain, ledger, draft.time)
        assert found is not None
        return draft.set(c.RETRAINING, "False", found.reason, found.message)
    if ledger.state.refused:  # since the last one ended
        return draft.set(c.RETRAINING, "False", ledger.state.refused, ledger.state.refused_message or "")
    if ledger.last is not None:
        message = f"retrain {ledger.last.id} ({_cause(ledger.last)}): {ledger.last.message}"
        return draft.set(c.RETRAINING, "False", ledger.last.reason or c.NO_RETRAIN, message)
    return draft.set(c.RETRAINING, "False", c.NO_RETRAIN, "nothing has asked for one")


def _cause(run: RetrainRun) -> str:
    return f"{run.signal} drifted" if run.cause == "drift" else f"schedule of {run.scheduled}"
