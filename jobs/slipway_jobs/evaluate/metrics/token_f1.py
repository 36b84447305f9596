"""Token F1: the words that answer and reference share, as SQuAD measures it."""

from __future__ import annotations

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.answers import token_f1
from slipway_jobs.evaluate.metrics.metric import MeanMetric, generation


class TokenF1(MeanMetric):
    """Mean over examples of the best F1 against a reference."""

    name = "tokenF1"

    def figure(self, example: ScoredExample) -> float:
        """The best F1 of the answer against a reference."""
        score = generation(example)
        return max(token_f1(score.answer, reference) for reference in score.references)
