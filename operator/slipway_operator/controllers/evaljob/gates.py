"""The verdict of an EvalJob's gates over its scores. Pure.

A verdict is a function of what is stored (status.metrics) and of what is asked (spec.gate), so a changed gate is judged
anew without a new run. What is missing never passes: a score that was not computed, an interval that is not there, a
NaN. With `confidence` the unfavourable end of the interval is judged, so that luck does not open a gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slipway_api import conditions as c
from slipway_api.evaljob import Gate, GateResult

_HOLDS = {
    "<": lambda value, bound: value < bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    ">=": lambda value, bound: value >= bound,
}


@dataclass(frozen=True)
class Verdict:
    """The condition Passed, and how each gate was judged."""

    status: c.Status
    reason: str
    message: str
    results: tuple[GateResult, ...] = ()


def judge(gates: Sequence[Gate], metrics: Sequence[dict[str, Any]], failed_suites: dict[str, str]) -> Verdict:
    """The verdict of all gates. `metrics` as in status; `failed_suites`: name -> why there are no scores."""
    if not gates:
        return Verdict("True", c.NO_GATES, "spec.gate asks for nothing: the scores are in status.metrics")
    results = tuple(_judge_one(gate, metrics, failed_suites) for gate in gates)
    failed = [result for result in results if not result.passed]
    if failed:
        message = "; ".join(result.message for result in failed)
        return Verdict("False", c.GATES_FAILED, f"{len(failed)} of {len(results)} gates fail: {message}", results)
    message = "; ".join(result.message for result in results)
    return Verdict("True", c.GATES_HOLD, f"all {len(results)} gates hold: {message}", results)


def in_words(gate: Gate) -> str:
    """The gate as people write it: held-out/perplexity <= 200 (95%)."""
    name = f"{gate.suite}/{gate.metric}" if gate.suite else gate.metric
    sure = f" ({float(gate.confidence):.0%})" if gate.confidence else ""
    if gate.not_worse_than is not None:
        margin = f" by more than {gate.margin}" if gate.margin else ""
        return f"{name} not worse than baseline{margin}{sure}"
    return f"{name} {gate.op} {gate.value}{sure}"


def _judge_one(gate: Gate, metrics: Sequence[dict[str, Any]], failed_suites: dict[str, str]) -> GateResult:
    words = in_words(gate)
    found = _find(gate, metrics)
    if found is None:
        reasons = [f"suite {name} failed: {why}" for name, why in failed_suites.items() if gate.suite in (None, name)]
        why = "; ".join(reasons) or "it was not computed"
        return GateResult(gate=words[:256], passed=False, message=f"{words}: there is no such score: {why}"[:4096])
    passed, message = _against_baseline(gate, found) if gate.not_worse_than else _against_bound(gate, found)
    return GateResult(gate=words[:256], passed=passed, message=f"{words}: {message}"[:4096])


def _find(gate: Gate, metrics: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next(
        (
            metric
            for metric in metrics
            if metric["metric"] == gate.metric and not metric.get("slice") and gate.suite in (None, metric["suite"])
        ),
        None,
    )


def _against_bound(gate: Gate, metric: dict[str, Any]) -> tuple[bool, str]:
    assert gate.op is not None
    assert gate.value is not None
    value, how = metric["value"], f"it is {metric['value']}"
    if gate.confidence is not None:
        interval = _interval(gate, metric.get("intervals", []))
        if interval is None:
            return False, f"it is {value}, without an interval of confidence {gate.confidence}"
        value = interval["high"] if gate.op in ("<", "<=") else interval["low"]
        how += f", between {interval['low']} and {interval['high']} with confidence {gate.confidence}"
    return _compare(gate.op, value, gate.value), how


def _against_baseline(gate: Gate, metric: dict[str, Any]) -> tuple[bool, str]:
    comparison = metric.get("baseline")
    if comparison is None:
        return False, f"it is {metric['value']}, and the baseline has no such score"
    better = bool(metric["higherIsBetter"])
    difference = comparison["difference"]
    how = f"it is {metric['value']} against {comparison['value']}, a difference of {difference}"
    if gate.confidence is not None:
        interval = _interval(gate, comparison.get("intervals", []))
        if interval is None:
            return False, f"{how}, without an interval of confidence {gate.confidence}"
        difference = interval["low"] if better else interval["high"]
        how += f" (between {interval['low']} and {interval['high']} with confidence {gate.confidence})"
    margin = float(gate.margin or "0")
    return _compare(">=", difference, str(-margin)) if better else _compare("<=", difference, str(margin)), how


def _interval(gate: Gate, intervals: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((one for one in intervals if one["confidence"] == gate.confidence), None)


def _compare(op: str, value: str, bound: str) -> bool:
    """Whether a score stands to a bound as asked; false for what is no number."""
    try:
        left, right = float(value), float(bound)
    except ValueError:
        return False
    return not math.isnan(left) and _HOLDS[op](left, right)
