"""Counts for each label that precision, recall and F1 are made of.

As scikit-learn has them with `zero_division=0`: a macro figure is the mean over the labels that occur, as truth or as
prediction; one that occurs but has no figure of its own (precision of a label that is never predicted, recall of one
that is never true) counts as 0. The same holds in each resample of a bootstrap: a rare label that was not drawn is left
out of that resample's mean. Counting it as 0 would put every resample below the whole.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, Metric, MetricContext, choice


class ConfusionMetric(Metric):
    """A metric of (true positives, predicted, true) for each label."""

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """For each label three columns: whether this example is a hit, a prediction, an instance of it."""
        pairs = [(score.labels[score.gold], score.labels[score.predicted]) for score in map(choice, examples)]
        place = {label: index for index, label in enumerate(sorted({label for pair in pairs for label in pair}))}
        rows = np.zeros((len(pairs), len(place), 3))
        for row, (gold, predicted) in zip(rows, pairs, strict=True):
            row[place[gold], 2] += 1
            row[place[predicted], 1] += 1
            if gold == predicted:
                row[place[gold], 0] += 1
        return rows.reshape(len(pairs), -1)

    def value(self, sums: Array) -> Array:
        """The figure of hits, predictions and instances."""
        counts = sums.reshape(*sums.shape[:-1], -1, 3)
        return self.figure(counts[..., 0], counts[..., 1], counts[..., 2])

    @abstractmethod
    def figure(self, hits: Array, predicted: Array, true: Array) -> Array:
        """Each of shape [..., labels] -> [...]."""


def macro(figures: Array, predicted: Array, true: Array) -> Array:
    """The mean over the labels that occur, shape [..., labels] -> [...]; 0 where none does."""
    occurs = (predicted + true > 0).astype(np.float64)
    return ratio((figures * occurs).sum(axis=-1), occurs.sum(axis=-1))


def ratio(above: Array, below: Array) -> Array:
    """above / below, 0 where that is not defined."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below > 0)
