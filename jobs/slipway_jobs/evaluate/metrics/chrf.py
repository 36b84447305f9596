"""chrF of the corpus (Popovic 2015), by sacrebleu: F2 of character n-grams up to 6, without spaces; 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, Metric, MetricContext, generation

_ORDER = 6
_FACTOR = 2.0**2  # beta squared: recall counts twice


class Chrf(Metric):
    """Of several references, each segment is counted against the one that suits it best."""

    name = "chrf"

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """(n-grams, n-grams of the reference, matches) of each order, for each segment."""
        from sacrebleu.metrics import CHRF  # noqa: PLC0415 - only where it is asked for

        counter = CHRF()
        rows = []
        for score in map(generation, examples):
            references = [[reference] for reference in score.references]
            rows.append(counter._extract_corpus_statistics([score.answer], references)[0])
        return np.array(rows, dtype=np.float64).reshape(len(rows), 3 * _ORDER)

    def value(self, sums: Array) -> Array:
        """F2 of the mean precision and recall over the orders that both sides have."""
        counts = sums.reshape(*sums.shape[:-1], _ORDER, 3)
        ours, theirs, matches = counts[..., 0], counts[..., 1], counts[..., 2]
        there = (ours > 0) & (theirs > 0)
        orders = there.sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(there, matches / ours, 0.0).sum(axis=-1) / orders
            recall = np.where(there, matches / theirs, 0.0).sum(axis=-1) / orders
            score = 100 * (1 + _FACTOR) * precision * recall / (_FACTOR * precision + recall)
        return np.where((orders > 0) & (precision + recall > 0), np.nan_to_num(score), 0.0)
