"""Directional bias amplification, attribute to task (Wang and Russakovsky 2021, arXiv:2102.12594, equation 3).

For groups a of an attribute (a slice) and labels t: where the data links a and t, that is P(a, t) > P(a) P(t), the
model amplifies the link by P(predicted t | a) - P(t | a); where it does not, by the negative of that. The mean over all
pairs: above 0 the model exaggerates what is in the data, below 0 it levels it. With several slices the largest counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.groups import groups_of
from slipway_jobs.evaluate.metrics.metric import Array, Metric, MetricContext, choice


class BiasAmplification(Metric):
    """The mean amplification over pairs of group and label."""

    name = "biasAmplification"

    def __init__(self, shapes: tuple[tuple[int, int], ...] = ()) -> None:
        self._shapes = shapes  # (groups, labels) of each slice: how the columns are to be read

    def bound(self, examples: Sequence[ScoredExample], context: MetricContext) -> BiasAmplification:
        """This metric for the groups and labels that these examples have."""
        groups, labels = _axes(examples, context)
        return BiasAmplification(tuple((len(one), len(labels)) for one in groups))

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """For each slice, group and label: whether the example is one, and whether it is predicted to be one."""
        groups, labels = _axes(examples, context)
        place = {label: index for index, label in enumerate(labels)}
        blocks = []
        for one, names in zip(context.slices, groups, strict=True):
            where = {name: index for index, name in enumerate(names)}
            block = np.zeros((len(examples), len(names), len(labels), 2))
            for row, example in enumerate(examples):
                group, score = example.fields.get(one.field), choice(example)
                if group in where:
                    block[row, where[group], place[score.labels[score.gold]], 0] = 1
                    block[row, where[group], place[score.labels[score.predicted]], 1] = 1
            blocks.append(block.reshape(len(examples), -1))
        return np.concatenate(blocks, axis=1) if blocks else np.zeros((len(examples), 0))

    def value(self, sums: Array) -> Array:
        """The largest amplification over the slices; NaN where no slice has a group."""
        start, found = 0, []
        for groups, labels in self._shapes:
            width = 2 * groups * labels
            counts = sums[..., start : start + width].reshape(*sums.shape[:-1], groups, labels, 2)
            start += width
            found.append(_amplification(counts[..., 0], counts[..., 1]))
        if not found:
            return np.full(sums.shape[:-1], np.nan)
        stacked = np.stack(found)
        empty = np.isnan(stacked).all(axis=0)
        largest: Array = np.where(empty, np.nan, np.nanmax(np.where(np.isnan(stacked), -np.inf, stacked), axis=0))
        return largest


def _amplification(true: Array, predicted: Array) -> Array:
    """Of counts [..., groups, labels] -> [...]. Groups without an example are left out."""
    total = true.sum(axis=(-2, -1), keepdims=True)
    of_group = true.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        linked = true / total > (of_group / total) * (true.sum(axis=-2, keepdims=True) / total)
        change = (predicted - true) / of_group
        signed = np.where(linked, change, -change)
        mean: Array = np.nanmean(np.where(of_group > 0, signed, np.nan), axis=(-2, -1))
    return mean


def _axes(examples: Sequence[ScoredExample], context: MetricContext) -> tuple[list[list[str]], list[str]]:
    groups = [groups_of(one, examples) for one in context.slices]
    scores = [choice(example) for example in examples]
    labels = {score.labels[score.gold] for score in scores} | {score.labels[score.predicted] for score in scores}
    return groups, sorted(labels)
