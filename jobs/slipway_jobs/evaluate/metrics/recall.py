"""Recall: of what is a label, the share that was called so."""

from __future__ import annotations

from slipway_jobs.evaluate.metrics.confusion import ConfusionMetric, ratio
from slipway_jobs.evaluate.metrics.metric import Array


class RecallMacro(ConfusionMetric):
    """The mean over labels."""

    name = "recallMacro"

    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """Hits over instances, label by label."""
        mean: Array = ratio(hits, true).mean(axis=-1)
        return mean


class RecallMicro(ConfusionMetric):
    """Over all labels together: with one label for each example, the accuracy."""

    name = "recallMicro"

    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """All hits over all instances."""
        return ratio(hits.sum(axis=-1), true.sum(axis=-1))
