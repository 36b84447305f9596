"""Accuracy by log-likelihood per byte, which does not favour short choices; lm_eval's `acc_bytes`, which is its
`acc_norm` where all is ASCII."""

from __future__ import annotations

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import ShareMetric, choice


class AccuracyNormalized(ShareMetric):
    """As accuracy, each choice's log-likelihood divided by its bytes."""

    name = "accuracyNormalized"

    def right(self, example: ScoredExample) -> bool:
        """Whether the choice that is likeliest per byte is the right one."""
        score = choice(example)
        return score.predicted_normalized == score.gold
