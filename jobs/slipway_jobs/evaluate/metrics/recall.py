"""Recall: of what is a label, the share that was called so."""

from __future__ import annotations

from slipway_jobs.evaluate.metrics.confusion import ConfusionMetric, macro, ratio
from slipway_jobs.evaluate.metrics.metric import Array


class RecallMacro(ConfusionMetric):
    """The mean over the labels that occur."""

    name = "recallMacro"

    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """Hits over instances, label by label."""
        return macro(ratio(hits, true), predicted, true)


class RecallMicro(ConfusionMetric):
    """Over all labels together: with one label for each example, the accuracy."""

    name = "recallMicro"

    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """All hits over all instances."""
        return ratio(hits.sum(axis=-1), true.sum(axis=-1))
