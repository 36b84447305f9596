"""Decides what a Deployment needs next: (object, RayService, what it refers to, reports, now) -> what to do. Pure.

The order is the priority: what answers goes on answering, whatever else is wrong.

    resolve the model -> may it serve? -> which version is that? -> compress it -> move the rollout -> render it all

Everything that is remembered stands in status (stable, candidate, retiring, rejected); the RayService is rendered from
it each time and applied when its digest differs. A crash between the two writes repeats the same apply.
"""

from __future__ import annotations

from datetime import datetime

from slipway_api import conditions as c
from slipway_api.deployment import DeploymentSpec, ServedVersion
from slipway_api.run import report_token
from slipway_operator import rayservice
from slipway_operator.controllers.deployment import drift, rollout
from slipway_operator.controllers.deployment.compressing import FAILURES as COMPRESSION_FAILURES
from slipway_operator.controllers.deployment.compressing import Compressor, lost_too_much
from slipway_operator.controllers.deployment.gate import Verdict
from slipway_operator.controllers.deployment.observed import Decision, Observed, Plan
from slipway_operator.controllers.deployment.retrain import decide as retrain
from slipway_operator.controllers.deployment.retrain.desired import desired_model, judge_desired
from slipway_operator.controllers.deployment.status import Draft
from slipway_operator.controllers.deployment.trouble import Told, has_endpoints, refused, told_by, waiting_for
from slipway_operator.controllers.deployment.versions import Unresolved, version_of
from slipway_operator.controllers.runs.observed import Settings
from slipway_operator.kuberay import CA_FILE
from slipway_operator.network_policy import network_policy

_LOOK_AGAIN_SECONDS = 15.0


def decide(observed: Observed, settings: Settings, now: datetime) -> Decision:
    """What this Deployment needs now."""
    draft, plan = Draft(observed.deployment, now), Plan()
    if not observed.deployment["metadata"].get("deletionTimestamp"):  # else its children are collected by ownership
        _ladder(observed, DeploymentSpec.model_validate(observed.deployment["spec"]), settings, draft, plan)
    return Decision(
        status=draft.finish(),
        apply=[*plan.apply, *plan.apply_last],
        create=plan.create,
        patch=plan.patch,
        delete=plan.delete,
        events=plan.events,
        requeue_after=plan.requeue_after,
        ended_attempt=plan.ended_attempt,
    )


def _ladder(observed: Observed, spec: DeploymentSpec, settings: Settings, draft: Draft, plan: Plan) -> None:
    compressor = Compressor(observed, settings, draft, plan)
    if spec.suspend:
        retrain.suspend(observed, draft, plan)
        _suspend(observed, draft, plan)
        drift.suspend(spec, draft)
        return compressor.finish(compressed=spec.compression is not None)
    _fold_reports(observed, draft)
    _fold_states(observed, draft)
    rollout.drain(draft, plan)
    retrain.advance(observed, spec, draft, plan)
    _move(observed, spec, compressor, draft, plan)
    drift.tell(observed, spec, draft, plan)  # of the version that is stable now; a retrain follows at the next look
    compressor.finish(compressed=spec.compression is not None)
    if draft.stable is None:
        return _nothing_served(draft)
    if observed.ray_operator_missing:
        message = "the RayService kind (ray.io/v1) is not served: install KubeRay; serving starts by itself then"
        return _wait(c.WAITING_FOR_RAY_OPERATOR, message, draft, plan)
    if observed.foreign_ray_service:
        name = observed.deployment["metadata"]["name"]
        message = f"a RayService {name} that does not belong to this Deployment exists: delete or rename one"
        return _wait(c.NAME_TAKEN, message, draft, plan)
    _render(observed, spec, settings, draft, plan)
    return _tell(observed, draft, plan)


def _wait(reason: str, message: str, draft: Draft, plan: Plan) -> None:
    draft.set(c.AVAILABLE, "False", reason, message)
    plan.requeue(_LOOK_AGAIN_SECONDS)


