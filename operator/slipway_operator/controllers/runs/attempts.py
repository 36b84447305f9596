"""How an attempt ended, and whether and when the next one may start. Pure.

The run's own report is believed first; then the driver's exit code; a run that ended without either is an
infrastructure failure. Logs are never read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from slipway_api.run import ExitCode, Outcome, Report, RunEnd
from slipway_api.trainjob import Retry

# Ray's JobInfo.message for an entrypoint that ended by itself; KubeRay copies it into the RayJob's status.message.
_EXIT_CODE = re.compile(r"^Job entrypoint command failed with exit code (-?\d+)\b")
_MAX_BACKOFF = timedelta(minutes=10)
COUNTED = frozenset({"Infrastructure", "OutOfMemory"})


@dataclass(frozen=True)
class End:
    """The end of an attempt."""

    outcome: str  # AttemptRecord.outcome
    reason: str  # CamelCase
    message: str
    result: dict[str, Any] | None = None  # of one that succeeded


def end_of_attempt(
    ray_job: dict[str, Any] | None, report: Report | None, result_of: Callable[[RunEnd], dict[str, Any] | None]
) -> End | None:
    """How the current attempt ended, or None while it goes on. `ray_job` None: it was there and is gone."""
    if report is not None and report.end is not None:
        end = report.end
        result = result_of(end)
        if end.outcome is Outcome.SUCCEEDED and result is None:
            return End("Infrastructure", "NoResult", "the run reported success without its result")
        return End(end.outcome.value, end.reason, end.message, result)
    if ray_job is None:
        return End("Infrastructure", "RayJobGone", "the attempt's RayJob was deleted by someone else while it ran")
    if ray_job["metadata"].get("deletionTimestamp"):
        return End("Infrastructure", "RayJobDeleted", "the attempt's RayJob is being deleted by someone else")
    return _end_from_ray_job(ray_job.get("status") or {})


def _end_from_ray_job(status: dict[str, Any]) -> End | None:
    deployment, job = status.get("jobDeploymentStatus"), status.get("jobStatus")
    message = status.get("message") or ""
    reason = status.get("reason") or ""
    if deployment == "ValidationFailed":
        return End("UserError", "Rejected", message or "the RayJob was refused")
    if job == "SUCCEEDED":
        # The run ends only after its end report was acknowledged, so this one was lost on the operator's side; the
        # next attempt finds the finished model and just says so again.
        return End("Infrastructure", "EndReportMissing", "the run succeeded, but its end report did not arrive")
    if job in ("FAILED", "STOPPED") or deployment == "Failed":
        exit_code = _EXIT_CODE.match(message)
        code = int(exit_code.group(1)) if exit_code else None
        outcome = ExitCode.outcome(code) if code else Outcome.INFRASTRUCTURE
        return End(outcome.value, reason or "RunFailed", message or "the run ended without saying why")
    return None


def out_of_memory_ends(records: list[dict[str, Any]]) -> int:
    """Attempts that ended for want of memory: what the next one does with less of is the kind's to say."""
    return sum(1 for record in records if record.get("outcome") == "OutOfMemory")


def counted_failures(records: list[dict[str, Any]]) -> int:
    """Ended attempts that count against spec.retry.limit."""
    return sum(1 for record in records if record.get("outcome") in COUNTED)


def backoff(retry: Retry, failures: int) -> timedelta:
    """The pause before the attempt that follows the `failures`-th counted failure."""
    if failures <= 0:
        return timedelta(0)
    return min(timedelta(seconds=retry.backoff_seconds << min(failures - 1, 16)), _MAX_BACKOFF)


def parse_time(text: str) -> datetime:
    """An RFC 3339 time as an aware datetime."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def format_time(moment: datetime) -> str:
    """An aware datetime as metav1.Time writes it: UTC, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
