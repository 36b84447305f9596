"""k-fold cross-validation: for each fold a TrainJob that never sees it and an EvalJob that measures on it. Pure.

The EvalJob has no run of its own. What it makes are ordinary jobs, `<name>-fold-<i>` of both kinds, owned by it: they
queue, retry, resume and report as any other, and go when it goes. Names are deterministic, so an operator that dies
between any two of them finds the rest missing and makes those.

The folds are trained on behalf of whoever wrote the EvalJob: queue and priority are the EvalJob's own, everything else
is copied from the TrainJob that spec.model.trainJob names. Once one fold has failed the mean means nothing: the others
are suspended, which keeps their checkpoints and frees what they hold.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from slipway_api import API_VERSION
from slipway_api import conditions as c
from slipway_api.evaljob import EvalJobSpec
from slipway_operator.controllers.evaljob.folds import combine
from slipway_operator.controllers.runs import usage
from slipway_operator.controllers.runs.decide import deadline_message, expire, of_a_predecessor, past_deadline
from slipway_operator.controllers.runs.kind import RunKind
from slipway_operator.controllers.runs.observed import Observed, Patch, Plan
from slipway_operator.kuberay import owner_labels, owner_reference

_LOOK_AGAIN_SECONDS = 15.0  # at what nothing will tell of: a name that somebody else still bears

Job = dict[str, Any]


class Fold(NamedTuple):
    """The two jobs of a fold, as far as they are there."""

    number: int
    name: str
    train: Job | None
    evaluate: Job | None

    def jobs(self) -> Iterator[Job]:
        """Those that are there."""
        yield from (job for job in (self.train, self.evaluate) if job is not None)


def fold_name(name: str, fold: int) -> str:
    """The name of a fold's TrainJob, and of its EvalJob."""
    return f"{name}-fold-{fold}"


def cross_validate(
    kind: RunKind[EvalJobSpec], observed: Observed, spec: EvalJobSpec, now: datetime, plan: Plan
) -> None:
    """What the folds need now."""
    draft = plan.draft
    folds = _folds(observed, spec)
    if not draft.finished():
        _advance(kind, observed, spec, folds, now, plan)
    _tell(folds, plan)
    _drive(folds, spec, plan, stop=spec.suspend or draft.finished())
    if draft.finished():
        expire(spec, now, plan)


def _folds(observed: Observed, spec: EvalJobSpec) -> list[Fold]:
    assert spec.cross_validation is not None
    uid = observed.job["metadata"]["uid"]
    ours = {(job["kind"], job["metadata"]["name"]): job for job in observed.made_jobs if _is_owned_by(job, uid)}
    names = [fold_name(observed.job["metadata"]["name"], number) for number in range(spec.cross_validation.folds)]
    return [Fold(i, name, ours.get(("TrainJob", name)), ours.get(("EvalJob", name))) for i, name in enumerate(names)]


def _is_owned_by(job: Job, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in job["metadata"].get("ownerReferences", []))


def _advance(
    kind: RunKind[EvalJobSpec], observed: Observed, spec: EvalJobSpec, folds: list[Fold], now: datetime, plan: Plan
) -> None:
    draft = plan.draft
    failure = next((message for fold in folds if (message := _failure(fold))), None)
    if failure is not None:
        return plan.fail(c.FOLD_FAILED, failure)
    if all(fold.evaluate is not None and _is(fold.evaluate, c.SUCCEEDED) for fold in folds):
        return _succeed(folds, spec, plan)
    if past_deadline(spec, draft, now, plan):
        return plan.fail(c.DEADLINE_EXCEEDED, deadline_message(kind, spec))
    if spec.suspend:
        return _suspended(folds, plan)
    draft.set(c.SUSPENDED, "False", c.NOT_SUSPENDED, "spec.suspend is false")
    missing = sum(job is None for fold in folds for job in (fold.train, fold.evaluate))
    if missing and not _make(observed, spec, folds, plan):
        return None
    if missing:
        plan.note("Normal", "FoldsCreated", f"created {missing} jobs for {len(folds)} folds")
    if draft.value("startTime") is None:
        draft.put("startTime", draft.now)
    measured = sum(fold.evaluate is not None and _is(fold.evaluate, c.SUCCEEDED) for fold in folds)
    draft.set(c.RUNNING, "True", c.CROSS_VALIDATING, f"{measured} of {len(folds)} folds are trained and measured")
    return None


