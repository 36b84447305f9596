"""What a RayService's status says in each situation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from slipway_local.ray_runner import service_status as st
from slipway_local.ray_runner.resources import Resources

NOW = datetime(2026, 11, 20, 10, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=5)
ROUTES = {"/ml/chat"}
GIVEN = [{"name": "p_router", "route_prefix": "/ml/chat"}, {"name": "p_v-1", "route_prefix": None}]


def details(router: str, version: str, *, replicas: int = 1, state: str = "RUNNING") -> dict[str, Any]:
    def one(status: str) -> dict[str, Any]:
        return {
            "status": status,
            "message": "" if status == "RUNNING" else "Traceback\nValueError: no such model",
            "deployments": {
                "Engine": {
                    "status": "HEALTHY" if status == "RUNNING" else "UPDATING",
                    "message": "",
                    "required_resources": {"CPU": 0.5},
                    "target_num_replicas": 2,
                    "deployment_config": {},
                    "replicas": [{"replica_id": f"{status}{n}", "state": state, "pid": 7} for n in range(replicas)],
                }
            },
        }

    return {
        "controller_info": {},
        "applications": {"p_router": one(router), "p_v-1": one(version), "other_router": one("UNHEALTHY")},
    }


def observed(
    status: st.Status,
    found: dict[str, Any],
    *,
    up: bool,
    now: datetime = NOW,
    waits: str = "",
    routes: set[str] | None = ROUTES,
) -> st.Status:
    seen = st.observe(GIVEN, found, "p_", routes)
    return st.observed(status, seen, cluster="chat-01234", up=up, waits=waits, generation=1, now=now)


def condition(status: st.Status, kind: str) -> tuple[str, str, str]:
    found = next(one for one in status["conditions"] if one["type"] == kind)
    return found["status"], found["reason"], found["message"]


READY = observed({}, details("RUNNING", "RUNNING"), up=True)


def test_only_its_own_applications_are_seen_and_under_their_own_names() -> None:
    seen = st.observe(GIVEN, details("RUNNING", "DEPLOY_FAILED"), "p_", ROUTES)
    assert seen.applications == {
        "router": {"status": "RUNNING", "serveDeploymentStatuses": {"Engine": {"status": "HEALTHY"}}},
        "v-1": {
            "status": "DEPLOY_FAILED",
            "message": "Traceback\nValueError: no such model",
            "serveDeploymentStatuses": {"Engine": {"status": "UPDATING"}},
        },
    }
    assert (seen.settled, seen.answering, seen.used) == (False, True, Resources.of(2))
    assert st.observe(GIVEN, {}, "p_", ROUTES).applications["router"] == {"status": "NOT_STARTED"}


def test_a_service_is_pending_until_all_of_it_runs() -> None:
    pending = observed({}, details("RUNNING", "DEPLOYING"), up=False)
    assert pending["pendingServiceStatus"]["rayClusterName"] == "chat-01234"
    assert "activeServiceStatus" not in pending
    assert condition(pending, "Ready") == (
        "False",
        "Initializing",
        "application v-1 is DEPLOYING: ValueError: no such model",
    )
    active = observed(pending, details("RUNNING", "RUNNING"), up=True)
    assert "pendingServiceStatus" not in active
    assert active["activeServiceStatus"]["rayClusterName"] == "chat-01234"
    assert (active["numServeEndpoints"], active["serviceStatus"]) == (1, "Running")
    assert condition(active, "Ready")[:2] == ("True", "NonZeroServeEndpoints")
    assert condition(active, "UpgradeInProgress")[:2] == ("False", "NoPendingCluster")


def test_one_that_runs_stays_ready_while_something_answers() -> None:
    changing = observed(READY, details("RUNNING", "DEPLOYING"), up=True)
    assert condition(changing, "Ready")[0] == "True"
    assert changing["activeServiceStatus"]["applicationStatuses"]["v-1"]["status"] == "DEPLOYING"
    assert condition(observed(READY, details("DEPLOYING", "RUNNING"), up=True), "Ready")[0] == "True"
    recovering = observed(READY, details("DEPLOYING", "RUNNING", state="RECOVERING"), up=True)
    assert condition(recovering, "Ready")[0] == "True"
    silent = observed(READY, details("DEPLOYING", "RUNNING", replicas=0), up=True)
    assert condition(silent, "Ready")[:2] == ("False", "ZeroServeEndpoints")
    assert "numServeEndpoints" not in silent
    assert "serviceStatus" not in silent


@pytest.mark.parametrize("routes", [None, set(), {"/ml/other"}])
def test_it_is_ready_when_the_proxy_knows_the_way(routes: set[str] | None) -> None:
    unknown = observed(READY, details("RUNNING", "RUNNING"), up=True, routes=routes)
    assert condition(unknown, "Ready") == (
        "False",
        "ZeroServeEndpoints",
        "the HTTP proxy does not know the way to it yet",
    )
    assert condition(observed(unknown, details("RUNNING", "RUNNING"), up=True), "Ready")[0] == "True"


@pytest.mark.parametrize(("routes", "ready"), [(None, "False"), (set(), "True")])
def test_one_without_a_route_needs_none(routes: set[str] | None, ready: str) -> None:
    seen = st.observe(GIVEN[1:], details("RUNNING", "RUNNING"), "p_", routes)
    status = st.observed({}, seen, cluster="chat-01234", up=True, waits="", generation=1, now=NOW)
    assert condition(status, "Ready")[0] == ready


def test_scaled_to_zero_still_answers() -> None:
    assert condition(observed(READY, details("RUNNING", "RUNNING", replicas=0), up=True), "Ready")[0] == "True"


def test_a_lost_ray_takes_the_endpoints_and_keeps_the_names() -> None:
    lost = st.lost(READY, ["router", "v-1"], "Ray is starting again", 1, LATER)
    assert condition(lost, "Ready") == ("False", "ZeroServeEndpoints", "Ray is starting again")
    assert lost["activeServiceStatus"]["applicationStatuses"]["v-1"]["status"] == "NOT_STARTED"
    assert "numServeEndpoints" not in lost
    again = observed(lost, details("RUNNING", "DEPLOYING"), up=False)
    assert condition(again, "Ready")[:2] == ("False", "ZeroServeEndpoints")
    assert "pendingServiceStatus" not in again


def test_an_invalid_change_is_told_and_what_runs_stays_counted() -> None:
    invalid = st.invalid(READY, "spec.serveConfigV2: is not YAML", 2, LATER)
    assert condition(invalid, "Ready") == ("False", "ValidationFailed", "spec.serveConfigV2: is not YAML")
    assert (invalid["numServeEndpoints"], invalid["observedGeneration"]) == (1, 2)


def test_what_a_change_waits_for_is_told_beside_what_runs() -> None:
    waits = observed(READY, details("RUNNING", "RUNNING"), up=True, waits="waiting for 1 CPU")
    assert condition(waits, "UpgradeInProgress") == ("False", "NoPendingCluster", "waiting for 1 CPU")
    assert condition(waits, "Ready")[0] == "True"


def test_times_move_only_with_what_they_are_the_time_of() -> None:
    first = st.stamped({}, READY, NOW)
    same = st.stamped(first, observed(first, details("RUNNING", "RUNNING"), up=True, now=LATER), LATER)
    assert same == first
    assert first["lastUpdateTime"] == "2026-11-20T10:00:00Z"
    changed = st.stamped(first, st.invalid(first, "x", 1, LATER), LATER)
    assert changed["lastUpdateTime"] == "2026-11-20T10:00:05Z"
    times = {one["type"]: one["lastTransitionTime"] for one in changed["conditions"]}
    assert times == {"Ready": "2026-11-20T10:00:05Z", "UpgradeInProgress": "2026-11-20T10:00:00Z"}
