"""What attempts have used, as status.usage keeps it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from slipway_api.trainjob import Workers
from slipway_operator.planner.cost import Rate

_HOUR = 3600
_STEP = Decimal("0.0001")


def of(seconds: int, workers: Workers, rate: Rate) -> dict[str, Any]:
    """What so many seconds of these workers are."""
    used: dict[str, Any] = {
        "workerSeconds": seconds * workers.count,
        "gpuSeconds": seconds * workers.count * workers.resources.gpu,
    }
    hours = Decimal(seconds) / _HOUR
    if rate.price_per_hour is not None:
        used |= {"cost": _text(rate.price_per_hour * hours), "currency": rate.currency}
    if rate.kilowatts is not None:
        used["energyKwh"] = _text(rate.kilowatts * hours)
    return used


def total(usages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum, oldest first. Amounts of different currencies have none: those before the last one's are left out."""
    summed: dict[str, Any] = {name: sum(one.get(name, 0) for one in usages) for name in ("workerSeconds", "gpuSeconds")}
    currency = next((one["currency"] for one in reversed(usages) if one.get("currency")), None)
    priced = [Decimal(one["cost"]) for one in usages if "cost" in one and one.get("currency") == currency]
    if priced:
        summed |= {"cost": _text(sum(priced)), "currency": currency}
    drawn = [Decimal(one["energyKwh"]) for one in usages if "energyKwh" in one]
    if drawn:
        summed["energyKwh"] = _text(sum(drawn))
    return summed


def _text(amount: Decimal | int) -> str:
    return f"{Decimal(amount).quantize(_STEP):f}"
