"""Bits per byte: the loss in bits over the bytes of the text, which models with different tokenizers share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, MetricContext, RatioMetric, modeling


class BitsPerByte(RatioMetric):
    """Nats / ln 2 / UTF-8 bytes (arXiv:2101.00027, section 3.1)."""

    name = "bitsPerByte"

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """(nats, bytes) of each document."""
        return np.array([[s.nll, s.bytes] for s in map(modeling, examples)], dtype=np.float64).reshape(-1, 2)

    def transform(self, ratio: Array) -> Array:
        """Nats to bits."""
        return ratio / math.log(2)
