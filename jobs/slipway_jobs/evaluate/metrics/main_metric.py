"""The figure that groups and perturbations are compared by: the main metric of the suite's kind, as a ratio of sums."""

from __future__ import annotations

from slipway_api.metrics import MAIN_METRIC, SuiteKind
from slipway_jobs.evaluate.metrics.accuracy import Accuracy
from slipway_jobs.evaluate.metrics.metric import RatioMetric
from slipway_jobs.evaluate.metrics.perplexity import Perplexity
from slipway_jobs.evaluate.metrics.token_f1 import TokenF1

_METRICS: dict[str, RatioMetric] = {metric.name: metric for metric in (Perplexity(), Accuracy(), TokenF1())}


def main_metric(kind: SuiteKind) -> RatioMetric:
    """Perplexity, accuracy or token F1."""
    return _METRICS[MAIN_METRIC[kind]]
