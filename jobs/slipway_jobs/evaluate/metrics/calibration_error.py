"""Expected calibration error (Guo et al. 2017, arXiv:1706.04599): whether 80% sure means right 80 times of 100."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, Metric, MetricContext, choice

BINS = 15


def bin_of(confidence: float) -> int:
    """The bin of a confidence: equal widths, each open below and closed above, as in the paper."""
    return min(BINS - 1, max(0, int(np.ceil(confidence * BINS)) - 1))


class CalibrationError(Metric):
    """The gap between confidence and accuracy in each of 15 bins, weighted by the examples in it."""

    name = "calibrationError"
    percentiles_mislead = True

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """Two columns for each bin: confidence, and whether the likeliest choice is right; and one that counts."""
        rows = np.zeros((len(examples), 2 * BINS + 1))
        for row, score in zip(rows, map(choice, examples), strict=True):
            confidence = max(score.probabilities)
            place = bin_of(confidence)
            row[2 * place] = confidence
            row[2 * place + 1] = score.predicted == score.gold
        rows[:, -1] = 1
        return rows

    def value(self, sums: Array) -> Array:
        """Sum over bins of |confidence - accuracy|, weighted by their share of the examples."""
        bins = sums[..., :-1].reshape(*sums.shape[:-1], BINS, 2)
        gaps: Array = np.abs(bins[..., 0] - bins[..., 1]).sum(axis=-1) / sums[..., -1]
        return gaps
