"""Throughput of one worker that answers one request at a time: tokens generated over the time that it took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, MetricContext, RatioMetric, latency


class TokensPerSecond(RatioMetric):
    """All tokens over all seconds."""

    name = "tokensPerSecond"

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """(tokens, seconds) of each request."""
        scores = [latency(example) for example in examples]
        return np.array([[s.tokens, s.first_token_seconds + sum(s.token_seconds)] for s in scores]).reshape(-1, 2)