# --- making and driving the jobs ----------------------------------------------------------------------------------


def _make(observed: Observed, spec: EvalJobSpec, folds: list[Fold], plan: Plan) -> bool:
    """Puts what is missing into the plan: all of it, or nothing and a condition that says why."""
    assert spec.model.train_job is not None
    base = observed.train_jobs.get(spec.model.train_job.name)
    if base is None:
        message = f"spec.model.trainJob: TrainJob {spec.model.train_job.name} does not exist; waiting for it"
        plan.draft.set(c.RUNNING, "False", c.MODEL_NOT_READY, message)
        return False
    uid = observed.job["metadata"]["uid"]
    for job in observed.made_jobs:
        what = f"{job['kind']} {job['metadata']['name']}"
        if job["metadata"].get("deletionTimestamp") or (
            not _is_owned_by(job, uid) and of_a_predecessor(observed.job, job)
        ):
            message = f"waiting until {what}, which is being deleted, is gone"
            plan.draft.set(c.RUNNING, "False", c.WAITING_FOR_RESOURCES, message)
            plan.requeue(_LOOK_AGAIN_SECONDS)
            return False
        if not _is_owned_by(job, uid):
            plan.fail(c.NAME_TAKEN, f"a {what} that does not belong to this job exists: delete or rename one")
            return False
    for fold in folds:
        if fold.train is None:
            plan.apply.append(_child(observed.job, "TrainJob", fold.name, _train_spec(base, spec, fold)))
        if fold.evaluate is None:
            plan.apply.append(_child(observed.job, "EvalJob", fold.name, _eval_spec(base, spec, fold)))
    return True


def _child(owner: Job, kind: str, name: str, spec: Mapping[str, Any]) -> Job:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": owner_labels(owner),
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": spec,
    }


def _split(spec: EvalJobSpec, fold: Fold) -> dict[str, Any]:
    assert spec.cross_validation is not None
    return {"folds": spec.cross_validation.folds, "fold": fold.number, "seed": spec.seed}


def _train_spec(base: Job, spec: EvalJobSpec, fold: Fold) -> dict[str, Any]:
    """The base job's spec, with the fold held out. Of what only drives a run, this EvalJob decides."""
    made: dict[str, Any] = copy.deepcopy(base["spec"])
    for field in ("suspend", "queue", "priorityClassName", "ttlSecondsAfterFinished"):
        made.pop(field, None)
    made["data"].pop("evalSources", None)
    made["data"]["split"] = _split(spec, fold)
    return made | _driving(spec)


def _eval_spec(base: Job, spec: EvalJobSpec, fold: Fold) -> dict[str, Any]:
    """This job's spec, for one model, without gates: those judge the mean."""
    made = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        exclude={"gate", "cross_validation", "suspend", "queue", "priority_class_name", "ttl_seconds_after_finished"},
    )
    made.pop("activeDeadlineSeconds", None)  # it counts for the whole
    made["model"] = {"trainJob": {"name": fold.name}}
    made["data"] = {"sources": copy.deepcopy(base["spec"]["data"]["sources"]), "split": _split(spec, fold)}
    return made | _driving(spec)


def _driving(spec: EvalJobSpec) -> dict[str, Any]:
    fields = {"queue": spec.queue, "priorityClassName": spec.priority_class_name}
    return {name: value for name, value in fields.items() if value is not None}


def _drive(folds: list[Fold], spec: EvalJobSpec, plan: Plan, *, stop: bool) -> None:
    """Suspend and queue follow this job's own. What has ended is left alone."""
    for job in (job for fold in folds for job in fold.jobs() if not _has_ended(job)):
        changed: dict[str, Any] = {}
        if job["spec"].get("suspend", False) != stop:
            changed["suspend"] = stop
        if job["spec"].get("suspend", False) and job["spec"].get("queue") != spec.queue:
            changed["queue"] = spec.queue  # None removes it
        if changed and not job["metadata"].get("deletionTimestamp"):
            plan.patch.append(Patch(job, {"spec": changed}))


