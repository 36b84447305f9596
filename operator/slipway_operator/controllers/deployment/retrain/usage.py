"""What retrains cost: GPU-hours, or CPU-hours where the workers have no GPU. Pure.

Attempts that have ended are in a job's status.usage; one that still runs is counted up to now, so that a budget can end
it. Of the past, status keeps one number a day: enough for thirty days, whatever becomes of the objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from slipway_api.drift import RetrainUsage
from slipway_api.quantity import parse_quantity
from slipway_operator.controllers.runs.attempts import parse_time

WINDOW_DAYS = 30


def hours_of(jobs: Iterable[dict[str, Any]], now: datetime) -> Decimal:
    """What these jobs have used up to now, in hours."""
    return sum((_of_job(job, now) for job in jobs), Decimal(0))


def _of_job(job: dict[str, Any], now: datetime) -> Decimal:
    workers, status = job["spec"].get("workers") or {}, job.get("status") or {}
    resources = workers.get("resources") or {}
    used = status.get("usage") or {}
    gpu = int(resources.get("gpu", 0))
    seconds = used.get("gpuSeconds", 0) if gpu else used.get("workerSeconds", 0)
    attempts = status.get("attempts") or []
    if attempts and not attempts[-1].get("endTime"):
        running = (now - parse_time(attempts[-1]["startTime"])).total_seconds()
        seconds += max(0.0, running) * int(workers.get("count", 1)) * (gpu or 1)
    each = Decimal(1) if gpu else parse_quantity(resources.get("cpu", "1"))
    return Decimal(str(seconds)) * each / 3600


def rate_of(jobs: Iterable[dict[str, Any]]) -> Decimal:
    """Hours that the attempts which now run use in an hour."""
    total = Decimal(0)
    for job in jobs:
        attempts = (job.get("status") or {}).get("attempts") or []
        if attempts and not attempts[-1].get("endTime"):
            workers = job["spec"].get("workers") or {}
            resources = workers.get("resources") or {}
            each = Decimal(int(resources.get("gpu", 0))) or parse_quantity(resources.get("cpu", "1"))
            total += each * int(workers.get("count", 1))
    return total


def add(usage: Sequence[RetrainUsage], hours: Decimal, now: datetime) -> list[RetrainUsage]:
    """The days with these hours added to today, those out of the window left out. Newest first.

    A day that is yet to come, from a clock that went back, counts as today.
    """
    today = now.date().isoformat()
    oldest = (now - timedelta(days=WINDOW_DAYS)).date().isoformat()
    days: dict[str, Decimal] = {today: hours}
    for one in usage:
        if one.day >= oldest:
            day = min(one.day, today)
            days[day] = days.get(day, Decimal(0)) + Decimal(one.hours)
    found = [RetrainUsage(day=day, hours=in_words(total)) for day, total in days.items() if total]
    return sorted(found, key=lambda one: one.day, reverse=True)


def spent(usage: Sequence[RetrainUsage], now: datetime) -> Decimal:
    """Hours of the window."""
    return sum((Decimal(one.hours) for one in add(usage, Decimal(0), now)), Decimal(0))


def in_words(hours: Decimal) -> str:
    """With six digits after the point at most: a second is 0.000278 hours."""
    return format(round(hours, 6).normalize(), "f")
