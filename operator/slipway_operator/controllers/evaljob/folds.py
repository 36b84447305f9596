"""The scores of the folds of a cross-validation, put together. Pure.

The value is the mean over the folds, the standard error sd / sqrt(k), and an interval is Student's t with k - 1 degrees
of freedom: k numbers, each from a model of its own. The training sets of two folds overlap, so the folds are not
independent and the error comes out too small rather than too large; no unbiased estimate of it exists (Bengio and
Grandvalet, "No Unbiased Estimator of the Variance of K-Fold Cross-Validation", JMLR 5, 2004).

A score that one fold lacks has no mean: it is left out, and a gate on it fails as one on any score that is missing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from slipway_api.evaljob import Comparison, Confidence, Interval, MetricValue

# Two-sided quantiles of Student's t for 1 to 19 degrees of freedom (a test compares them with scipy's).
# fmt: off
STUDENT_T: dict[Confidence, tuple[float, ...]] = {
    "0.9": (
        6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331, 1.8125,
        1.7959, 1.7823, 1.7709, 1.7613, 1.7531, 1.7459, 1.7396, 1.7341, 1.7291,
    ),
    "0.95": (
        12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
        2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930,
    ),
    "0.99": (
        63.6567, 9.9248, 5.8409, 4.6041, 4.0321, 3.7074, 3.4995, 3.3554, 3.2498, 3.1693,
        3.1058, 3.0545, 3.0123, 2.9768, 2.9467, 2.9208, 2.8982, 2.8784, 2.8609,
    ),
}
# fmt: on

Metrics = Sequence[dict[str, Any]]


def combine(folds: Sequence[Metrics], seed: int) -> list[dict[str, Any]]:
    """status.metrics of the whole, from status.metrics of every fold; in the first fold's order."""
    tables = [{_key(metric): metric for metric in metrics} for metrics in folds]
    combined = []
    for key, metric in tables[0].items():
        found = [table[key] for table in tables if key in table]
        if len(found) == len(tables):
            combined.append(_combine_one(metric, found, seed).to_wire())
    return combined


def _key(metric: dict[str, Any]) -> tuple[str, str, str]:
    return metric["suite"], metric["metric"], metric.get("slice", "")


def _combine_one(first: dict[str, Any], found: Sequence[dict[str, Any]], seed: int) -> MetricValue:
    mean, error = _mean([metric["value"] for metric in found])
    return MetricValue(
        suite=first["suite"],
        metric=first["metric"],
        slice=first.get("slice", ""),
        value=_text(mean),
        higher_is_better=first["higherIsBetter"],
        count=sum(metric["count"] for metric in found),
        seed=seed,
        standard_error=_text(error),
        method="folds",
        intervals=_intervals(mean, error, len(found)),
        baseline=_comparison([metric.get("baseline") for metric in found]),
    )


def _comparison(found: Sequence[dict[str, Any] | None]) -> Comparison | None:
    known = [comparison for comparison in found if comparison is not None]
    if len(known) < len(found):
        return None
    value, _ = _mean([comparison["value"] for comparison in known])
    difference, error = _mean([comparison["difference"] for comparison in known])
    return Comparison(
        value=_text(value),
        difference=_text(difference),
        test="paired by fold",
        intervals=_intervals(difference, error, len(known)),
    )


def _mean(values: Sequence[str]) -> tuple[float, float]:
    """Mean and standard error. What is not finite stays so: a NaN passes no gate."""
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) for number in numbers):
        return math.nan, math.nan
    return statistics.fmean(numbers), statistics.stdev(numbers) / math.sqrt(len(numbers))


def _intervals(mean: float, error: float, folds: int) -> list[Interval]:
    """At every confidence: a gate that is changed after the end may ask for any."""
    if not math.isfinite(error):
        return []
    reach = {confidence: quantiles[folds - 2] * error for confidence, quantiles in STUDENT_T.items()}
    return [Interval(confidence=c, low=_text(mean - r), high=_text(mean + r)) for c, r in reach.items()]


def _text(number: float) -> str:
    return format(number, ".10g")
