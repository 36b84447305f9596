"""Latency: percentiles of the time to the first token and of the time between tokens, in milliseconds.

A percentile is no function of sums, so its error comes from a bootstrap over requests of its own: all times are sorted
once, and a resample is how often each of them counts. Percentiles are numpy's default (linear interpolation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slipway_api.metrics import MetricName
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, Difference, MetricContext, Score, latency
from slipway_jobs.evaluate.metrics.uncertainty import RESAMPLES

_MILLISECONDS = 1000.0
_CHUNK = 4_000_000  # counts that are held at once


class Percentile:
    """One percentile of one of the two times."""

    def __init__(self, name: MetricName, *, percent: float, first: bool) -> None:
        self.name = name
        self._percent = percent
        self._first = first

    def compute(self, examples: Sequence[ScoredExample], context: MetricContext) -> Score:
        """The percentile over all requests (all gaps, for the time between tokens)."""
        if not examples:
            raise UserError("NoExamples", f"{self.name}: there are no requests")
        requests = self._times(examples)
        value = self._percentile(np.concatenate(requests))
        if len(requests) < 2 or math.isnan(value):
            return Score(value, len(examples))
        draws = self._draws(requests, context.seed)
        intervals = {}
        for confidence in context.confidences:
            tail = (1 - float(confidence)) / 2
            low, high = np.quantile(draws, [tail, 1 - tail])
            intervals[confidence] = (float(low), float(high))
        return Score(value, len(examples), float(draws.std(ddof=1)), "bootstrap", intervals)

    def compare(
        self, ours: Sequence[ScoredExample], baseline: Sequence[ScoredExample], context: MetricContext
    ) -> Difference:
        """The difference. Requests of two models are no pairs: each is resampled for itself."""
        mine, theirs = self._times(ours), self._times(baseline)
        difference = self._percentile(np.concatenate(mine)) - self._percentile(np.concatenate(theirs))
        if min(len(mine), len(theirs)) < 2 or math.isnan(difference):
            return Difference(difference)
        draws = self._draws(mine, context.seed)
        other = self._draws(theirs, context.seed + 1)
        draws = draws[: len(other)] - other[: len(draws)]  # of resamples without any time there are next to none
        beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
        intervals = {}
        for confidence in context.confidences:
            tail = (1 - float(confidence)) / 2
            low, high = np.quantile(draws, [tail, 1 - tail])
            intervals[confidence] = (float(low), float(high))
        return Difference(difference, min(1.0, 2 * (beyond + 1) / (len(draws) + 1)), "bootstrap", intervals)

    def _times(self, examples: Sequence[ScoredExample]) -> list[Array]:
        """Milliseconds of each request."""
        scores = [latency(example) for example in examples]
        return [
            _MILLISECONDS * np.array([s.first_token_seconds] if self._first else s.token_seconds, dtype=np.float64)
            for s in scores
        ]

    def _percentile(self, times: Array) -> float:
        return float(np.percentile(times, self._percent)) if len(times) else math.nan

    def _draws(self, requests: list[Array], seed: int) -> Array:
        """The percentile of each resample of requests; without those that hold no time."""
        draws, count = np.random.default_rng(seed), len(requests)
        drawn = draws.integers(0, count, size=(RESAMPLES, count)) + (np.arange(RESAMPLES) * count)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)
        found = resampled_percentiles(requests, counts, self._percent)
        return found[np.isfinite(found)]


def resampled_percentiles(requests: list[Array], counts: NDArray[np.signedinteger], percent: float) -> Array:
    """The percentile of all times where request i counts counts[:, i] times; shape [resamples].

    NaN where no time is left: requests may be without any.
    """
    times = np.concatenate(requests)
    owner = np.repeat(np.arange(len(requests)), [len(one) for one in requests])
    order = np.argsort(times, kind="stable")
    times, owner = times[order], owner[order]
    found = np.full(len(counts), math.nan)
    rows = max(1, _CHUNK // max(1, len(times)))
    for start in range(0, len(counts), rows):
        # Of the resample's sorted times, how many come at or before each of ours.
        reached = counts[start : start + rows][:, owner].cumsum(axis=1)
        for row, ends in enumerate(reached, start):
            if ends[-1]:
                place = percent / 100 * (ends[-1] - 1)
                low, high = np.searchsorted(ends, [math.floor(place), math.ceil(place)], side="right")
                found[row] = times[low] + (place - math.floor(place)) * (times[high] - times[low])
    return found
