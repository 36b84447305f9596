"""Latency: percentiles of the time to the first token and of the time between tokens, in milliseconds.

A percentile is no function of sums, so its error comes from a bootstrap over requests of its own. Percentiles are
numpy's default (linear interpolation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from slipway_api.metrics import MetricName
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, Difference, MetricContext, Score, latency
from slipway_jobs.evaluate.metrics.uncertainty import RESAMPLES

_MILLISECONDS = 1000.0


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
        draws = self._draws(mine, context.seed) - self._draws(theirs, context.seed + 1)
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
        draws = np.random.default_rng(seed)
        found = []
        for _ in range(RESAMPLES):
            picked = draws.integers(0, len(requests), size=len(requests))
            found.append(self._percentile(np.concatenate([requests[i] for i in picked])))
        return np.array(found)
