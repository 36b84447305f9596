"""Robustness: the part of the main metric that is lost when prompts are written carelessly.

The same examples are scored twice, plain and perturbed. 0: nothing is lost; 0.1: a tenth of the accuracy, or a
perplexity that is a tenth higher. Below 0: careless writing even helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from slipway_api.metrics import BY_NAME, MAIN_METRIC, SuiteKind
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import SCORE_FIELD, ScoredExample
from slipway_jobs.evaluate.metrics.main_metric import main_metric
from slipway_jobs.evaluate.metrics.metric import Array, Metric, MetricContext


class RobustnessDrop(Metric):
    """(plain - perturbed) / plain, or the other way round where lower is better."""

    name = "robustnessDrop"

    def __init__(self, kind: SuiteKind = "multipleChoice") -> None:
        self._kind = kind

    def bound(self, examples: Sequence[ScoredExample], context: MetricContext) -> RobustnessDrop:
        """This metric for a suite of that kind."""
        return RobustnessDrop(context.kind)

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """The two sums of the main metric, plain and perturbed."""
        metric, name = main_metric(context.kind), SCORE_FIELD[context.kind]
        changed = []
        for example in examples:
            if example.perturbed is None:
                raise UserError("ScoreMissing", f"example {example.index} was not scored with its prompt perturbed")
            fields: dict[str, Any] = {name: example.perturbed}
            changed.append(replace(example, **fields))
        plain, perturbed = metric.statistics(examples, context), metric.statistics(changed, context)
        return np.concatenate([plain, perturbed], axis=1)

    def value(self, sums: Array) -> Array:
        """The part that is lost; NaN where there is nothing to lose."""
        metric = main_metric(self._kind)
        plain, perturbed = metric.value(sums[..., :2]), metric.value(sums[..., 2:])
        sign = 1.0 if BY_NAME[MAIN_METRIC[self._kind]].higher_is_better else -1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            lost: Array = sign * (plain - perturbed) / plain
        return np.where(plain != 0, lost, np.nan)
