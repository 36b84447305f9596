"""Precision: of what was called a label, the share that is it."""

from __future__ import annotations

from slipway_jobs.evaluate.metrics.confusion import ConfusionMetric, macro, ratio
from slipway_jobs.evaluate.metrics.metric import Array


class PrecisionMacro(ConfusionMetric):
    """The mean over the labels that occur."""

    name = "precisionMacro"

    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """Hits over predictions, label by label."""
        return macro(ratio(hits, predicted), predicted, true)


class PrecisionMicro(ConfusionMetric):
    """Over all labels together: with one label for each example, the accuracy."""

    name = "precisionMicro"

    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """All hits over all predictions."""
        return ratio(hits.sum(axis=-1), predicted.sum(axis=-1))
