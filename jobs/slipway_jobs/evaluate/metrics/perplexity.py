"""Perplexity: the exponential of the loss per token."""

from __future__ import annotations

import numpy as np

from slipway_api.metrics import MetricName
from slipway_jobs.evaluate.metrics.loss import Loss
from slipway_jobs.evaluate.metrics.metric import Array


class Perplexity(Loss):
    """exp(nats per token). Of two models it can be compared only where their tokenizers are the same."""

    name: MetricName = "perplexity"

    def transform(self, ratio: Array) -> Array:
        """exp; infinite above what a float holds."""
        with np.errstate(over="ignore"):
            return np.exp(ratio)