def _suspend(observed: Observed, draft: Draft, plan: Plan) -> None:
    """Nothing runs. What was stable is served again afterwards; a rollout begins anew."""
    if observed.ray_service is not None and not observed.ray_service["metadata"].get("deletionTimestamp"):
        plan.delete.append(observed.ray_service)
    draft.candidate, draft.retiring = None, []
    if draft.stable is not None:
        draft.stable = draft.stable.model_copy(update={"weight": 100, "ready_since": None})
    draft.put("url", "")
    draft.set(c.AVAILABLE, "False", c.SUSPENDED_BY_USER, "spec.suspend is true; nothing is running")
    draft.set(c.PROGRESSING, "False", c.SUSPENDED_BY_USER, "spec.suspend is true")
    draft.set(c.DEGRADED, "False", c.SUSPENDED_BY_USER, "spec.suspend is true")


def _fold_reports(observed: Observed, draft: Draft) -> None:
    """Take over what the routers say of each version."""

    def told(version: ServedVersion | None) -> ServedVersion | None:
        tally = observed.tallies.get(version.version) if version else None
        if version is None or tally is None:
            return version
        latency = f"{tally.latency_p99_ms:.0f}" if tally.latency_p99_ms is not None else None
        told = {"requests": tally.requests, "errors": tally.errors, "latency_p99_ms": latency}
        if tally.cold_start_seconds is not None:  # else what was told before goes on standing there
            told["cold_start_seconds"] = f"{tally.cold_start_seconds:.1f}"
        return version.model_copy(update=told)

    draft.stable, draft.candidate = told(draft.stable), told(draft.candidate)


def _fold_states(observed: Observed, draft: Draft) -> None:
    """Take over what Ray Serve says of each version's application."""
    states = rollout.application_states(observed)

    def told(version: ServedVersion | None) -> ServedVersion | None:
        if version is None:
            return None
        state = states.get(version.version, ("", ""))[0]
        since = version.ready_since or (draft.now if state == rollout.READY else None)
        return version.model_copy(update={"state": state, "ready_since": since})

    draft.stable, draft.candidate = told(draft.stable), told(draft.candidate)


# --- which versions -----------------------------------------------------------------------------------------------


def _move(observed: Observed, spec: DeploymentSpec, compressor: Compressor, draft: Draft, plan: Plan) -> None:
    """Bring stable and candidate one step closer to what the spec asks for."""
    model = desired_model(spec, draft, observed.train_job)
    if isinstance(model, Unresolved):
        draft.set(c.GATE_PASSED, "Unknown", c.MODEL_NOT_READY, model.message)
        draft.set(c.PROGRESSING, "False", c.MODEL_NOT_READY, model.message)
        return rollout.withdraw(draft)
    verdict = judge_desired(spec, model, observed.eval_jobs, draft)
    _tell_gate(verdict, draft, plan)
    target = version_of(model, spec)
    if draft.stable is not None and draft.stable.version == target.version:
        rollout.withdraw(draft)
        lost = lost_too_much(draft.stable, spec.compression)
        if lost is not None:
            return draft.set(c.PROGRESSING, "False", c.QUALITY_LOSS_TOO_HIGH, lost)
        return draft.set(c.PROGRESSING, "False", c.STABLE, f"version {target.version} is what the spec asks for")
    if draft.candidate is not None and draft.candidate.version != target.version:
        rollout.withdraw(draft)
    if verdict.passed is not True:
        return _held(verdict, draft, plan)
    if draft.candidate is None:
        if draft.stable is not None and _was_rejected(target, draft):
            return None
        if spec.compression is not None:
            compressed = compressor.compress(target, spec, spec.compression)
            if compressed is None:
                return None
            target = compressed
    if draft.stable is None:
        rollout.first_version(target, draft)
        draft.set(c.PROGRESSING, "True", c.DEPLOYING, f"version {target.version} ({target.source}) is starting")
        return plan.note("Normal", c.DEPLOYING, f"version {target.version} ({target.source})")
    if draft.candidate is None:
        if _waits_for_those_that_leave(target, draft):
            return None
        rollout.begin(target, draft, plan)
    return rollout.advance(observed, spec, draft, plan)


