"""What a metric is: a function of sums over examples.

Almost every score is one: perplexity of (loss, tokens), F1 of counts for each label, BLEU of n-gram counts. So a metric
says what each example contributes (`statistics`, one row an example) and what the sums mean (`value`); everything about
uncertainty follows from these two in `uncertainty.py`, the same for all, and a bootstrap is one matrix product.

Metrics need scored examples and no model. Nothing here imports torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slipway_api.evaljob import Confidence, Slice
from slipway_api.metrics import MetricName, SuiteKind
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import (
    ChoiceScore,
    GenerationScore,
    LatencyScore,
    ModelingScore,
    ScoredExample,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MetricContext:
    """What a metric may need besides the examples."""

    seed: int
    confidences: tuple[Confidence, ...]
    slices: tuple[Slice, ...]
    kind: SuiteKind


@dataclass(frozen=True)
class Score:
    """A metric's value. `count`: what it rests on: examples; tokens for perplexity and loss."""

    value: float
    count: int
    standard_error: float | None = None
    method: str = ""
    intervals: Mapping[Confidence, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A metric minus its value for the baseline, on the same examples."""

    difference: float
    p_value: float | None = None
    test: str = ""
    intervals: Mapping[Confidence, tuple[float, float]] = field(default_factory=dict)


class Metric(ABC):
    """One metric. Subclasses are stateless."""

    name: MetricName
    percentiles_mislead = False
    """Whether the value of a resample is biased, so that its percentiles are no confidence interval."""

    @abstractmethod
    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """What each example contributes, shape [examples, statistics].

        Columns may depend on the examples as a whole (the labels that occur). Raises UserError where an example has no
        score of the kind that is needed, or one that is no number.
        """

    @abstractmethod
    def value(self, sums: Array) -> Array:
        """The metric of sums over examples, shape [..., statistics] -> [...]. NaN where it is not defined."""

    def count(self, examples: Sequence[ScoredExample]) -> int:
        """What the score rests on."""
        return len(examples)


class RatioMetric(Metric):
    """A ratio of two sums, and a smooth monotone function of it: errors are analytic (delta method)."""

    def value(self, sums: Array) -> Array:
        """The ratio of the two sums, transformed."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.transform(sums[..., 0] / sums[..., 1])

    def transform(self, ratio: Array) -> Array:
        """The metric of the ratio. Default: the ratio itself."""
        return ratio


class ShareMetric(RatioMetric):
    """The share of examples that are right: 0 or 1 each."""

    @abstractmethod
    def right(self, example: ScoredExample) -> bool:
        """Whether this example is right."""

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """(right, 1) for each example."""
        return np.array([[float(self.right(example)), 1.0] for example in examples]).reshape(-1, 2)


class MeanMetric(RatioMetric):
    """The mean of a figure of each example."""

    @abstractmethod
    def figure(self, example: ScoredExample) -> float:
        """The figure of this example."""

    def statistics(self, examples: Sequence[ScoredExample], context: MetricContext) -> Array:
        """(figure, 1) for each example."""
        return np.array([[self.figure(example), 1.0] for example in examples]).reshape(-1, 2)


# --- scores of examples -------------------------------------------------------------------------------------------


def modeling(example: ScoredExample) -> ModelingScore:
    """The loss of this example. Raises UserError LossNotFinite, ScoreMissing."""
    score = example.modeling
    if score is None:
        raise _missing(example, "loss")
    if not math.isfinite(score.nll):
        raise UserError("LossNotFinite", f"example {example.index} has a loss of {score.nll}; is the model damaged?")
    return score


def choice(example: ScoredExample) -> ChoiceScore:
    """The choices of this example. Raises UserError LossNotFinite, ScoreMissing."""
    score = example.choice
    if score is None:
        raise _missing(example, "choices")
    if any(math.isnan(value) for value in score.log_likelihoods) or max(score.log_likelihoods) == -math.inf:
        raise UserError("LossNotFinite", f"example {example.index}: its choices have no likelihood (NaN, or all zero)")
    return score


def generation(example: ScoredExample) -> GenerationScore:
    """The answer of this example. Raises UserError ScoreMissing, ReferenceMissing."""
    score = example.generation
    if score is None:
        raise _missing(example, "answer")
    if not score.references:
        raise UserError("ReferenceMissing", f"example {example.index} has no reference to compare the answer with")
    return score


def latency(example: ScoredExample) -> LatencyScore:
    """The times of this request. Raises UserError ScoreMissing."""
    score = example.latency
    if score is None or not all(map(math.isfinite, (score.first_token_seconds, *score.token_seconds))):
        raise _missing(example, "times")
    return score


def _missing(example: ScoredExample, what: str) -> UserError:
    why = f": {example.error}" if example.error else ""
    return UserError("ScoreMissing", f"example {example.index} has no {what}{why}")