def _suspended(folds: list[Fold], plan: Plan) -> None:
    going = [job for fold in folds for job in fold.jobs() if not _has_ended(job) and not _is(job, c.SUSPENDED)]
    if going:
        message = f"waiting until {len(going)} jobs of the folds have stopped and their resources are free"
        plan.draft.set(c.SUSPENDED, "False", "Stopping", message)
    else:
        plan.draft.set(c.SUSPENDED, "True", c.SUSPENDED_BY_USER, "spec.suspend is true; nothing is running")
    plan.draft.set(c.RUNNING, "False", c.SUSPENDED_BY_USER, "spec.suspend is true")


# --- what they say ------------------------------------------------------------------------------------------------


def _is(job: Job, type_: str) -> bool:
    return c.is_true((job.get("status") or {}).get("conditions", []), type_)


def _has_ended(job: Job) -> bool:
    return _is(job, c.SUCCEEDED) or _is(job, c.FAILED)


def _failure(fold: Fold) -> str | None:
    """Why there will be no score of this fold. The TrainJob first: its EvalJob fails after it."""
    for job in fold.jobs():
        failed = c.find_condition((job.get("status") or {}).get("conditions", []), c.FAILED)
        if failed is not None and failed["status"] == "True":
            return f"fold {fold.number}: {job['kind']} {fold.name} has failed: {failed['reason']}: {failed['message']}"
    return None


def _tell(folds: list[Fold], plan: Plan) -> None:
    """Folds, their count and what they have used."""
    told, used = [], []
    for fold in folds:
        trained = fold.train is not None and _is(fold.train, c.SUCCEEDED)
        speaks = fold.evaluate if trained else fold.train
        state = str(((speaks or {}).get("status") or {}).get("state") or "Pending")
        told.append({"fold": fold.number, "trainJob": fold.name, "evalJob": fold.name, "state": state})
        used += [(job.get("status") or {}).get("usage") or {} for job in fold.jobs()]
    plan.draft.put("folds", told)
    plan.draft.put("usage", usage.total(used))
    measured = sum(fold.evaluate is not None and _is(fold.evaluate, c.SUCCEEDED) for fold in folds)
    plan.draft.put("suitesSummary", f"{measured}/{len(folds)} folds")


def _succeed(folds: list[Fold], spec: EvalJobSpec, plan: Plan) -> None:
    statuses = [fold.evaluate["status"] for fold in folds if fold.evaluate is not None]
    plan.draft.put("metrics", combine([status.get("metrics") or [] for status in statuses], spec.seed))
    plan.draft.put("suites", [_suite(suite.name, statuses) for suite in spec.suites])
    message = f"{len(folds)} folds are trained and measured: status.metrics holds the means"
    plan.draft.succeed(c.FOLDS_MEASURED, message)
    plan.note("Normal", c.SUCCEEDED, message)


def _suite(name: str, statuses: list[dict[str, Any]]) -> dict[str, Any]:
    """A suite over all folds; it has failed where it has failed in one."""
    found = {
        fold: suite
        for fold, status in enumerate(statuses)
        for suite in status.get("suites", [])
        if suite["name"] == name
    }
    told = {
        "name": name,
        "state": "Succeeded",
        "examples": sum(suite.get("examples", 0) for suite in found.values()),
        "done": sum(suite.get("done", 0) for suite in found.values()),
        "cached": bool(found) and all(suite.get("cached", False) for suite in found.values()),
    }
    failed = next(((fold, suite) for fold, suite in found.items() if suite["state"] == "Failed"), None)
    if failed is not None:
        fold, suite = failed
        told |= {"state": "Failed", "reason": suite.get("reason") or "SuiteFailed"}
        told["message"] = f"fold {fold}: {suite.get('message') or 'no reason given'}"[:4096]
    return told
