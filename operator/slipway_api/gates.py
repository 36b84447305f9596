"""The verdict of an EvalJob's gates over its scores. Pure.

A verdict is a function of what is stored (status.metrics) and of what is asked (spec.gate), so a changed gate is judged
anew without a new run. What is missing never passes: a score that was not computed, an interval that is not there, a
NaN. With `confidence` the unfavourable end of the interval is judged, so that luck does not open a gate.

The operator's verdict is the one that counts (condition Passed). The run judges by the same function for its report.
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
class JudgedGate:
    """One gate and what was found. Numbers as status writes them; "" where there is none."""

    words: str
    passed: bool
    message: str
    value: str = ""  # the score
    judged: str = ""  # what was held against the threshold: the score, the difference, or an end of its interval
    threshold: str = ""  # "<= 200"; of a difference from the baseline ">= -5"

    def result(self) -> GateResult:
        """As status has it."""
        return GateResult(gate=self.words[:256], passed=self.passed, message=f"{self.words}: {self.message}"[:4096])


@dataclass(frozen=True)
class Verdict:
    """The condition Passed, and how each gate was judged."""

    status: c.Status
    reason: str
    message: str
    gates: tuple[JudgedGate, ...] = ()

    @property
    def results(self) -> tuple[GateResult, ...]:
        """The gates as status has them."""
        return tuple(gate.result() for gate in self.gates)


def judge(gates: Sequence[Gate], metrics: Sequence[dict[str, Any]], suites: Sequence[dict[str, Any]]) -> Verdict:
    """The verdict of all gates. `metrics` and `suites` as in status."""
    if not gates:
        return Verdict("True", c.NO_GATES, "spec.gate asks for nothing: the scores are in status.metrics")
    judged = tuple(_judge_one(gate, metrics, failures(suites)) for gate in gates)
    failed = [gate for gate in judged if not gate.passed]
    message = "; ".join(gate.result().message for gate in failed or judged)
    if failed:
        return Verdict("False", c.GATES_FAILED, f"{len(failed)} of {len(judged)} gates fail: {message}", judged)
    return Verdict("True", c.GATES_HOLD, f"all {len(judged)} gates hold: {message}", judged)


def failures(suites: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Why suites have no scores, by name."""
    return {
        suite["name"]: suite.get("message") or suite.get("reason") or "no reason given"
        for suite in suites
        if suite["state"] == "Failed"
    }


def in_words(gate: Gate) -> str:
    """The gate as people write it: held-out/perplexity <= 200 (95%)."""
    name = f"{gate.suite}/{gate.metric}" if gate.suite else gate.metric
    sure = f" ({float(gate.confidence):.0%})" if gate.confidence else ""
    if gate.not_worse_than is not None:
        margin = f" by more than {gate.margin}" if gate.margin else ""
        return f"{name} not worse than baseline{margin}{sure}"
    return f"{name} {gate.op} {gate.value}{sure}"


def _judge_one(gate: Gate, metrics: Sequence[dict[str, Any]], failed_suites: dict[str, str]) -> JudgedGate:
    found = _find(gate, metrics)
    if found is None:
        reasons = [f"suite {name} failed: {why}" for name, why in failed_suites.items() if gate.suite in (None, name)]
        why = "; ".join(reasons) or "it was not computed"
        return JudgedGate(in_words(gate), False, f"there is no such score: {why}")
    return _against_baseline(gate, found) if gate.not_worse_than else _against_bound(gate, found)


def _find(gate: Gate, metrics: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next(
        (
            metric
            for metric in metrics
            if metric["metric"] == gate.metric and not metric.get("slice") and gate.suite in (None, metric["suite"])
        ),
        None,
    )


def _against_bound(gate: Gate, metric: dict[str, Any]) -> JudgedGate:
    assert gate.op is not None
    assert gate.value is not None
    words, value, threshold = in_words(gate), metric["value"], f"{gate.op} {gate.value}"
    judged, how = value, f"it is {value}"
    if gate.confidence is not None:
        interval = _interval(gate, metric.get("intervals", []))
        if interval is None:
            how += f", without an interval of confidence {gate.confidence}"
            return JudgedGate(words, False, how, value, threshold=threshold)
        judged = interval["high"] if gate.op in ("<", "<=") else interval["low"]
        how += f", between {interval['low']} and {interval['high']} with confidence {gate.confidence}"
    return JudgedGate(words, _compare(gate.op, judged, gate.value), how, value, judged, threshold)


def _against_baseline(gate: Gate, metric: dict[str, Any]) -> JudgedGate:
    words, value, better = in_words(gate), metric["value"], bool(metric["higherIsBetter"])
    margin = gate.margin or "0"
    op, bound = (">=", f"-{margin}" if float(margin) else "0") if better else ("<=", margin)
    comparison = metric.get("baseline")
    if comparison is None:
        how = f"it is {value}, and the baseline has no such score"
        return JudgedGate(words, False, how, value, threshold=f"{op} {bound}")
    judged = comparison["difference"]
    how = f"it is {value} against {comparison['value']}, a difference of {judged}"
    if gate.confidence is not None:
        interval = _interval(gate, comparison.get("intervals", []))
        if interval is None:
            how += f", without an interval of confidence {gate.confidence}"
            return JudgedGate(words, False, how, value, threshold=f"{op} {bound}")
        judged = interval["low"] if better else interval["high"]
        how += f" (between {interval['low']} and {interval['high']} with confidence {gate.confidence})"
    return JudgedGate(words, _compare(op, judged, bound), how, value, judged, f"{op} {bound}")


def _interval(gate: Gate, intervals: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((one for one in intervals if one["confidence"] == gate.confidence), None)


def _compare(op: str, value: str, bound: str) -> bool:
    """Whether a score stands to a bound as asked; false for what is no number."""
    try:
        left, right = float(value), float(bound)
    except ValueError:
        return False
    return not math.isnan(left) and _HOLDS[op](left, right)
