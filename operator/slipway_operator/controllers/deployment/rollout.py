"""The way of a candidate: from its first weight to promotion or back. Pure.

    none -> candidate, weight 0 -> ready -> step 0 ... step n-1 -> promoted
                 |                    |         |
                 +--------------------+---------+-> rolled back: failed, not ready, worse, aborted, gate lost

A version that leaves (the one before, or a candidate that was rolled back) first gets weight 0 and keeps its
application for a while, so that whatever it is answering ends well; only then is the application removed. Nothing new
begins before that, so there are never more than two versions with requests, nor more replicas than the cluster was made
for.
"""

from __future__ import annotations

from typing import Any

from slipway_api import conditions as c
from slipway_api.deployment import DeploymentSpec, ServedVersion
from slipway_operator.controllers.deployment.analysis import Tally, Worse, worse
from slipway_operator.controllers.deployment.observed import Observed, Plan
from slipway_operator.controllers.deployment.status import Draft

# Weights reach the routers within a second or two; an answer that takes longer than this is cut off at its end.
DRAIN_SECONDS = 30.0
PROMOTE, ABORT = "slipway.dev/promote", "slipway.dev/abort"
READY = "RUNNING"
CHANGING = "DEPLOYING"
BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
_LOOK_SECONDS = 5.0  # a report wakes the reconciler; this is for the clock's part of a step


def application_states(observed: Observed) -> dict[str, tuple[str, str]]:
    """Serve application -> (status, message), as the RayService says: of what is not ready yet as pending."""
    status = (observed.ray_service or {}).get("status") or {}
    found: dict[str, Any] = {}
    for key in ("pendingServiceStatus", "activeServiceStatus"):
        found |= (status.get(key) or {}).get("applicationStatuses") or {}
    return {name: (str(app.get("status") or ""), _why(app)) for name, app in found.items()}


def _why(application: dict[str, Any]) -> str:
    """The last line of what its deployments say: Serve puts the exception there, below its traceback.

    Of a long one only the end may have been kept, so its frames tell it as well as its first line.
    """
    deployments = application.get("serveDeploymentStatuses") or {}
    told = [str(one.get("message") or "").strip() for one in deployments.values()]
    lines = [text.splitlines()[-1] for text in told if "Traceback" in text or '\n  File "' in text]
    return (lines[0] if lines else str(application.get("message") or ""))[:1000]


def first_version(version: ServedVersion, draft: Draft) -> None:
    """There is nothing to compare with and nobody to harm: it takes all requests as soon as it can."""
    draft.stable = version.model_copy(update={"weight": 100, "since": draft.now})


def begin(version: ServedVersion, draft: Draft, plan: Plan) -> None:
    """A new version joins."""
    draft.candidate = version.model_copy(update={"weight": 0, "since": draft.now})
    assert draft.stable is not None
    plan.note("Normal", c.CANARY, f"version {version.version} ({version.source}) joins {draft.stable.version}")


def drain(draft: Draft, plan: Plan) -> None:
    """Forget the versions that have had time to end what they were answering."""
    left = []
    for version in draft.retiring:
        rest = DRAIN_SECONDS - draft.seconds_since(version.since)
        if rest > 0:
            left.append(version)
            plan.requeue(rest)
    draft.retiring = left


def withdraw(draft: Draft) -> None:
    """The candidate is no longer asked for. It did nothing wrong."""
    if draft.candidate is not None and draft.stable is not None:
        draft.retire(draft.candidate)
        draft.candidate = None
        draft.stable = draft.stable.model_copy(update={"weight": 100})


def roll_back(reason: str, message: str, draft: Draft, plan: Plan) -> None:
    """The stable version takes everything back; the candidate is not tried again."""
    assert draft.candidate is not None
    version = draft.candidate
    draft.reject(version, reason, message)
    withdraw(draft)
    tell_rejected(version, draft)
    plan.note("Warning", c.ROLLED_BACK, f"version {version.version} ({version.source}): {reason}: {message}")


def tell_rejected(version: ServedVersion, draft: Draft) -> None:
    """Progressing, of a version that was rolled back and is still what the spec asks for."""
    rejection = draft.rejection_of(version.version)
    assert rejection is not None
    message = (
        f"version {version.version} was rolled back at {rejection.time}: {rejection.reason}: {rejection.message} "
        "Change spec.model, spec.compression or spec.engine to try another"
    )
    draft.set(c.PROGRESSING, "False", c.ROLLED_BACK, message)


def advance(observed: Observed, spec: DeploymentSpec, draft: Draft, plan: Plan) -> None:
    """One look at the candidate: back, on, or stay."""
    candidate, stable = draft.candidate, draft.stable
    assert candidate is not None
    assert stable is not None
    annotations = observed.deployment["metadata"].get("annotations") or {}
    if annotations.get(ABORT) == candidate.version:
        return roll_back(c.ABORTED, f"annotation {ABORT} names it", draft, plan)
    state, message = application_states(observed).get(candidate.version, ("", ""))
    if state in BROKEN:
        return roll_back(c.CANDIDATE_FAILED, f"its application is {state}: {message}", draft, plan)
    if state != READY:
        return _wait_until_ready(state, message, spec, draft, plan)
    tally = observed.tallies.get(candidate.version, Tally())
    if application_states(observed).get(stable.version, ("", ""))[0] in BROKEN:
        return _promote(f"version {stable.version} does not answer", draft, plan)
    found = worse(tally, observed.tallies.get(stable.version, Tally()), spec.canary.analysis)
    if found is not None:
        return _roll_back_for(found, draft, plan)
    if annotations.get(PROMOTE) == candidate.version:
        return _promote(f"annotation {PROMOTE} names it", draft, plan)
    return _step(tally, spec, draft, plan)


