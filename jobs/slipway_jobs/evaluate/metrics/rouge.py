"""ROUGE (Lin 2004), by rouge-score: F-measure without stemming, mean over examples, best reference of each; 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipway_api.metrics import MetricName
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import Array, MetricContext, RatioMetric, generation


class Rouge(RatioMetric):
    """One of ROUGE-1, ROUGE-2 (n-grams) and ROUGE-L (longest common subsequence)."""

    def __init__(self, name: MetricName) -> None:
        self.name = name

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """(F-measure, 1) of each example."""
        from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415 - only where it is asked for

        scorer = RougeScorer([self.name], use_stemmer=False)
        figures = [
            scorer.score_multi(list(score.references), score.answer)[self.name].fmeasure
            for score in map(generation, examples)
        ]
        return np.array([[figure, 1.0] for figure in figures]).reshape(-1, 2)
