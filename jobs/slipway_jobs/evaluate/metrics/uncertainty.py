"""How sure a score is, and whether a difference is real.

- A share of right examples: binomial error, Wilson's interval (1927); against a baseline McNemar's exact test (1947).
- A ratio of sums (loss, mean F1): the delta method over examples, so that the tokens of one document count together;
  against a baseline a paired t test of the linearized ratios.
- Anything else (BLEU, macro F1): bootstrap over examples, percentiles (Efron 1979); against a baseline paired.
- Sums of gaps and maxima (calibration error, disparities) are larger in every resample than in the whole, so their
  percentiles are no interval: they get a standard error and no interval, and a gate with `confidence` refuses them.

A bootstrap sample is a vector of counts, and what it means for every metric is one matrix product (`metric.py`).
Everything is seeded: the same scores give the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from slipway_api.evaljob import Confidence
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import (
    Array,
    Difference,
    Metric,
    MetricContext,
    RatioMetric,
    Score,
    ShareMetric,
)

RESAMPLES = 1000
_FEWEST_RESAMPLES = 200
_WORK = 40_000_000  # draws of one bootstrap: fewer resamples of very many examples, whose intervals are narrow anyway
_CHUNK = 4_000_000  # counts that are held at once


def score(metric: Metric, examples: Sequence[ScoredExample], context: MetricContext) -> Score:
    """The value of a metric with its error and intervals. Raises UserError NoExamples, or what the metric raises."""
    if not examples:
        raise UserError("NoExamples", f"{metric.name}: there are no examples")
    rows = metric.statistics(examples, context)
    value = float(metric.value(rows.sum(axis=0)))
    count = metric.count(examples)
    if len(examples) < 2 or not math.isfinite(value):
        return Score(value, count, None, "", {})
    if isinstance(metric, ShareMetric):
        return _share(value, count, len(examples), context)
    if isinstance(metric, RatioMetric):
        return _ratio(metric, rows, value, count, context)
    draws = bootstrap(metric, rows, context.seed)
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return Score(value, count, None, "", {})
    intervals = {} if metric.percentiles_mislead else _percentiles(draws, context.confidences)
    return Score(value, count, float(draws.std(ddof=1)), "bootstrap", intervals)


def compare(
    metric: Metric, ours: Sequence[ScoredExample], baseline: Sequence[ScoredExample], context: MetricContext
) -> Difference:
    """Ours minus the baseline's. Both hold the same examples in the same order.

    Raises UserError NoExamples, ExamplesDiffer, or what the metric raises.
    """
    if not ours:
        raise UserError("NoExamples", f"{metric.name}: there are no examples")
    if [example.id for example in ours] != [example.id for example in baseline]:
        raise UserError("ExamplesDiffer", f"{metric.name}: model and baseline were not scored on the same examples")
    rows, theirs = _aligned(metric, ours, baseline, context)
    values = float(metric.value(rows.sum(axis=0))), float(metric.value(theirs.sum(axis=0)))
    difference = values[0] - values[1]
    if len(ours) < 2 or not math.isfinite(difference):
        return Difference(difference)
    if isinstance(metric, RatioMetric):
        return _paired_ratio(metric, rows, theirs, values, context)
    return _paired_bootstrap(metric, rows, theirs, difference, context)


def bootstrap(metric: Metric, rows: Array, seed: int, other: Array | None = None) -> Array:
    """The metric of resampled examples, shape [resamples]; minus that of `other`, resampled alike, where given."""
    count = len(rows)
    resamples = max(_FEWEST_RESAMPLES, min(RESAMPLES, _WORK // count))
    draws = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, max(1, _CHUNK // count)):
        size = min(max(1, _CHUNK // count), resamples - start)
        drawn = draws.integers(0, count, size=(size, count)) + (np.arange(size) * count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        values = metric.value(weights @ rows)
        found.append(values if other is None else values - metric.value(weights @ other))
    return np.concatenate(found)


# --- one model ----------------------------------------------------------------------------------------------------


def _share(value: float, count: int, examples: int, context: MetricContext) -> Score:
    error = math.sqrt(value * (1 - value) / (examples - 1))
    intervals = {confidence: wilson(value, examples, float(confidence)) for confidence in context.confidences}
    return Score(value, count, error, "binomial", intervals)


def wilson(share: float, examples: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share (https://doi.org/10.1080/01621459.1927.10502953)."""
    z = _z(confidence)
    squared = z * z / examples
    middle = (share + squared / 2) / (1 + squared)
    half = z * math.sqrt(share * (1 - share) / examples + squared / (4 * examples)) / (1 + squared)
    return max(0.0, middle - half), min(1.0, middle + half)


