"""What `slipway describe` says of a Deployment: versions, the rollout, what was taken back, drift. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from slipway_cli import jobs
from slipway_cli.durations import ago
from slipway_cli.sections import Pairs, conditions, count, flat, pairs, section
from slipway_cli.tables import cell_text, render

Json = dict[str, Any]

_MOST = 5  # rejections, alarms and retrains that are shown; status has more


def sections(obj: Json, now: datetime) -> list[str]:
    """Its sections, in the order that people ask."""
    spec, status = obj.get("spec") or {}, jobs.status_of(obj)
    return [
        pairs([("State", jobs.stage(obj)), ("URL", status.get("url")), ("RayService", status.get("rayServiceName"))]),
        section("Spec", pairs(_spec(spec), indent=2)),
        section("Conditions", conditions(jobs.conditions_of(obj), now)),
        section("Versions", _versions(status, now)),
        section("Stable version", pairs(_stable(status.get("stable") or {}), indent=2)),
        section("Rollout", pairs(_rollout(spec, status.get("candidate") or {}, now), indent=2)),
        section("Taken back", _rejected(status, now)),
        section("Compression", _compression(status)),
        section("Drift", pairs(_drift(status.get("drift") or {}, now), indent=2)),
        section("Retraining", pairs(_retrain(status.get("retrain") or {}), indent=2)),
    ]


def _spec(spec: Json) -> Pairs:
    yield "Requires", ", ".join(f"ej/{one['evalJob'].get('name')}" for one in spec.get("requires") or []) or None
    engine = spec.get("engine") or {}
    name = next(iter(engine), None)
    yield "Engine", f"{name} ({flat(engine[name])})" if name else None
    replicas = spec.get("replicas") or {}
    resources = ", ".join(f"{key} {value}" for key, value in (replicas.get("resources") or {}).items() if value)
    if replicas:
        yield "Replicas", f"{replicas.get('min')} to {replicas.get('max')} x ({resources})"
    if replicas.get("min") == 0:
        yield "Idle", f"the last replica goes after {replicas.get('idleSeconds')} s without a request"
    keys = (spec.get("auth") or {}).get("apiKeys") or {}
    yield "API keys", f"Secret {keys.get('name')}, key {keys.get('key')}" if keys else "none asked for"
    yield "Suspended", "yes, by spec.suspend" if spec.get("suspend") else None


def _served(status: Json) -> Iterator[tuple[str, Json]]:
    for role in ("stable", "candidate"):
        if status.get(role):
            yield role, status[role]
    for version in status.get("retiring") or []:
        yield "retiring", version


def _versions(status: Json, now: datetime) -> str:
    rows = []
    for role, version in _served(status):
        latency = version.get("latencyP99Ms")
        rows.append(
            [
                f"  {version.get('version')}",
                role,
                f"{version.get('weight')}%",
                str(version.get("state") or ""),
                ago(version["since"], now) if version.get("since") else "",
                count(version.get("requests", 0)),
                count(version.get("errors", 0)),
                f"{latency} ms" if latency else "",
                cell_text(version.get("source") or ""),
            ]
        )
    headers = ["  VERSION", "ROLE", "WEIGHT", "SERVE SAYS", "SINCE", "REQUESTS", "ERRORS", "P99", "MODEL"]
    return render(headers, rows) + "\n" if rows else ""


def _stable(version: Json) -> Pairs:
    reference = version.get("reference") or {}
    hub = reference.get("hub") or {}
    yield "Model", reference.get("uri") or (f"hub {hub.get('repo')}@{hub.get('revision')}" if hub else None)
    yield "Digest", version.get("digest")
    cold = version.get("coldStartSeconds")
    yield "Cold start", f"{cold} s, when a request last came while no replica ran" if cold else None


def _rollout(spec: Json, candidate: Json, now: datetime) -> Pairs:
    if not candidate:
        return
    canary = spec.get("canary") or {}
    steps, step = canary.get("steps") or [], candidate.get("step")
    if step is None:
        yield "Step", f"before the first of {len(steps)}"
    else:
        since = f", since {ago(candidate['stepSince'], now)}" if candidate.get("stepSince") else ""
        yield "Step", f"{step + 1} of {len(steps)}{since}"
        asked = candidate.get("requests", 0) - (candidate.get("stepRequests") or 0)
        at = steps[step] if step < len(steps) else {}
        needed = f" of {at['minRequests']}" if at.get("minRequests") else ""
        yield "Requests", f"{asked}{needed} in this step"
    yield "Paused", "yes, by spec.canary.paused" if canary.get("paused") else None


def _rejected(status: Json, now: datetime) -> str:
    rows = [
        [
            f"  {one.get('version')}",
            ago(one["time"], now) if one.get("time") else "",
            str(one.get("reason")),
            cell_text(one.get("message") or ""),
        ]
        for one in (status.get("rejected") or [])[:_MOST]
    ]
    return render(["  VERSION", "AGO", "REASON", "MESSAGE"], rows) + "\n" if rows else ""


def _compression(status: Json) -> str:
    rows = []
    for role, version in _served(status):
        found = version.get("compression") or {}
        if not found:
            continue
        loss, faster = found.get("qualityLoss"), found.get("speedUp")
        rows.append(
            [
                f"  {version.get('version')}",
                role,
                str(found.get("scheme")),
                f"{loss}" if loss is not None else "",
                f"{faster}x" if faster is not None else "",
                cell_text(found.get("execution") or ""),
            ]
        )
    headers = ["  VERSION", "ROLE", "SCHEME", "PERPLEXITY RISE", "TOKENS/S", "EXECUTION"]
    return render(headers, rows) + "\n" if rows else ""


def _drift(drift: Json, now: datetime) -> Pairs:
    if not drift:
        return
    yield "Problem", drift.get("problem")
    yield "Watched", f"{count(drift.get('requests', 0))} requests in {count(drift.get('windows', 0))} windows"
    yield "Not captured", count(drift["dropped"]) if drift.get("dropped") else None
    yield "Drifted now", ", ".join(drift.get("active") or []) or "nothing"
    for alarm in (drift.get("alarms") or [])[:_MOST]:
        when = f"{ago(alarm['end'], now)} ago" if alarm.get("end") else ""
        yield (
            "Alarm",
            f"{alarm.get('kind')}/{alarm.get('signal')}: {alarm.get('test')} {alarm.get('statistic')}, effect "
            f"{alarm.get('effect')} over {alarm.get('threshold')}, {when}",
        )
    yield "Report", drift.get("report")


def _retrain(retrain: Json) -> Pairs:
    yield "Serves", retrain.get("model")
    runs = [*([retrain["current"]] if retrain.get("current") else []), *(retrain.get("history") or [])]
    for run in runs[:_MOST]:
        why = f": {run['message']}" if run.get("message") else ""
        yield "Run", f"tj/{run.get('id')}, for {run.get('signal') or run.get('cause')}: {run.get('stage')}{why}"
    refused = retrain.get("refusedMessage") or ""
    yield "Not started", f"{retrain['refused']}: {refused}" if retrain.get("refused") else None
    yield "Next", retrain.get("nextSchedule")
