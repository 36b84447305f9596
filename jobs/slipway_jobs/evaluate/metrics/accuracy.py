"""Accuracy: the share of examples whose likeliest choice is the right one."""

from __future__ import annotations

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import ShareMetric, choice


class Accuracy(ShareMetric):
    """By the log-likelihood of each choice as it stands; lm_eval's `acc`."""

    name = "accuracy"

    def right(self, example: ScoredExample) -> bool:
        """Whether the likeliest choice is the right one."""
        score = choice(example)
        return score.predicted == score.gold
