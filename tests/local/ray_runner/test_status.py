"""Status fields in each situation, and the patch that writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as hs

from slipway_local.ray_runner import status as st
from slipway_local.ray_runner.jobs_api import JobInfo

NOW = datetime(2026, 11, 20, 10, 0, 0, tzinfo=UTC)
ADMITTED = st.admitted({}, job_id="j", cluster="c", dashboard="127.0.0.1:1", now=NOW)
RUNNING = st.submitted(ADMITTED, None)


@pytest.mark.parametrize(
    ("ray", "expected"),
    [
        ("SUCCEEDED", {"jobDeploymentStatus": "Complete", "succeeded": 1, "failed": 0, "reason": None}),
        ("FAILED", {"jobDeploymentStatus": "Failed", "succeeded": 0, "failed": 1, "reason": "AppFailed"}),
        ("STOPPED", {"jobDeploymentStatus": "Complete", "succeeded": 0, "failed": 0, "reason": None}),
    ],
)
def test_end(ray: str, expected: dict[str, Any]) -> None:
    info = JobInfo("j", ray, "failed with exit code 3, ...", start_time=1_795_168_800_000, end_time=1_795_168_801_500)
    new = st.ended(RUNNING, info, NOW)
    assert {name: new.get(name) for name in expected} == expected
    assert new["jobStatus"] == ray
    assert new["message"] == "failed with exit code 3, ..."
    assert new["endTime"] == "2026-11-20T10:00:00Z"
    assert new["rayJobInfo"] == {"startTime": "2026-11-20T10:00:00Z", "endTime": "2026-11-20T10:00:01Z"}
    assert new["jobId"] == "j"


def test_the_way_of_a_run() -> None:
    assert (ADMITTED["jobDeploymentStatus"], ADMITTED["jobId"], ADMITTED["startTime"]) == (
        "Initializing",
        "j",
        "2026-11-20T10:00:00Z",
    )
    assert (RUNNING["jobDeploymentStatus"], RUNNING["jobStatus"]) == ("Running", "PENDING")
    assert st.submitted(RUNNING, JobInfo("j", "RUNNING", "x"))["jobStatus"] == "RUNNING"


def test_a_suspended_job_keeps_nothing_of_its_run() -> None:
    suspended = st.suspended(st.suspending({**RUNNING, "observedGeneration": 2}))
    assert suspended == {"jobDeploymentStatus": "Suspended", "observedGeneration": 2}


def test_failure_that_is_not_the_jobs_own() -> None:
    new = st.failed(RUNNING, st.CLUSTER_LOST, "the Ray head died", NOW)
    assert (new["jobStatus"], new["jobDeploymentStatus"], new["failed"]) == ("FAILED", "Failed", 1)
    assert "exit code" not in new["message"]


def test_invalid_and_waiting() -> None:
    assert st.invalid(RUNNING, "spec.x: no")["jobDeploymentStatus"] == "ValidationFailed"
    assert "jobId" not in st.waiting(RUNNING, "m")


scalars = hs.integers(0, 3) | hs.text(max_size=2)
documents = hs.recursive(
    hs.dictionaries(hs.sampled_from("abcd"), scalars, max_size=4),
    lambda inner: hs.dictionaries(hs.sampled_from("abcd"), scalars | inner, max_size=4),
    max_leaves=12,
)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merged(made.get(name), value)
    return made


@given(documents, documents)
def test_the_patch_turns_one_into_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert merged(old, st.changes(old, new)) == new
    assert st.changes(new, new) == {}
