"""Exact match: the share of answers that equal a reference, normalized as SQuAD does."""

from __future__ import annotations

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.answers import normalized
from slipway_jobs.evaluate.metrics.metric import ShareMetric, generation


class ExactMatch(ShareMetric):
    """Any of the references counts."""

    name = "exactMatch"

    def right(self, example: ScoredExample) -> bool:
        """Whether the answer is one of the references."""
        score = generation(example)
        return normalized(score.answer) in {normalized(reference) for reference in score.references}
