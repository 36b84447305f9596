"""What holds a retrain back: gave up, cooldown with back-off, retrains of a day, budget. Pure.

Alarms come from traffic, and traffic from whoever sends it: these limits, not the alarms, decide how often a model is
renewed. So they count what has begun and what was used, never what was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from slipway_api import conditions as c
from slipway_api.drift import Retrain
from slipway_operator.controllers.deployment.retrain import usage
from slipway_operator.controllers.deployment.retrain.ledger import Ledger
from slipway_operator.controllers.runs.attempts import format_time, parse_time

_SHORTEST_BACKOFF = timedelta(minutes=1)  # after a failure, also where cooldownSeconds is 0
_LONGEST_BACKOFF = timedelta(days=30)


@dataclass(frozen=True)
class Refusal:
    """Why nothing begins, and when that ends by itself."""

    reason: str
    message: str
    until: datetime | None = None


def held_back(retrain: Retrain, ledger: Ledger, now: datetime) -> Refusal | None:
    """The first limit that holds."""
    for rule in (_gave_up, _cooling_down, _of_the_day, _budget):
        found = rule(retrain, ledger, now)
        if found is not None:
            return found
    return None


def gave_up(retrain: Retrain, ledger: Ledger) -> bool:
    """Whether too many in a row came to nothing."""
    return ledger.state.failures >= retrain.max_failures


def _gave_up(retrain: Retrain, ledger: Ledger, now: datetime) -> Refusal | None:
    if not gave_up(retrain, ledger):
        return None
    last = f"; the last one: {ledger.last.reason}: {ledger.last.message}" if ledger.last else ""
    message = (
        f"{ledger.state.failures} retrains in a row came to nothing (spec.drift.retrain.maxFailures)"
        f"{last[:2000]}. None begins until spec.model or spec.drift.retrain is changed"
    )
    return Refusal(c.GAVE_UP, message)


def _cooling_down(retrain: Retrain, ledger: Ledger, now: datetime) -> Refusal | None:
    if ledger.last_end is None:
        return None
    wait, failures = timedelta(seconds=retrain.cooldown_seconds), ledger.state.failures
    why = f"spec.drift.retrain.cooldownSeconds is {retrain.cooldown_seconds}"
    if failures:
        wait = min(max(wait, _SHORTEST_BACKOFF) * 2 ** min(failures - 1, 32), max(wait, _LONGEST_BACKOFF))
        why += f", and {failures} in a row came to nothing"
    until = ledger.last_end + wait
    if until <= now:
        return None
    return Refusal(c.COOLING_DOWN, f"the last retrain ended at {format_time(ledger.last_end)}: {why}", until)


def _of_the_day(retrain: Retrain, ledger: Ledger, now: datetime) -> Refusal | None:
    starts = ledger.state.starts
    if len(starts) < retrain.max_per_day:
        return None
    until = parse_time(starts[retrain.max_per_day - 1]) + timedelta(days=1)
    message = f"{len(starts)} retrains began within 24 hours; spec.drift.retrain.maxPerDay is {retrain.max_per_day}"
    return Refusal(c.DAILY_LIMIT, message, until)


def _budget(retrain: Retrain, ledger: Ledger, now: datetime) -> Refusal | None:
    if retrain.gpu_hours_budget is None:
        return None
    spent = usage.spent(ledger.state.usage, now)
    if spent < Decimal(retrain.gpu_hours_budget):
        return None
    message = (
        f"retrains of the last {usage.WINDOW_DAYS} days have used {usage.in_words(spent)} hours; "
        f"spec.drift.retrain.gpuHoursBudget is {retrain.gpu_hours_budget}"
    )
    oldest = ledger.state.usage[-1].day if ledger.state.usage else None
    if oldest is None:  # a budget of 0
        return Refusal(c.BUDGET_SPENT, message)
    until = parse_time(f"{oldest}T00:00:00Z") + timedelta(days=usage.WINDOW_DAYS + 1)
    return Refusal(c.BUDGET_SPENT, message, until)
