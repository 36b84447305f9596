"""What a RayService's status says in each situation, in KubeRay's words (1.6.2). Pure: old status in, new status out.

A cluster that is being made is the pending one there, and becomes the active one when all its applications run; here
the shared Ray takes both roles under one name of the RayService's own. Afterwards it stays active, whatever happens.

Where KubeRay's conditions have fixed messages, these say what is waited for, since there are no pods to look at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slipway_local.ray_runner.resources import Resources, total
from slipway_local.ray_runner.status import Status, timestamp

READY = "Ready"
UPGRADE = "UpgradeInProgress"
INITIALIZING = "Initializing"
VALIDATION_FAILED = "ValidationFailed"
ZERO_ENDPOINTS = "ZeroServeEndpoints"
NON_ZERO_ENDPOINTS = "NonZeroServeEndpoints"
NO_PENDING = "NoPendingCluster"

RUNNING = "RUNNING"
NOT_STARTED = "NOT_STARTED"
_LONGEST_MESSAGE = 2000
# A new Serve controller finds the replicas of its predecessor RECOVERING, and they answer all the while.
_ALIVE = frozenset({RUNNING, "RECOVERING", "UPDATING", "PENDING_MIGRATION"})


@dataclass(frozen=True, slots=True)
class Observed:
    """What Serve says about one RayService, under its own names."""

    applications: Mapping[str, Mapping[str, Any]]
    """applicationStatuses, as KubeRay writes them."""
    settled: bool
    """Every application runs."""
    answering: bool
    """Something behind the proxy answers."""
    used: Resources
    """What its replicas may take at most."""
    replicas: Mapping[str, int]
    """Process id of each replica that runs, by replica id."""


def observe(
    given: Sequence[Mapping[str, Any]], details: Mapping[str, Any], prefix: str, routes: Collection[str] | None
) -> Observed:
    """Reads ServeInstanceDetails for the applications that were given to Serve, whose names begin with the prefix.

    `routes` are those that the HTTP proxy knows the way to, None while it does not answer: Serve says that an
    application runs a moment before its proxy hears of it.
    """
    found: Mapping[str, Any] = details.get("applications") or {}
    applications: dict[str, dict[str, Any]] = {}
    replicas: dict[str, int] = {}
    used: list[Resources] = []
    answering = []
    for application in given:
        name = str(application["name"]).removeprefix(prefix)
        detail: Mapping[str, Any] = found.get(application["name"]) or {}
        applications[name] = _application(detail)
        alive = {
            str(replica["replica_id"]): int(replica.get("pid") or 0)
            for deployment in (detail.get("deployments") or {}).values()
            for replica in deployment.get("replicas") or ()
            if replica.get("state") in _ALIVE
        }
        replicas.update(alive)
        used += [_used(deployment) for deployment in (detail.get("deployments") or {}).values()]
        if application["route_prefix"] is not None:
            # One that is scaled to zero answers as well: the request waits for a replica.
            answering.append(
                (detail.get("status") == RUNNING or bool(alive)) and application["route_prefix"] in (routes or ())
            )
    settled = all(status["status"] == RUNNING for status in applications.values())
    answers = routes is not None and (any(answering) if answering else settled)
    return Observed(applications, settled, answers, total(used), replicas)


def initializing(status: Status, message: str, generation: int, now: datetime) -> Status:
    """Not running yet: it waits for something."""
    conditions = _set(status, generation, now, READY, "False", INITIALIZING, message)
    conditions = _set({"conditions": conditions}, generation, now, UPGRADE, "False", INITIALIZING, message)
    return _made(status, generation, conditions=conditions)


def invalid(status: Status, message: str, generation: int, now: datetime) -> Status:
    """It can never run as it is. What ran before its spec was changed still runs."""
    return _made(
        status, generation, conditions=_set(status, generation, now, READY, "False", VALIDATION_FAILED, message)
    )


def lost(status: Status, applications: Sequence[str], message: str, generation: int, now: datetime) -> Status:
    """It ran, and the Ray that it ran on is gone; another is being started."""
    stopped = {name: {"status": NOT_STARTED, "message": message} for name in applications}
    active = {**(status.get("activeServiceStatus") or {}), "applicationStatuses": stopped}
    conditions = _set(status, generation, now, READY, "False", ZERO_ENDPOINTS, message)
    return _without_endpoints(_made(status, generation, conditions=conditions, activeServiceStatus=active))


def observed(
    status: Status, seen: Observed, *, cluster: str, up: bool, waits: str, generation: int, now: datetime
) -> Status:
    """It has been given to Serve. `up` says whether all of it has run on this Ray, `waits` what a change waits for."""
    side = {"rayClusterName": cluster, "applicationStatuses": dict(seen.applications)}
    was_active = bool((status.get("activeServiceStatus") or {}).get("rayClusterName"))
    if not up and not was_active:
        text = "; ".join(_problems(seen)) or "the applications are being deployed"
        return {**initializing(status, text, generation, now), "pendingServiceStatus": side}
    answers = up and seen.answering
    ready = (
        ("True", NON_ZERO_ENDPOINTS, "Number of serve endpoints is greater than 0")
        if answers
        else ("False", ZERO_ENDPOINTS, "; ".join(_problems(seen)) or "the HTTP proxy does not know the way to it yet")
    )
    conditions = _set(status, generation, now, READY, *ready)
    message = waits or "Active Ray cluster exists and no pending Ray cluster"
    conditions = _set({"conditions": conditions}, generation, now, UPGRADE, "False", NO_PENDING, message)
    kept = {name: value for name, value in status.items() if name != "pendingServiceStatus"}
    made = _made(kept, generation, conditions=conditions, activeServiceStatus=side)
    return {**made, "numServeEndpoints": 1, "serviceStatus": "Running"} if answers else _without_endpoints(made)


def is_active(status: Status) -> bool:
    """Whether it has ever been up."""
    return bool((status.get("activeServiceStatus") or {}).get("rayClusterName"))


def is_valid(status: Status) -> bool:
    """Whether Ready does not say that the spec is wrong."""
    return all(c["reason"] != VALIDATION_FAILED for c in status.get("conditions") or () if c["type"] == READY)


def stamped(old: Status, new: Status, now: datetime) -> Status:
    """With lastUpdateTime, which moves only when something else does."""
    before = {name: value for name, value in old.items() if name != "lastUpdateTime"}
    after = {name: value for name, value in new.items() if name != "lastUpdateTime"}
    return old if before == after else {**after, "lastUpdateTime": timestamp(now)}


# -- pieces --------------------------------------------------------------------------------------------------------


def _application(detail: Mapping[str, Any]) -> dict[str, Any]:
    deployments = {
        str(name): _plain(deployment) for name, deployment in sorted((detail.get("deployments") or {}).items())
    }
    status = _plain(detail) if detail else {"status": NOT_STARTED}
    return {**status, "serveDeploymentStatuses": deployments} if deployments else status


def _plain(detail: Mapping[str, Any]) -> dict[str, Any]:
    message = str(detail.get("message") or "")
    if len(message) > _LONGEST_MESSAGE:  # of a traceback, the end says what was wrong
        message = "..." + message[-_LONGEST_MESSAGE:]
    return {"status": str(detail.get("status") or NOT_STARTED), **({"message": message} if message else {})}


def _problems(seen: Observed) -> list[str]:
    found = []
    for name, status in seen.applications.items():
        if status["status"] != RUNNING:
            lines = [line for line in str(status.get("message") or "").strip().splitlines() if line.strip()]
            found.append(f"application {name} is {status['status']}{f': {lines[-1].strip()[:500]}' if lines else ''}")
    return found


def _used(deployment: Mapping[str, Any]) -> Resources:
    """What a deployment's replicas may take, whether or not serveConfigV2 lists it."""
    needs: Mapping[str, Any] = deployment.get("required_resources") or {}
    config: Mapping[str, Any] = deployment.get("deployment_config") or {}
    scaling: Mapping[str, Any] = config.get("autoscaling_config") or {}
    most = int(scaling.get("max_replicas") or 0) or int(deployment.get("target_num_replicas") or 0)
    each = Resources.of(needs.get("CPU", 0), needs.get("GPU", 0), needs.get("memory", 0))
    return each * most


def _set(
    status: Mapping[str, Any], generation: int, now: datetime, kind: str, value: str, reason: str, message: str
) -> list[dict[str, Any]]:
    """The conditions with one of them changed; its time moves only with its value."""
    conditions: list[dict[str, Any]] = list(status.get("conditions") or ())
    old = next((one for one in conditions if one["type"] == kind), None)
    since = old["lastTransitionTime"] if old is not None and old["status"] == value else timestamp(now)
    made = {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message[:4000],
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }
    if old is None:
        return [*conditions, made]
    return [made if one is old else one for one in conditions]


def _made(status: Status, generation: int, **fields: Any) -> Status:
    return {**status, "observedGeneration": generation, **fields}


def _without_endpoints(status: Status) -> Status:
    return {name: value for name, value in status.items() if name not in ("numServeEndpoints", "serviceStatus")}
