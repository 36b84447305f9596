"""Tells what the drift watcher said: status.drift, the condition Drifted, an Event for each new alarm. Pure.

Status remembers the alarms, so an alarm that is told again, by a watcher or to an operator that was restarted, is no
news: its id follows from what it is about.
"""

from __future__ import annotations

from slipway_api import conditions as c
from slipway_api.deployment import DeploymentSpec
from slipway_api.drift import DriftAlarm, DriftStatus
from slipway_api.serving import WATCHER_APPLICATION
from slipway_operator.controllers.deployment import rollout
from slipway_operator.controllers.deployment.observed import Observed, Plan
from slipway_operator.controllers.deployment.status import Draft

_MOST_ALARMS = 20


def tell(observed: Observed, spec: DeploymentSpec, draft: Draft, plan: Plan) -> None:
    """Fold the watcher's newest report into status."""
    if spec.drift is None:
        draft.put("drift", None)
        return draft.drop(c.DRIFTED)
    stored = draft.value("drift")
    known = DriftStatus.model_validate(stored) if stored else DriftStatus()
    heard = observed.drift
    if heard is not None and (draft.stable is None or heard.version == draft.stable.version):
        before = {alarm.id for alarm in known.alarms}
        new = [alarm for alarm in heard.alarms if alarm.id not in before]
        for alarm in reversed(new):
            plan.note("Warning", c.DRIFT_FOUND, _words(alarm))
        kept = {alarm.id: alarm for alarm in (*heard.alarms, *known.alarms)}
        newest = sorted(kept.values(), key=lambda alarm: alarm.end, reverse=True)[:_MOST_ALARMS]
        known = heard.model_copy(update={"alarms": newest, "snapshot": heard.snapshot or known.snapshot})
        draft.put("drift", known.to_wire())
    _tell_condition(observed, spec, known, draft)


def suspend(spec: DeploymentSpec, draft: Draft) -> None:
    """Nobody watches. What was found before stays in status.drift."""
    if spec.drift is None:
        draft.put("drift", None)
        return draft.drop(c.DRIFTED)
    return draft.set(c.DRIFTED, "Unknown", c.SUSPENDED_BY_USER, "spec.suspend is true; nothing is watched")


def _tell_condition(observed: Observed, spec: DeploymentSpec, known: DriftStatus, draft: Draft) -> None:
    assert spec.drift is not None
    state, why = rollout.application_states(observed).get(WATCHER_APPLICATION, ("", ""))
    size = spec.drift.window_requests
    if draft.stable is None:
        return draft.set(c.DRIFTED, "Unknown", c.NOTHING_SERVED, "no version is served, so there is no traffic")
    if known.version != draft.stable.version:
        message = f"the watcher of version {draft.stable.version} is {state or 'starting'}: {why}".rstrip(": ")
        return draft.set(c.DRIFTED, "Unknown", c.WATCHER_STARTING, message)
    if known.problem:
        return draft.set(c.DRIFTED, "Unknown", c.NOT_WATCHED, known.problem)
    if known.active:
        return draft.set(c.DRIFTED, "True", c.DRIFT_FOUND, _found(known))
    if known.windows == 0:
        message = f"{known.requests} requests captured; {size} make the first window that can be judged"
        return draft.set(c.DRIFTED, "Unknown", c.TOO_FEW_REQUESTS, message)
    return draft.set(c.DRIFTED, "False", c.NO_DRIFT, f"no signal is drifted after {known.windows} windows of {size}")


def _found(known: DriftStatus) -> str:
    """The newest alarm of the signals that are drifted now, and the others by name."""
    active = {signal.partition(":")[0] for signal in known.active}
    alarm = next((alarm for alarm in known.alarms if alarm.signal in active), None)
    names = ", ".join(known.active)
    return f"{_words(alarm)}; drifted now: {names}" if alarm is not None else f"drifted now: {names}"


def _words(alarm: DriftAlarm) -> str:
    p_value = f", p {alarm.p_value}" if alarm.p_value is not None else ""
    return (
        f"{alarm.signal} ({alarm.kind} drift): {alarm.test} {alarm.statistic}{p_value}, effect {alarm.effect} above "
        f"{alarm.threshold}, in window {alarm.window} ({alarm.start} to {alarm.end})"
    )