def _roll_back_for(found: Worse, draft: Draft, plan: Plan) -> None:
    roll_back(found.reason, found.message, draft, plan)


def _wait_until_ready(state: str, message: str, spec: DeploymentSpec, draft: Draft, plan: Plan) -> None:
    candidate = draft.candidate
    assert candidate is not None
    waited = draft.seconds_since(candidate.since)
    deadline = spec.canary.progress_deadline_seconds
    word = state or "not there yet"
    if candidate.step is not None:
        # It was ready and is not any more. Requests go to the stable version meanwhile: the router sees to it.
        draft.set(c.PROGRESSING, "True", c.CANARY, f"version {candidate.version} is {word}: {message}")
        waited = draft.seconds_since(candidate.step_since)
    if waited >= deadline:
        return roll_back(
            c.CANDIDATE_NOT_READY,
            f"not ready after {deadline} s (spec.canary.progressDeadlineSeconds); its application is {word}"
            + (f": {message}" if message else ""),
            draft,
            plan,
        )
    plan.requeue(deadline - waited)
    if candidate.step is None:
        draft.set(c.PROGRESSING, "True", c.DEPLOYING, f"version {candidate.version} is starting ({word})")
    return None


def _step(tally: Tally, spec: DeploymentSpec, draft: Draft, plan: Plan) -> None:
    candidate = draft.candidate
    assert candidate is not None
    steps = spec.canary.steps
    if spec.canary.paused:
        weight = f"at {candidate.weight}%" if candidate.step is not None else "before its first step"
        message = f"version {candidate.version} stays {weight}: spec.canary.paused is true"
        return draft.set(c.PROGRESSING, "True", c.CANARY_PAUSED, message)
    if candidate.step is None:
        return _enter(0, tally, spec, draft, plan)
    if candidate.step >= len(steps):  # the steps were taken out of the spec
        return _promote("spec.canary.steps has no further step", draft, plan)
    step = steps[candidate.step]
    rest = step.pause_seconds - draft.seconds_since(candidate.step_since)
    missing = step.min_requests - (tally.requests - (candidate.step_requests or 0))
    if rest <= 0 and missing <= 0:
        return _enter(candidate.step + 1, tally, spec, draft, plan)
    if rest > 0:
        plan.requeue(min(rest, _LOOK_SECONDS) if missing > 0 else rest)
    _set_weight(step.weight, draft)  # the step's weight may have been changed
    wanted = [f"{rest:.0f} s"] if rest > 0 else []
    wanted += [f"{missing} requests"] if missing > 0 else []
    return draft.set(
        c.PROGRESSING,
        "True",
        c.CANARY,
        f"version {candidate.version} answers {step.weight}% of the requests, step {candidate.step + 1} of "
        f"{len(steps)}; the next one after {' and '.join(wanted)}",
    )


def _enter(index: int, tally: Tally, spec: DeploymentSpec, draft: Draft, plan: Plan) -> None:
    steps = spec.canary.steps
    assert draft.candidate is not None
    if index >= len(steps):
        how = "it is ready, and spec.canary has no steps" if not steps else f"it has passed all {len(steps)} steps"
        return _promote(how, draft, plan)
    draft.candidate = draft.candidate.model_copy(
        update={"step": index, "step_since": draft.now, "step_requests": tally.requests}
    )
    _set_weight(steps[index].weight, draft)
    version, weight = draft.candidate.version, steps[index].weight
    message = f"version {version} answers {weight}% of the requests, step {index + 1} of {len(steps)}"
    plan.note("Normal", c.CANARY, message)
    plan.requeue(max(steps[index].pause_seconds, 1))
    return draft.set(c.PROGRESSING, "True", c.CANARY, message)


def _set_weight(weight: int, draft: Draft) -> None:
    assert draft.candidate is not None
    assert draft.stable is not None
    draft.candidate = draft.candidate.model_copy(update={"weight": weight})
    draft.stable = draft.stable.model_copy(update={"weight": 100 - weight})


def _promote(how: str, draft: Draft, plan: Plan) -> None:
    before, after = draft.stable, draft.candidate
    assert before is not None
    assert after is not None
    draft.retire(before)
    draft.stable = after.model_copy(
        update={"weight": 100, "since": draft.now, "step": None, "step_since": None, "step_requests": None}
    )
    draft.candidate = None
    message = f"version {after.version} ({after.source}) took over from {before.version}: {how}"
    plan.note("Normal", c.PROMOTED, message)
    plan.requeue(DRAIN_SECONDS)
    draft.set(c.PROGRESSING, "False", c.PROMOTED, message)
