"""BLEU of the corpus (Papineni et al. 2002), by sacrebleu (Post 2018, arXiv:1804.08771): 0 to 100.

sacrebleu's defaults: tokenizer 13a, mixed case, exponential smoothing, up to 4-grams. Counts come from sacrebleu,
segment by segment; only their combination is here, so that a bootstrap need not count again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, Metric, MetricContext, generation

_ORDER = 4


class Bleu(Metric):
    """Geometric mean of n-gram precisions, times the brevity penalty."""

    name = "bleu"

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """(length, reference length, matches of each order, n-grams of each order) of each segment."""
        from sacrebleu.metrics import BLEU  # noqa: PLC0415 - only where it is asked for

        counter = BLEU(force=True)  # force: no warning about text that looks tokenized
        rows = []
        for score in map(generation, examples):
            references = [[reference] for reference in score.references]
            rows.append(counter._extract_corpus_statistics([score.answer], references)[0])
        return np.array(rows, dtype=np.float64).reshape(len(rows), 2 + 2 * _ORDER)

    def value(self, sums: Array) -> Array:
        """sacrebleu's score of these counts, with exponential smoothing of orders without a match."""
        length, reference = sums[..., 0], sums[..., 1]
        matches, total = sums[..., 2 : 2 + _ORDER], sums[..., 2 + _ORDER :]
        missed = (matches == 0) & (total > 0)
        halvings = np.cumsum(missed, axis=-1)
        precision = np.where(matches > 0, matches, 2.0**-halvings)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(precision / total)
            penalty = np.exp(np.minimum(0.0, 1 - reference / length))
            score = 100 * penalty * np.exp(logs.mean(axis=-1))
        # No match at all is 0, and so is an order that has no n-gram: all answers are too short for it.
        defined = (matches.sum(axis=-1) > 0) & (total > 0).all(axis=-1) & (length > 0)
        return np.where(defined, score, 0.0)
