"""Group disparity: how far the best and the worst group of a slice lie apart in the suite's main metric.

With several slices the widest one counts. Groups without an example in a sample are left out of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipway_api.metrics import SuiteKind
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.groups import groups_of
from slipway_jobs.evaluate.metrics.main_metric import main_metric
from slipway_jobs.evaluate.metrics.metric import Array, Metric, MetricContext


class GroupDisparity(Metric):
    """max - min of the main metric over the groups of each slice; the largest over the slices."""

    name = "groupDisparity"
    percentiles_mislead = True

    def __init__(self, kind: SuiteKind = "multipleChoice", sizes: tuple[int, ...] = ()) -> None:
        self._kind = kind
        self._sizes = sizes  # groups of each slice: how the columns are to be read

    def bound(self, examples: Sequence[ScoredExample], context: MetricContext) -> GroupDisparity:
        """This metric for the groups that these examples have."""
        return GroupDisparity(context.kind, tuple(len(labels) for labels in _labels(examples, context)))

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """The two sums of the main metric, in the columns of the example's group in each slice."""
        sums = main_metric(context.kind).statistics(examples, context)
        blocks = []
        for one, labels in zip(context.slices, _labels(examples, context), strict=True):
            place = {label: index for index, label in enumerate(labels)}
            block = np.zeros((len(examples), len(labels), 2))
            for row, (example, pair) in enumerate(zip(examples, sums, strict=True)):
                label = example.fields.get(one.field)
                if label in place:
                    block[row, place[label]] = pair
            blocks.append(block.reshape(len(examples), -1))
        return np.concatenate(blocks, axis=1) if blocks else np.zeros((len(examples), 0))

    def value(self, sums: Array) -> Array:
        """The widest gap; NaN where no slice has two groups."""
        start, gaps = 0, []
        for size in self._sizes:
            groups = sums[..., start : start + 2 * size].reshape(*sums.shape[:-1], size, 2)
            start += 2 * size
            values = main_metric(self._kind).value(groups)
            there = groups[..., 1] > 0
            high = np.where(there, values, -np.inf).max(axis=-1, initial=-np.inf)
            low = np.where(there, values, np.inf).min(axis=-1, initial=np.inf)
            gaps.append(np.where(there.sum(axis=-1) > 1, high - low, np.nan))
        if not gaps:
            return np.full(sums.shape[:-1], np.nan)
        stacked = np.stack(gaps)
        empty = np.isnan(stacked).all(axis=0)
        widest: Array = np.where(empty, np.nan, np.nanmax(np.where(np.isnan(stacked), -np.inf, stacked), axis=0))
        return widest


def _labels(examples: Sequence[ScoredExample], context: MetricContext) -> list[list[str]]:
    """The groups of each slice: those that it names, else the most frequent ones."""
    return [groups_of(one, examples) for one in context.slices]