def _ratio(metric: RatioMetric, rows: Array, value: float, count: int, context: MetricContext) -> Score:
    """Delta method on the ratio, intervals through the transformation: perplexity's are not symmetric."""
    ratio, error = _linear(rows)
    ends = {
        confidence: _ordered(
            metric, ratio - _t(confidence, len(rows)) * error, ratio + _t(confidence, len(rows)) * error
        )
        for confidence in context.confidences
    }
    step = max(abs(ratio), 1.0) * 1e-6
    around = metric.transform(np.array([ratio - step, ratio + step]))
    slope = float(around[1] - around[0]) / (2 * step)
    return Score(value, count, abs(slope) * error, "delta method", ends)


def _ordered(metric: RatioMetric, low: float, high: float) -> tuple[float, float]:
    first, second = (float(end) for end in metric.transform(np.array([low, high])))
    return min(first, second), max(first, second)


def _linear(rows: Array) -> tuple[float, float]:
    """The ratio of the sums of two columns, and its standard error."""
    influence = _influence(rows)
    ratio = float(rows[:, 0].sum() / rows[:, 1].sum())
    return ratio, float(np.sqrt((influence**2).sum() * len(rows) / (len(rows) - 1)))


def _influence(rows: Array) -> Array:
    """What each example moves the ratio by, to first order; they sum to zero."""
    total = rows[:, 1].sum()
    influence: Array = (rows[:, 0] - rows[:, 0].sum() / total * rows[:, 1]) / total
    return influence


def _percentiles(draws: Array, confidences: Sequence[Confidence]) -> dict[Confidence, tuple[float, float]]:
    found: dict[Confidence, tuple[float, float]] = {}
    for confidence in confidences:
        tail = (1 - float(confidence)) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        found[confidence] = float(low), float(high)
    return found


def _z(confidence: float) -> float:
    return float(stats.norm.ppf((1 + confidence) / 2))


def _t(confidence: Confidence, examples: int) -> float:
    return float(stats.t.ppf((1 + float(confidence)) / 2, examples - 1))


# --- against a baseline -------------------------------------------------------------------------------------------


def _aligned(
    metric: Metric, ours: Sequence[ScoredExample], baseline: Sequence[ScoredExample], context: MetricContext
) -> tuple[Array, Array]:
    """The statistics of both, with the same columns: what occurs in either (labels) has its columns in both."""
    rows = metric.statistics([*ours, *baseline], context)
    return rows[: len(ours)], rows[len(ours) :]


def _paired_ratio(
    metric: RatioMetric, ours: Array, baseline: Array, values: tuple[float, float], context: MetricContext
) -> Difference:
    difference = values[0] - values[1]
    slopes = [_slope(metric, rows) for rows in (ours, baseline)]
    influence = slopes[0] * _influence(ours) - slopes[1] * _influence(baseline)
    count = len(influence)
    error = float(np.sqrt((influence**2).sum() * count / (count - 1)))
    intervals: Mapping[Confidence, tuple[float, float]] = {
        confidence: (difference - _t(confidence, count) * error, difference + _t(confidence, count) * error)
        for confidence in context.confidences
    }
    if isinstance(metric, ShareMetric):
        return Difference(difference, mcnemar(ours[:, 0], baseline[:, 0]), "McNemar (exact)", intervals)
    if error == 0:
        return Difference(difference, 1.0 if difference == 0 else 0.0, "paired t", intervals)
    p_value = float(2 * stats.t.sf(abs(difference) / error, count - 1))
    return Difference(difference, p_value, "paired t", intervals)


def mcnemar(ours: Array, baseline: Array) -> float:
    """The two-sided exact p-value of McNemar's test over examples that are right (1) or wrong (0)."""
    better = int(((ours == 1) & (baseline == 0)).sum())
    worse = int(((ours == 0) & (baseline == 1)).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _slope(metric: RatioMetric, rows: Array) -> float:
    ratio = float(rows[:, 0].sum() / rows[:, 1].sum())
    step = max(abs(ratio), 1.0) * 1e-6
    around = metric.transform(np.array([ratio - step, ratio + step]))
    return float(around[1] - around[0]) / (2 * step)


def _paired_bootstrap(
    metric: Metric, ours: Array, baseline: Array, difference: float, context: MetricContext
) -> Difference:
    draws = bootstrap(metric, ours, context.seed, baseline)
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return Difference(difference)
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    p_value = min(1.0, 2 * float(beyond + 1) / (len(draws) + 1))
    return Difference(difference, p_value, "paired bootstrap", _percentiles(draws, context.confidences))
