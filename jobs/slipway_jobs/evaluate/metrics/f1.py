"""F1: the harmonic mean of precision and recall."""

from __future__ import annotations

from slipway_jobs.evaluate.metrics.confusion import ConfusionMetric, macro, ratio
from slipway_jobs.evaluate.metrics.metric import Array


class F1Macro(ConfusionMetric):
    """The mean over the labels that occur."""

    name = "f1Macro"

    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """2 hits / (predictions + instances), label by label."""
        return macro(ratio(2 * hits, predicted + true), predicted, true)


class F1Micro(ConfusionMetric):
    """Over all labels together: with one label for each example, the accuracy."""

    name = "f1Micro"

    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """Of all hits, predictions and instances."""
        return ratio(2 * hits.sum(axis=-1), (predicted + true).sum(axis=-1))
