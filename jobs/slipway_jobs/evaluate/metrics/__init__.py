"""The metrics, one line each. `slipway_api.metrics` has their names, directions and kinds of suites.

A new metric is one file here, one line in `_METRICS`, one line in `slipway_api.metrics`, and one test against a
reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slipway_api.metrics import MetricName
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics import uncertainty
from slipway_jobs.evaluate.metrics.accuracy import Accuracy
from slipway_jobs.evaluate.metrics.accuracy_normalized import AccuracyNormalized
from slipway_jobs.evaluate.metrics.bias_amplification import BiasAmplification
from slipway_jobs.evaluate.metrics.bits_per_byte import BitsPerByte
from slipway_jobs.evaluate.metrics.bleu import Bleu
from slipway_jobs.evaluate.metrics.calibration_error import CalibrationError
from slipway_jobs.evaluate.metrics.chrf import Chrf
from slipway_jobs.evaluate.metrics.exact_match import ExactMatch
from slipway_jobs.evaluate.metrics.f1 import F1Macro, F1Micro
from slipway_jobs.evaluate.metrics.group_disparity import GroupDisparity
from slipway_jobs.evaluate.metrics.latency import Percentile
from slipway_jobs.evaluate.metrics.loss import Loss
from slipway_jobs.evaluate.metrics.meteor_exact_stem import MeteorExactStem
from slipway_jobs.evaluate.metrics.metric import Difference, Metric, MetricContext, Score
from slipway_jobs.evaluate.metrics.perplexity import Perplexity
from slipway_jobs.evaluate.metrics.precision import PrecisionMacro, PrecisionMicro
from slipway_jobs.evaluate.metrics.recall import RecallMacro, RecallMicro
from slipway_jobs.evaluate.metrics.robustness_drop import RobustnessDrop
from slipway_jobs.evaluate.metrics.rouge import Rouge
from slipway_jobs.evaluate.metrics.token_f1 import TokenF1
from slipway_jobs.evaluate.metrics.tokens_per_second import TokensPerSecond

__all__ = ["REGISTRY", "Computed", "Difference", "MetricContext", "Score", "compare"]


@dataclass(frozen=True)
class Computed:
    """A metric, ready to be asked."""

    name: MetricName
    compute: Callable[[Sequence[ScoredExample], MetricContext], Score]
    compare: Callable[[Sequence[ScoredExample], Sequence[ScoredExample], MetricContext], Difference]


def _of_sums(metric: Metric) -> Computed:
    """A metric of sums over examples, with errors by `uncertainty`."""

    def bound(examples: Sequence[ScoredExample], context: MetricContext) -> Metric:
        bind: Any = getattr(metric, "bound", None)
        found: Metric = bind(examples, context) if bind is not None else metric
        return found

    return Computed(
        metric.name,
        lambda examples, context: uncertainty.score(bound(examples, context), examples, context),
        lambda ours, baseline, context: uncertainty.compare(
            bound([*ours, *baseline], context), ours, baseline, context
        ),
    )


def _percentile(name: MetricName, percent: float, *, first: bool) -> Computed:
    metric = Percentile(name, percent=percent, first=first)
    return Computed(name, metric.compute, metric.compare)


_METRICS = (
    _of_sums(Perplexity()),
    _of_sums(BitsPerByte()),
    _of_sums(Loss()),
    _of_sums(Accuracy()),
    _of_sums(AccuracyNormalized()),
    _of_sums(PrecisionMacro()),
    _of_sums(PrecisionMicro()),
    _of_sums(RecallMacro()),
    _of_sums(RecallMicro()),
    _of_sums(F1Macro()),
    _of_sums(F1Micro()),
    _of_sums(CalibrationError()),
    _of_sums(ExactMatch()),
    _of_sums(TokenF1()),
    _of_sums(Bleu()),
    _of_sums(Chrf()),
    _of_sums(Rouge("rouge1")),
    _of_sums(Rouge("rouge2")),
    _of_sums(Rouge("rougeL")),
    _of_sums(MeteorExactStem()),
    _of_sums(GroupDisparity()),
    _of_sums(BiasAmplification()),
    _of_sums(RobustnessDrop()),
    _percentile("timeToFirstTokenP50", 50, first=True),
    _percentile("timeToFirstTokenP95", 95, first=True),
    _percentile("timeToFirstTokenP99", 99, first=True),
    _percentile("interTokenLatencyP50", 50, first=False),
    _percentile("interTokenLatencyP95", 95, first=False),
    _percentile("interTokenLatencyP99", 99, first=False),
    _of_sums(TokensPerSecond()),
)

REGISTRY: dict[MetricName, Computed] = {metric.name: metric for metric in _METRICS}


def compare(
    name: MetricName, ours: Sequence[ScoredExample], baseline: Sequence[ScoredExample], context: MetricContext
) -> Difference:
    """The model's score minus the baseline's, over the same examples in the same order."""
    return REGISTRY[name].compare(ours, baseline, context)