def _held(verdict: Verdict, draft: Draft, plan: Plan) -> None:
    """The model may not serve. One that is being rolled out goes back when it is said to be bad."""
    if draft.candidate is not None and verdict.passed is False:
        rollout.roll_back(c.GATE_NOT_PASSED, verdict.message, draft, plan)
    elif draft.candidate is not None:
        rollout.withdraw(draft)
    draft.set(c.PROGRESSING, "False", c.GATE_NOT_PASSED, verdict.message)


def _was_rejected(target: ServedVersion, draft: Draft) -> bool:
    rejection = draft.rejection_of(target.version)
    if rejection is None or rejection.reason in COMPRESSION_FAILURES:  # of those, the compressor knows
        return False
    rollout.tell_rejected(target, draft)
    return True


def _waits_for_those_that_leave(target: ServedVersion, draft: Draft) -> bool:
    if not draft.retiring:
        return False
    names = ", ".join(v.version for v in draft.retiring)  # drain() has asked to come back
    draft.set(c.PROGRESSING, "True", c.DEPLOYING, f"version {target.version} follows when {names} has ended")
    return True


def _tell_gate(verdict: Verdict, draft: Draft, plan: Plan) -> None:
    status: c.Status = "Unknown" if verdict.passed is None else "True" if verdict.passed else "False"
    before = draft.condition(c.GATE_PASSED)
    if verdict.passed is False and (before is None or before["reason"] != verdict.reason):
        plan.note("Warning", verdict.reason, verdict.message)
    draft.set(c.GATE_PASSED, status, verdict.reason, verdict.message)


# --- what that means ----------------------------------------------------------------------------------------------


def _nothing_served(draft: Draft) -> None:
    gate, progressing = draft.condition(c.GATE_PASSED), draft.condition(c.PROGRESSING)
    assert gate is not None
    assert progressing is not None
    compressing = progressing["reason"] in {c.COMPRESSING, *COMPRESSION_FAILURES}
    why = progressing["message"] if compressing else gate["message"]
    draft.set(c.AVAILABLE, "False", c.NOTHING_SERVED, f"no version has been served yet: {why}")
    if progressing["reason"] in COMPRESSION_FAILURES:
        return draft.set(c.DEGRADED, "True", progressing["reason"], progressing["message"])
    return draft.set(c.DEGRADED, "False", c.NOTHING_SERVED, "no version has been served yet")


def _render(observed: Observed, spec: DeploymentSpec, settings: Settings, draft: Draft, plan: Plan) -> None:
    deployment, reports = observed.deployment, settings.config.reports
    metadata = deployment["metadata"]
    target = rayservice.report_target(
        reports.url, CA_FILE if settings.report_ca else None, max(5, reports.interval_seconds)
    )
    storage = f"{settings.config.storage.uri.rstrip('/')}/{metadata['namespace']}/deployment/{metadata['name']}"
    policy = settings.config.network_policy
    policies = [network_policy(deployment, f"{metadata['name']}-serve", policy, serves=True)] if policy else []
    wanted = rayservice.ray_service(
        deployment,
        spec,
        draft.versions(),
        target,
        settings.config.ray,
        feedback=f"{storage}/{metadata['uid']}/feedback",
        beside=policies,
        drift=f"{storage}/{metadata['uid']}/drift",
    )
    draft.put("rayServiceName", wanted["metadata"]["name"])
    found = ((observed.ray_service or {}).get("metadata", {}).get("annotations") or {}).get(rayservice.CONFIG_HASH)
    if found == wanted["metadata"]["annotations"][rayservice.CONFIG_HASH]:
        return
    if observed.ray_service is None:
        token = report_token(settings.report_key, metadata["uid"], 0)
        plan.apply.append(rayservice.token_secret(deployment, token, settings.report_ca))
    plan.apply += [*policies, wanted]  # closed before anything runs


