"""What a RayJob's status says in each situation, in KubeRay's words. Pure: old status in, new status out.

KubeRay has no reason for "the cluster that ran it is gone" but its time limit for status checks; this runner uses that
reason at once, because it knows. The message of a failed job is Ray's own, with the exit code in it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from slipway_local.ray_runner.jobs_api import JobInfo

Status = dict[str, Any]

INITIALIZING = "Initializing"
RUNNING = "Running"
COMPLETE = "Complete"
FAILED = "Failed"
VALIDATION_FAILED = "ValidationFailed"
SUSPENDING = "Suspending"
SUSPENDED = "Suspended"

FINISHED = frozenset({COMPLETE, FAILED})

APP_FAILED = "AppFailed"
DEADLINE_EXCEEDED = "DeadlineExceeded"
SUBMISSION_FAILED = "SubmissionFailed"
CLUSTER_LOST = "JobStatusCheckTimeoutExceeded"

_OF_ONE_RUN = (
    "jobId",
    "jobStatus",
    "rayClusterName",
    "dashboardURL",
    "startTime",
    "endTime",
    "succeeded",
    "failed",
    "rayJobInfo",
    "reason",
    "message",
)


def timestamp(now: datetime) -> str:
    """RFC 3339, whole seconds, UTC."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """The inverse. Raises ValueError."""
    return datetime.fromisoformat(text)


def deployment_status(status: Status) -> str:
    """jobDeploymentStatus; "" for a new RayJob."""
    return str(status.get("jobDeploymentStatus") or "")


def waiting(status: Status, message: str) -> Status:
    """Not admitted yet."""
    kept = {name: value for name, value in status.items() if name not in _OF_ONE_RUN}
    return {**kept, "jobDeploymentStatus": INITIALIZING, "message": message}


def admitted(status: Status, *, job_id: str, cluster: str, dashboard: str, now: datetime) -> Status:
    """Its resources are reserved, and it is going to be submitted under this id."""
    return {
        **waiting(status, "starting"),
        "jobId": job_id,
        "rayClusterName": cluster,
        "dashboardURL": dashboard,
        "startTime": timestamp(now),
    }


def submitted(status: Status, info: JobInfo | None) -> Status:
    """Ray has the job, which has not ended."""
    job_status = info.status if info is not None else "PENDING"
    return {
        **status,
        "jobDeploymentStatus": RUNNING,
        "jobStatus": job_status,
        "message": (info.message if info is not None else "") or "submitted to Ray",
        **_job_info(info),
    }


def ended(status: Status, info: JobInfo, now: datetime) -> Status:
    """Ray says that the job has ended."""
    failed = info.status == "FAILED"
    return {
        **status,
        "jobStatus": info.status,
        "jobDeploymentStatus": FAILED if failed else COMPLETE,
        **({"reason": APP_FAILED} if failed else {}),
        "message": info.message,
        "endTime": timestamp(now),
        "succeeded": int(info.status == "SUCCEEDED"),
        "failed": int(failed),
        **_job_info(info),
    }


def failed(status: Status, reason: str, message: str, now: datetime, *, job_status: str = "FAILED") -> Status:
    """It ended, or never began, for a reason that is not its own."""
    return {
        **status,
        "jobStatus": job_status,
        "jobDeploymentStatus": FAILED,
        "reason": reason,
        "message": message,
        "endTime": timestamp(now),
        "succeeded": 0,
        "failed": 1,
    }


def invalid(status: Status, message: str) -> Status:
    """It can never run as it is."""
    kept = {name: value for name, value in status.items() if name not in _OF_ONE_RUN}
    return {**kept, "jobDeploymentStatus": VALIDATION_FAILED, "reason": VALIDATION_FAILED, "message": message}


def suspending(status: Status) -> Status:
    """It is being stopped, to go on later."""
    return {**status, "jobDeploymentStatus": SUSPENDING, "message": "stopping the job"}


def suspended(status: Status) -> Status:
    """It does not run, holds nothing, and may be resumed as a new run."""
    kept = {name: value for name, value in status.items() if name not in _OF_ONE_RUN}
    return {**kept, "jobDeploymentStatus": SUSPENDED}


def changes(old: Status, new: Status) -> Status:
    """A merge patch (RFC 7386) that turns the one into the other; {} when they are equal.

    It goes as deep as both are objects: what it does not name stays there too.
    """
    patch: Status = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := changes(before, value):
                patch[name] = inner
        elif before != value:
            patch[name] = value
    return patch


def _job_info(info: JobInfo | None) -> Status:
    if info is None:
        return {}
    times = {
        name: timestamp(datetime.fromtimestamp(milliseconds / 1000, UTC))
        for name, milliseconds in (("startTime", info.start_time), ("endTime", info.end_time))
        if milliseconds
    }
    return {"rayJobInfo": times} if times else {}
