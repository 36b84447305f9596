"""Loss: nats per token, over all scored tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipway_api.metrics import MetricName
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, MetricContext, RatioMetric, modeling


class Loss(RatioMetric):
    """Sum of negative log-likelihoods over the number of tokens: token-weighted, whatever the documents' lengths."""

    name: MetricName = "loss"

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """(nats, tokens) of each document."""
        return np.array([[s.nll, s.tokens] for s in map(modeling, examples)], dtype=np.float64).reshape(-1, 2)

    def count(self, examples: Sequence[ScoredExample]) -> int:
        """Scored tokens."""
        return sum(modeling(example).tokens for example in examples)