def _tell(observed: Observed, draft: Draft, plan: Plan) -> None:
    """Available and Degraded, from what Ray Serve says of the router and the stable version."""
    assert draft.stable is not None
    metadata = observed.deployment["metadata"]
    states = rollout.application_states(observed)
    annotations = ((observed.ray_service or {}).get("metadata") or {}).get("annotations") or {}
    default = f"http://{metadata['name']}-serve-svc.{metadata['namespace']}.svc:8000"
    parts = {"the router": states.get("router", ("", "")), "the model": states.get(draft.stable.version, ("", ""))}
    up = {rollout.READY, rollout.CHANGING} if _goes_on(observed, draft) else {rollout.READY}
    bad = [
        f"{name} is {state or 'starting'}: {why}".rstrip(": ")
        for name, (state, why) in parts.items()
        if state not in up
    ]
    trouble = refused(observed.ray_service) or told_by(observed.pods, observed.remembered_pods, answers=not bad)
    broken = any(state in rollout.BROKEN for state, _ in parts.values())
    if not bad:
        draft.put("url", annotations.get(rayservice.URL, default))
        draft.set(c.AVAILABLE, "True", c.SERVING, f"version {draft.stable.version} answers at {draft.value('url')}")
    elif trouble is not None and (trouble.problem or not broken):
        draft.set(c.AVAILABLE, "False", trouble.reason, f"{trouble.message} ({'; '.join(bad)})")
    elif broken:
        draft.set(c.AVAILABLE, "False", c.UNHEALTHY, "; ".join(bad))
    else:
        waits = "" if states else waiting_for(observed.ray_service)
        draft.set(c.AVAILABLE, "False", c.DEPLOYING, "; ".join(bad) + (f": {waits}" if waits else ""))
    if bad and not broken and draft.candidate is None:
        draft.set(c.PROGRESSING, "True", c.DEPLOYING, f"version {draft.stable.version} is starting")
    _tell_degraded(trouble if trouble is not None and trouble.problem else None, bad, draft, plan)


def _goes_on(observed: Observed, draft: Draft) -> bool:
    """Whether an application that Serve calls DEPLOYING is only being changed, and answers meanwhile.

    New weights or replica numbers are changed in place. So is nothing that begins: then the RayService has no endpoint.
    """
    available = draft.condition(c.AVAILABLE)
    return available is not None and available["status"] == "True" and has_endpoints(observed.ray_service)


def _tell_degraded(trouble: Told | None, bad: list[str], draft: Draft, plan: Plan) -> None:
    assert draft.stable is not None
    gate, progressing = draft.condition(c.GATE_PASSED), draft.condition(c.PROGRESSING)
    available = draft.condition(c.AVAILABLE)
    assert gate is not None
    assert available is not None
    if trouble is not None:
        before = draft.condition(c.DEGRADED)
        if before is None or before["reason"] != trouble.reason:
            plan.note("Warning", trouble.reason, trouble.message)
        draft.set(c.DEGRADED, "True", trouble.reason, trouble.message)
    elif available["reason"] == c.UNHEALTHY:
        draft.set(c.DEGRADED, "True", c.UNHEALTHY, "; ".join(bad))
    elif progressing is not None and progressing["reason"] == c.ROLLED_BACK:
        draft.set(c.DEGRADED, "True", c.ROLLED_BACK, progressing["message"])
    elif progressing is not None and progressing["reason"] in COMPRESSION_FAILURES:
        message = f"version {draft.stable.version} goes on answering, but: {progressing['message']}"
        draft.set(c.DEGRADED, "True", progressing["reason"], message)
    elif gate["status"] == "False":
        message = f"version {draft.stable.version} goes on answering, but: {gate['message']}"
        draft.set(c.DEGRADED, "True", c.GATE_NOT_PASSED, message)
    else:
        draft.set(c.DEGRADED, "False", c.AS_ASKED, "what is served is what is asked for, or on its way to it")
