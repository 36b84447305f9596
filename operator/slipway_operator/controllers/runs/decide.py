"""Decides what a run needs next: (job, observed children, reports, now) -> children, conditions, requeue. Pure.

A job is any object that is carried out as a run; `kind` is what is particular to a TrainJob or an EvalJob. The job's
history is `status.attempts`. One attempt is one RayJob, named after its number; at most one is alive:

    no attempt alive -> [suspended? planned? retries left? backed off?] -> create the next
    attempt alive    -> [ended? deadline? suspend?] -> record its end -> (next reconcile) delete its RayJob

An end is written to status before the RayJob is deleted, and a RayJob is created before its attempt is written: a
crash between the two leaves either a recorded end whose RayJob is deleted next time, or a RayJob that is adopted by
its number. Nothing is ever created while an older RayJob of the job still exists.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from slipway_api import conditions as c
from slipway_api.run import Report, ReportTarget, report_token
from slipway_operator import kuberay
from slipway_operator.controllers.runs.attempts import (
    End,
    backoff,
    counted_failures,
    end_of_attempt,
    format_time,
    parse_time,
)
from slipway_operator.controllers.runs.kind import RunKind, RunPlace, RunSpecification
from slipway_operator.controllers.runs.observed import Decision, Observed, Plan, Settings
from slipway_operator.controllers.runs.pods import PROBLEMS, end_by_pods, head_lost, seconds_of_patience
from slipway_operator.controllers.runs.status import StatusDraft
from slipway_operator.controllers.runs.waiting import REALLY_RUNNING, at_creation, describe, is_suspended
from slipway_operator.network_policy import network_policy
from slipway_operator.planner.cost import rate_of
from slipway_operator.planner.placement import pool_named


def decide(kind: RunKind[Any], observed: Observed, settings: Settings, now: datetime) -> Decision:
    """What this job needs now."""
    plan = Plan(StatusDraft.of(observed.job, now))
    if not observed.job["metadata"].get("deletionTimestamp"):  # else its children are collected through their owner
        if not kind.without_a_run(observed, now, plan):
            _ladder(kind, observed, settings, now, plan)
        kind.conclude(observed.job, plan.draft)
    status = plan.draft.finish()
    return Decision(
        status=status,
        apply=plan.apply,
        patch=plan.patch,
        delete=plan.delete,
        delete_job=plan.delete_job,
        events=plan.events,
        requeue_after=plan.requeue_after,
        ended_attempt=plan.draft.last_ended_attempt(),
    )


def _ladder(kind: RunKind[Any], observed: Observed, settings: Settings, now: datetime, plan: Plan) -> None:
    draft = plan.draft
    spec = kind.parse(observed.job)
    _adopt(kind, observed, spec, settings, draft)
    _delete_ended(observed, now, plan)
    if draft.finished():
        return expire(spec, now, plan)
    if draft.current_attempt() is not None:
        _follow(kind, observed, spec, settings, now, plan)
    if draft.finished() or draft.current_attempt() is not None:
        return None
    if past_deadline(spec, draft, now, plan):
        return plan.fail(c.DEADLINE_EXCEEDED, deadline_message(kind, spec))
    if spec.suspend:
        return _suspended(observed, draft)
    draft.set(c.SUSPENDED, "False", c.NOT_SUSPENDED, "spec.suspend is false")
    runnable = kind.plan(observed, spec, settings, plan)
    if runnable is None or not _may_start(kind, observed, runnable, now, plan):
        return None
    return _start(kind, observed, runnable, settings, plan)


# --- the rungs ----------------------------------------------------------------------------------------------------


def _adopt(
    kind: RunKind[Any], observed: Observed, spec: RunSpecification, settings: Settings, draft: StatusDraft
) -> None:
    """A RayJob without a record: it was created, and the status that says so was not written."""
    for ray_job in sorted(observed.ray_jobs, key=_number):
        number, metadata = _number(ray_job), ray_job["metadata"]
        if number > draft.last_number():
            draft.set(c.SUSPENDED, "False", c.NOT_SUSPENDED, "spec.suspend is false")
            kind.say_planned(observed, spec, settings, draft)
            _begin(kind, observed.job, number, metadata["creationTimestamp"], metadata["name"], settings, draft)


def _begin(
    kind: RunKind[Any],
    job: dict[str, Any],
    number: int,
    start: str,
    ray_job: str,
    settings: Settings,
    draft: StatusDraft,
) -> None:
    """The attempt has its RayJob."""
    draft.put("storage", storage_prefix(kind, settings.config.storage.uri, job["metadata"]))
    draft.begin_attempt(number, start, ray_job)
    draft.set(c.RUNNING, "False", *at_creation(job, number))


# A run that has said how it ended, or that KubeRay is done with, ends by itself within so many seconds.
_ENDING_SECONDS = 60


def _delete_ended(observed: Observed, now: datetime, plan: Plan) -> None:
    """RayJobs whose attempt has a *stored* end, each with its Secret. What this reconcile ends is deleted by the next.

    The Secret goes first: Secrets are not observed (the operator may not list them), so one whose RayJob is gone would
    never be thought of again. A finished job's last one, good for nothing any more, stays with its RayJob.
    """
    ended = {r["number"] for r in (observed.job.get("status") or {}).get("attempts", []) if r.get("outcome")}
    for ray_job in observed.ray_jobs:
        number = _number(ray_job)
        if number not in ended or ray_job["metadata"].get("deletionTimestamp"):
            continue
        if number == plan.draft.last_number() and _keeps_last(ray_job, now, plan):
            continue
        child = ray_job["metadata"]["name"]
        plan.delete += [kuberay.token_secret(observed.job, child, number, token=""), ray_job]


def _keeps_last(ray_job: dict[str, Any], now: datetime, plan: Plan) -> bool:
    """A finished job keeps its last RayJob for whoever looks, if that has ended too: then its cluster is shut down.

    One that goes on (pods that cannot start, a driver that hangs after its last word) would hold its GPUs for ever.
    """
    if not plan.draft.finished() or plan.draft.stopped_by_us():
        return False
    status = ray_job.get("status") or {}
    if status.get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed"):
        return True
    due = parse_time(plan.draft.value("completionTime")) + timedelta(seconds=_ENDING_SECONDS)
    if now < due:
        plan.requeue((due - now).total_seconds())
    return now < due


def expire(spec: RunSpecification, now: datetime, plan: Plan) -> None:
    """Delete a job that has finished when its time has come."""
    completion = plan.draft.value("completionTime")
    if spec.ttl_seconds_after_finished is None or completion is None:
        return
    due = parse_time(completion) + timedelta(seconds=spec.ttl_seconds_after_finished)
    if now >= due:
        plan.delete_job = True
    else:
        plan.requeue((due - now).total_seconds())


def _follow(
    kind: RunKind[Any], observed: Observed, spec: RunSpecification, settings: Settings, now: datetime, plan: Plan
) -> None:
    """An attempt is alive: fold in what it says, and end it when it ended or must end."""
    draft = plan.draft
    number = draft.current_attempt()
    assert number is not None
    report = observed.report if observed.report_attempt == number else None
    ray_job = next((r for r in observed.ray_jobs if _number(r) == number), None)
    if report is not None:
        _fold(kind, report, draft)
    end = end_of_attempt(ray_job, report, kind.result_of)
    if end is None or end.outcome == "Infrastructure":  # pods know better why a run was cut short
        end = end_by_pods(observed.pods, now) or end
    if end is None and past_deadline(spec, draft, now, plan):
        end = End("DeadlineExceeded", c.DEADLINE_EXCEEDED, deadline_message(kind, spec))
    if end is None and spec.suspend:
        end = End("Suspended", c.SUSPENDED_BY_USER, kind.stopped)
    lost = None
    if end is None:
        assert ray_job is not None
        end = _quota_withdrawn(ray_job, draft)
        known = draft.reason(c.RUNNING) == c.HEAD_LOST
        lost = head_lost(ray_job, observed.pods, current=observed.pods_current or known)
    if end is None and lost is not None and _nobody_says_more(draft, now, plan):
        end = End("Infrastructure", c.HEAD_LOST, lost)
    if end is not None:
        if ray_job is None or ray_job["metadata"].get("deletionTimestamp"):  # nothing will lead to its Secret any more
            child = kind.child_name(observed.job["metadata"]["name"], number)
            plan.delete.append(kuberay.token_secret(observed.job, child, number, token=""))
        return _record_end(kind, draft, number, end, spec, settings, now, plan)
    assert ray_job is not None
    patience = seconds_of_patience(observed.pods, now)
    if patience is not None:
        plan.requeue(patience)
    if lost is not None:
        return _tell(c.HEAD_LOST, f"{lost}; waiting for the run's own last word", number, plan)
    missing = observed.ray_operator_missing
    return _tell(*describe(ray_job, report, observed.pods, ray_operator_missing=missing), number, plan)


def _fold(kind: RunKind[Any], report: Report, draft: StatusDraft) -> None:
    kind.fold(report, draft)
    if report.resumed_from_step is not None:
        draft.records()[-1]["resumedFromStep"] = report.resumed_from_step


def _tell(reason: str, message: str, number: int, plan: Plan) -> None:
    """Say in Running where the living attempt is, and as an Event that it has come to need somebody."""
    draft = plan.draft
    before = draft.reason(c.RUNNING)
    if before == c.WAITING_FOR_QUOTA and reason != before:
        draft.admit_attempt(number)
    if reason in _TOLD and reason != before:
        plan.note("Warning", reason, message)
    draft.set(c.RUNNING, "True" if reason in REALLY_RUNNING else "False", reason, message)


_TOLD = PROBLEMS | {c.HEAD_LOST}
# The caches of RayJobs and pods are two watches: an end that KubeRay wrote may arrive after the pods it took away.
_LAST_WORD_SECONDS = 15


def _nobody_says_more(draft: StatusDraft, now: datetime, plan: Plan) -> bool:
    since = draft.since(c.RUNNING, c.HEAD_LOST)
    waited = (now - since).total_seconds() if since is not None else 0.0
    if since is None or waited < _LAST_WORD_SECONDS:
        plan.requeue(_LAST_WORD_SECONDS - waited)
        return False
    return True


def _quota_withdrawn(ray_job: dict[str, Any], draft: StatusDraft) -> End | None:
    """Kueue suspends what it preempts. KubeRay would start the driver anew in the same RayJob; attempts are ours."""
    if is_suspended(ray_job) and draft.is_true(c.RUNNING):
        return End("Preempted", c.QUOTA_WITHDRAWN, "its RayJob was suspended: the queue took the quota back")
    return None


def _record_end(
    kind: RunKind[Any],
    draft: StatusDraft,
    number: int,
    end: End,
    spec: RunSpecification,
    settings: Settings,
    now: datetime,
    plan: Plan,
) -> None:
    rate = rate_of(spec.workers, draft.value("pool"), settings.config)
    draft.end_attempt(number, end.outcome, end.message, spec.workers, rate)
    if end.outcome == "Succeeded":
        assert end.result is not None
        kind.succeed(end.result, draft)
        draft.succeed(end.reason, end.message)
        plan.note("Normal", c.SUCCEEDED, f"attempt {number}: {end.message}")
        return None
    if end.outcome in ("UserError", "DeadlineExceeded"):
        return plan.fail(end.reason, end.message)
    warning = end.outcome not in ("Suspended", "Preempted")
    plan.note("Warning" if warning else "Normal", f"Attempt{end.outcome}", f"attempt {number}: {end.message}")
    failures = counted_failures(draft.records())
    if failures > spec.retry.limit:
        attempts = "attempt" if failures == 1 else "attempts"
        return plan.fail(
            c.RETRIES_EXHAUSTED,
            f"{failures} {attempts} failed, spec.retry.limit is {spec.retry.limit}; the last one: {end.message}",
        )
    # Preemption is not counted, yet pauses like a first failure: whoever preempts needs the room for a while.
    pause = timedelta(0) if end.outcome == "Suspended" else backoff(spec.retry, max(failures, 1))
    draft.put("nextAttemptTime", format_time(now + pause))
    draft.set(c.RUNNING, "False", c.BACKING_OFF, f"attempt {number} ended: {end.message}")
    plan.requeue(pause.total_seconds())


def _suspended(observed: Observed, draft: StatusDraft) -> None:
    if observed.ray_jobs:
        draft.set(c.SUSPENDED, "False", "Stopping", "waiting until the run has stopped and its resources are free")
    else:
        draft.set(c.SUSPENDED, "True", c.SUSPENDED_BY_USER, "spec.suspend is true; nothing is running")
    draft.set(c.RUNNING, "False", c.SUSPENDED_BY_USER, "spec.suspend is true")


def _may_start(kind: RunKind[Any], observed: Observed, spec: RunSpecification, now: datetime, plan: Plan) -> bool:
    draft = plan.draft
    if observed.ray_operator_missing:
        message = "the RayJob kind (ray.io/v1) is not served: install KubeRay; the job starts by itself then"
        return _wait_for(c.WAITING_FOR_RAY_OPERATOR, message, plan)
    if spec.queue and observed.kueue_missing:
        message = (
            f"spec.queue is {spec.queue}, but Kueue (kueue.x-k8s.io) is not served: install Kueue, and the job starts "
            "by itself; or suspend it, remove spec.queue and resume it"
        )
        return _wait_for(c.WAITING_FOR_KUEUE, message, plan)
    if observed.ray_jobs:
        last = draft.records()[-1] if draft.records() else None
        ended = f"attempt {last['number']} ended: {last.get('message', '')}" if last else "an earlier run was given up"
        draft.set(c.RUNNING, "False", c.BACKING_OFF, f"{ended}; waiting until it has stopped")
        return False
    next_time = draft.value("nextAttemptTime")
    if next_time and now < parse_time(next_time):
        plan.requeue((parse_time(next_time) - now).total_seconds())
        return False
    if observed.foreign_ray_job is not None:
        name = observed.foreign_ray_job["metadata"]["name"]
        if of_a_predecessor(observed.job, observed.foreign_ray_job):
            message = f"waiting until RayJob {name} of a deleted {kind.resource.kind} of the same name has stopped"
            draft.set(c.RUNNING, "False", c.WAITING_FOR_RESOURCES, message)
            return False
        plan.fail(c.NAME_TAKEN, f"a RayJob {name} that does not belong to this job exists: delete or rename one")
        return False
    return True


def _wait_for(reason: str, message: str, plan: Plan) -> Literal[False]:
    """The cluster lacks something: say so once, look again now and then."""
    if plan.draft.reason(c.RUNNING) != reason:
        plan.note("Warning", reason, message)
    plan.draft.set(c.RUNNING, "False", reason, message)
    plan.requeue(15)
    return False


def of_a_predecessor(job: dict[str, Any], child: dict[str, Any]) -> bool:
    """Whether it belongs to a job of our kind and name that is gone, and so goes as well once its finalizer is done."""
    owners = child["metadata"].get("ownerReferences", [])
    return any(o.get("kind") == job["kind"] and o.get("name") == job["metadata"]["name"] for o in owners)


def _start(kind: RunKind[Any], observed: Observed, spec: RunSpecification, settings: Settings, plan: Plan) -> None:
    job, draft = observed.job, plan.draft
    number = draft.last_number() + 1
    metadata = job["metadata"]
    reports = settings.config.reports
    place = RunPlace(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=number,
        storage=storage_prefix(kind, settings.config.storage.uri, metadata),
        shared=f"{settings.config.storage.uri.rstrip('/')}/{metadata['namespace']}",
        report=ReportTarget(
            url=reports.url,
            token_file=kuberay.TOKEN_FILE,
            ca_file=kuberay.CA_FILE if settings.report_ca else None,
            interval_seconds=reports.interval_seconds,
        ),
    )
    token = report_token(settings.report_key, metadata["uid"], number)
    name = kind.child_name(metadata["name"], number)
    run, ray = kind.run(spec, place), settings.config.ray
    pool = pool_named(draft.value("pool"), settings.config.pools)
    ray_job = kuberay.ray_job(
        job, name, kind.entrypoint, run, spec.workers, ray, pool.pods if pool else None, driver_alone=kind.driver_alone
    )
    ray_job["metadata"]["labels"] |= kind.labels(job)
    policy = settings.config.network_policy
    # The walls stand before anything runs between them.
    plan.apply += [network_policy(job, kind.child_name(metadata["name"], 0), policy)] if policy else []
    plan.apply += [kuberay.token_secret(job, name, number, token, settings.report_ca), ray_job]
    _begin(kind, job, number, draft.now, name, settings, draft)
    if number > 1:  # that a job was begun, its status says; an Event would be one write in six of a short job
        plan.note("Normal", "AttemptCreated", f"created RayJob {name}")


def storage_prefix(kind: RunKind[Any], root: str, metadata: dict[str, Any]) -> str:
    """Where a job keeps what it makes: the UID keeps a deleted and re-created job of the same name apart."""
    folder = kind.resource.kind.lower()
    return f"{root.rstrip('/')}/{metadata['namespace']}/{folder}/{metadata['name']}/{metadata['uid']}"


# --- shared -------------------------------------------------------------------------------------------------------


def past_deadline(spec: RunSpecification, draft: StatusDraft, now: datetime, plan: Plan) -> bool:
    """Whether the job has taken too long since its first start."""
    started = draft.value("startTime")
    if spec.active_deadline_seconds is None or started is None:
        return False
    due = parse_time(started) + timedelta(seconds=spec.active_deadline_seconds)
    if now < due:
        plan.requeue((due - now).total_seconds())
    return now >= due


def deadline_message(kind: RunKind[Any], spec: RunSpecification) -> str:
    """What is said of it."""
    return (
        f"not finished {spec.active_deadline_seconds} s after the first start (spec.activeDeadlineSeconds); {kind.kept}"
    )


def _number(child: dict[str, Any]) -> int:
    label = child["metadata"].get("labels", {}).get(kuberay.LABEL_ATTEMPT, "0")
    return int(label) if label.isdigit() else 0
