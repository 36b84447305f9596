"""One step of the retrain at work: from its jobs to its end. Pure.

    AwaitingApproval -> Training -> Evaluating -> RollingOut -> Promoted
                           |            |             |
                           +- Failed ---+- Rejected --+          Superseded: from anywhere

What a stage needs is created until it is there; what is there is only read. So the operator may die between any two
writes: the intent was stored before the first job was made, and names follow from it.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from slipway_api import conditions as c
from slipway_api.deployment import DeploymentSpec
from slipway_api.drift import Retrain, RetrainRun, RetrainStage
from slipway_operator.controllers.deployment.observed import Observed, Plan
from slipway_operator.controllers.deployment.retrain import jobs, usage
from slipway_operator.controllers.deployment.retrain.causes import LONGEST_SLEEP
from slipway_operator.controllers.deployment.retrain.data import NoSuchDataError
from slipway_operator.controllers.deployment.retrain.desired import trained_by
from slipway_operator.controllers.deployment.retrain.ledger import Ledger
from slipway_operator.controllers.deployment.retrain.observed import ABORT, APPROVE, Job, check_name, run_of
from slipway_operator.controllers.deployment.status import Draft
from slipway_operator.controllers.deployment.versions import version_of
from slipway_operator.controllers.runs.observed import Patch


class Step:
    """One look at the retrain at work."""

    def __init__(
        self, observed: Observed, spec: DeploymentSpec, retrain: Retrain, ledger: Ledger, draft: Draft, plan: Plan
    ) -> None:
        self._observed, self._spec, self._retrain = observed, spec, retrain
        self._ledger, self._draft, self._plan = ledger, draft, plan

    def take(self) -> None:
        """Bring it one stage further, or make what its stage needs."""
        annotations = self._observed.deployment["metadata"].get("annotations") or {}
        if annotations.get(ABORT) == self._run.id:
            return self.end("Rejected", c.ABORTED, f"annotation {ABORT} names it")
        if self._run.stage == "AwaitingApproval":
            if annotations.get(APPROVE) == self._run.id:
                self._ledger.change(stage="Training")
                self._plan.note("Normal", c.TRAINING, f"retrain {self._run.id} was approved")
                self._plan.requeue(0)
            return None
        if self._run.stage == "RollingOut":
            return self._roll_out()
        if self._over_budget():
            return None
        for job in self._jobs():
            _drive(job, False, self._plan)
        return self._train() if self._run.stage == "Training" else self._evaluate()

    @property
    def _run(self) -> RetrainRun:
        assert self._ledger.current is not None
        return self._ledger.current

    @property
    def _now(self) -> datetime:
        return self._draft.time

    def _jobs(self) -> list[Job]:
        return self._observed.retrain.of(self._run.id)

    def end(self, stage: RetrainStage, reason: str, message: str) -> None:
        """It is over; whatever still runs of it is stopped by `tidy`."""
        run = self._ledger.end(stage, reason, message, usage.hours_of(self._jobs(), self._now))
        good = stage == "Promoted"
        self._plan.note("Normal" if good else "Warning", reason, f"retrain {run.id}: {message}")
        self._plan.requeue(0)

    def _fail(self, message: str, reason: str = c.RETRAIN_FAILED) -> None:
        self.end("Failed", reason, message)

    # --- training ---

    def _train(self) -> None:
        run, name = self._run, self._run.id
        job = self._observed.retrain.find("TrainJob", name)
        if job is None and run.train_job_uid is not None:
            return self._fail(f"TrainJob {name} was deleted while it trained")
        if job is None:
            return self._create("TrainJob", name)
        if run.train_job_uid is None:
            self._ledger.change(train_job_uid=job["metadata"]["uid"])
        if (why := _failure(job)) is not None:
            return self._fail(why)
        trained = (job.get("status") or {}).get("model")
        if trained is None:
            return None
        self._ledger.change(stage="Evaluating", model=trained["uri"], model_digest=trained.get("digest") or "")
        self._plan.note("Normal", c.EVALUATING, f"retrain {name} has a model: {trained['uri']}")
        return self._plan.requeue(0)

    def _create(self, kind: str, name: str) -> None:
        """Into the plan; or the end of it, where it cannot be made."""
        template, deployment, run = self._observed.retrain.template, self._observed.deployment, self._run
        if self._observed.retrain.taken(kind, name):
            message = f"a {kind} {name} that does not belong to this Deployment exists: delete or rename it"
            return self._fail(message, c.NAME_TAKEN)
        if name in self._observed.retrain.refusals:
            return self._fail(f"{kind} {name} is refused: {self._observed.retrain.refusals[name]}")
        if template is None:
            return self._fail(f"TrainJob {self._retrain.train_job.name} (spec.drift.retrain.trainJob) was deleted")
        try:
            if kind == "TrainJob":
                made = jobs.train_job(deployment, self._retrain, run, template)
            elif name == run.id:
                made = jobs.eval_job(deployment, self._spec, self._retrain, run, template)
            else:
                required = run.requirements[self._checks().index(name)]
                found = self._observed.eval_jobs.get(required)
                if found is None:
                    return self._fail(f"EvalJob {required} (spec.requires) was deleted")
                made = jobs.check_job(deployment, name, run, found)
        except NoSuchDataError as error:
            return self._fail(str(error))
        return self._plan.create.append(made)

    # --- evaluating ---

    def _checks(self) -> list[str]:
        return [check_name(self._run.id, index) for index in range(len(self._run.requirements))]

    def _evaluate(self) -> None:
        names = [self._run.id, *self._checks()]
        found = {name: self._observed.retrain.find("EvalJob", name) for name in names}
        for name in [name for name, job in found.items() if job is None]:
            self._create("EvalJob", name)
            if self._ledger.current is None:
                return None
        there = {name: job for name, job in found.items() if job is not None}
        failure = next((why for job in there.values() if (why := _failure(job)) is not None), None)
        if failure is not None:
            return self._fail(failure)
        verdicts = {name: _passed(job) for name, job in there.items()}
        if len(there) < len(names) or None in verdicts.values():
            if self._observed.retrain.find("TrainJob", self._run.id) is None:
                return self._fail(f"TrainJob {self._run.id} was deleted before its model was measured")
            return None
        return self._judge(there)

    def _judge(self, measured: dict[str, Job]) -> None:
        run, own = self._run, measured[self._run.id]
        for name, job in measured.items():
            what = job["status"].get("model") or {}
            if not trained_by(run).is_same_as(what):
                return self._fail(f"EvalJob {name} measured {what.get('uri')}, not {run.model}")
            if _passed(job) is not True:
                told = c.find_condition(job["status"]["conditions"], c.PASSED)
                message = f"EvalJob {name}: {(told or {}).get('message')}; {in_figures(own)}"
                return self.end("Rejected", c.NOT_BETTER, message)
        if not _improved(own):  # an interval that ends at zero says "not worse", and no more
            return self.end("Rejected", c.NOT_BETTER, f"the new model is no better on new data; {in_figures(own)}")
        version = version_of(trained_by(run), self._spec).version
        self._ledger.change(stage="RollingOut", version=version, message=in_figures(own))
        self._plan.note("Normal", c.ROLLING_OUT, f"retrain {run.id} is better: {in_figures(own)}")
        return None

    # --- rolling out ---

    def _roll_out(self) -> None:
        """The rollout brings it, as it brings any other version. Here it is only seen how that ends."""
        version = version_of(trained_by(self._run), self._spec).version
        if version != self._run.version:  # spec.engine was changed meanwhile
            self._ledger.change(version=version)
        if self._draft.stable is not None and self._draft.stable.version == version:
            message = f"version {version} took over; {self._run.message}"
            told, before = self._ledger.drift, self._run.base_version
            if told is not None and told.version in ("", before):
                self._ledger.handle([alarm.id for alarm in told.alarms])  # of the version before
            return self.end("Promoted", c.PROMOTED, message)
        rejected = self._draft.rejection_of(version)
        if rejected is not None:
            message = f"version {version} was rolled back: {rejected.reason}: {rejected.message}; {self._run.message}"
            return self.end("Rejected", c.ROLLED_BACK, message)
        return None

    # --- budget ---

    def _over_budget(self) -> bool:
        """Ends it when it has used up what is left; else asks to come back when that may be."""
        if self._retrain.gpu_hours_budget is None:
            return False
        budget, before = Decimal(self._retrain.gpu_hours_budget), usage.spent(self._ledger.state.usage, self._now)
        mine = usage.hours_of(self._jobs(), self._now)
        left = budget - before - mine
        if left <= 0:
            message = (
                f"stopped: it has used {usage.in_words(mine)} hours, others of the last {usage.WINDOW_DAYS} days "
                f"{usage.in_words(before)}; spec.drift.retrain.gpuHoursBudget is {budget}"
            )
            self._fail(message, c.BUDGET_SPENT)
            return True
        rate = usage.rate_of(self._jobs())
        if rate > 0:
            self._plan.requeue(min(float(left / rate) * 3600 + 1, LONGEST_SLEEP))
        return False


def tidy(observed: Observed, ledger: Ledger, plan: Plan) -> None:
    """Stops what still runs of retrains that are over, and deletes the jobs of those that are forgotten."""
    current = ledger.current.id if ledger.current else None
    kept = {run.id for run in ledger.state.history} | {ledger.state.model_run}
    for job in observed.retrain.jobs:
        run = run_of(job)
        if run is None or run == current or job["metadata"].get("deletionTimestamp"):
            continue
        if run in kept:
            _drive(job, True, plan)
        else:
            plan.delete.append(job)


def hold(observed: Observed, ledger: Ledger, plan: Plan) -> None:
    """The Deployment is suspended: so are the jobs of its retrain. They go on with it."""
    for job in observed.retrain.of(ledger.current.id) if ledger.current else []:
        _drive(job, True, plan)


def _drive(job: Job, stop: bool, plan: Plan) -> None:
    if not _has_ended(job) and job["spec"].get("suspend", False) != stop:
        plan.patch.append(Patch(job, {"spec": {"suspend": stop}}))


def _conditions(job: Job) -> list[dict[str, Any]]:
    return list((job.get("status") or {}).get("conditions", []))


def _has_ended(job: Job) -> bool:
    return c.is_true(_conditions(job), c.SUCCEEDED) or c.is_true(_conditions(job), c.FAILED)


def _failure(job: Job) -> str | None:
    failed = c.find_condition(_conditions(job), c.FAILED)
    if failed is None or failed["status"] != "True":
        return None
    return f"{job['kind']} {job['metadata']['name']} has failed: {failed['reason']}: {failed['message']}"


def _passed(job: Job) -> bool | None:
    told = c.find_condition(_conditions(job), c.PASSED)
    return None if told is None or told["status"] == "Unknown" else told["status"] == "True"


def _score(job: Job, suite: str, metric: str) -> dict[str, Any] | None:
    metrics = (job.get("status") or {}).get("metrics") or []
    return next(
        (m for m in metrics if m["suite"] == suite and m["metric"] == metric and not m.get("slice")),
        None,
    )


def _improved(job: Job) -> bool:
    found = _score(job, jobs.NEW, jobs.METRIC)
    comparison = (found or {}).get("baseline")
    return comparison is not None and float(comparison["difference"]) < 0


def in_figures(job: Job) -> str:
    """The perplexities of both models on both data."""
    told = []
    for suite in (jobs.NEW, jobs.OLD):
        score = _score(job, suite, "perplexity")
        if score is not None and score.get("baseline"):
            told.append(f"on {suite} data {score['value']} against {score['baseline']['value']}")
    return f"perplexity {', '.join(told)}" if told else "no perplexities are told"
