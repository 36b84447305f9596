"""The verdict of gates over scores: what is missing never passes, and luck opens no gate."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_api import conditions as c
from slipway_api.evaljob import Gate
from slipway_api.gates import in_words, judge


def score(
    value: float | str, *, higher: bool = False, suite: str = "a", metric: str = "m", **more: Any
) -> dict[str, Any]:
    return {"suite": suite, "metric": metric, "value": str(value), "higherIsBetter": higher, "count": 10, **more}


def interval(low: float, high: float, confidence: str = "0.95") -> dict[str, Any]:
    return {"confidence": confidence, "low": str(low), "high": str(high)}


def bound(op: str, value: str, **more: Any) -> Gate:
    return Gate.model_validate({"metric": "m", "op": op, "value": value, **more})


def baseline(**more: Any) -> Gate:
    return Gate.model_validate({"metric": "m", "notWorseThan": "baseline", **more})


def passes(gate: Gate, *metrics: dict[str, Any]) -> bool:
    (result,) = judge([gate], metrics, []).results
    return result.passed


@pytest.mark.parametrize(
    ("op", "value", "below", "equal", "above"),
    [
        ("<", "5", True, False, False),
        ("<=", "5", True, True, False),
        (">", "5", False, False, True),
        (">=", "5.0", False, True, True),
    ],
)
def test_bounds(op: str, value: str, below: bool, equal: bool, above: bool) -> None:
    gate = bound(op, value)
    assert [passes(gate, score(x)) for x in (4.9, 5, 5.1)] == [below, equal, above]


@pytest.mark.parametrize(("op", "judged"), [("<", 6), ("<=", 6), (">", 2), (">=", 2)])
def test_with_confidence_the_unfavourable_end_is_judged(op: str, judged: float) -> None:
    metric = score(4, intervals=[interval(2, 6), interval(3, 5, "0.9")])
    for value in (1, 2, 3, 4, 5, 6, 7):
        expected = {"<": judged < value, "<=": judged <= value, ">": judged > value, ">=": judged >= value}[op]
        assert passes(bound(op, str(value), confidence="0.95"), metric) == expected


def test_an_interval_that_is_not_there_does_not_pass() -> None:
    verdict = judge([bound("<", "100", confidence="0.99")], [score(1, intervals=[interval(0, 2)])], [])
    assert verdict.status == "False"
    assert "without an interval of confidence 0.99" in verdict.message


@pytest.mark.parametrize("value", ["NaN", "no number", ""])
@pytest.mark.parametrize("op", ["<", "<=", ">", ">="])
def test_what_is_no_number_never_passes(op: str, value: str) -> None:
    assert not passes(bound(op, "0"), score(value))
    assert not passes(
        bound(op, "0", confidence="0.95"), score(1, intervals=[{**interval(0, 0), "low": value, "high": value}])
    )


def test_infinity_is_a_number() -> None:
    assert not passes(bound("<", "100"), score("Infinity"))
    assert passes(bound(">", "100"), score("Infinity"))


@pytest.mark.parametrize(
    ("higher", "difference", "margin", "passed"),
    [
        (True, 0.1, None, True),
        (True, 0.0, None, True),
        (True, -0.01, None, False),
        (True, -0.01, "0.02", True),
        (True, -0.03, "0.02", False),
        (False, -0.1, None, True),
        (False, 0.01, None, False),
        (False, 0.01, "0.02", True),
        (False, 0.03, "0.02", False),
    ],
)
def test_not_worse_than_the_baseline(higher: bool, difference: float, margin: str | None, passed: bool) -> None:
    comparison = {"value": "1", "difference": str(difference)}
    gate = baseline(margin=margin) if margin else baseline()
    assert passes(gate, score(1, higher=higher, baseline=comparison)) == passed


@pytest.mark.parametrize(("higher", "passed"), [(True, False), (False, True)])
def test_not_worse_with_confidence_takes_the_end_that_is_worse(higher: bool, passed: bool) -> None:
    comparison = {"value": "1", "difference": "0.0", "intervals": [interval(-0.5, 0.1)]}
    gate = baseline(margin="0.2", confidence="0.95")
    assert passes(gate, score(1, higher=higher, baseline=comparison)) == passed


def test_without_a_comparison_it_does_not_pass() -> None:
    verdict = judge([baseline()], [score(1)], [])
    assert "the baseline has no such score" in verdict.message
    assert verdict.status == "False"


def test_a_failed_suite_fails_its_gates_and_says_why() -> None:
    gates = [bound("<", "5", suite="a"), bound("<", "5", suite="b")]
    verdict = judge(
        gates,
        [score(1, suite="b")],
        [{"name": "a", "state": "Failed", "message": "no network"}, {"name": "b", "state": "Succeeded"}],
    )
    assert (verdict.status, verdict.reason) == ("False", c.GATES_FAILED)
    assert "suite a failed: no network" in verdict.message
    assert [result.passed for result in verdict.results] == [False, True]
    assert "1 of 2 gates fail" in verdict.message


def test_scores_of_slices_and_other_suites_are_not_taken() -> None:
    metrics = [score(1, slice="team=red"), score(1, suite="b"), score(1, metric="other")]
    verdict = judge([bound("<", "5", suite="a")], metrics, [])
    assert "it was not computed" in verdict.message


def test_all_hold_and_none_asked() -> None:
    assert judge([], [], []).reason == c.NO_GATES
    verdict = judge([bound("<", "5"), bound(">", "0")], [score(1)], [])
    assert (verdict.status, verdict.reason) == ("True", c.GATES_HOLD)
    assert "m < 5: it is 1" in verdict.message


def test_each_gate_says_what_was_held_against_what() -> None:
    compared = {"value": "2", "difference": "-1", "intervals": [interval(-1.5, -0.5)]}
    metric = score(1, higher=True, intervals=[interval(0.5, 1.5)], baseline=compared)
    gates = [
        bound(">", "0.8"),
        bound(">", "0.8", confidence="0.95"),
        bound(">", "0.8", confidence="0.99"),
        baseline(margin="1.2"),
        baseline(confidence="0.95"),
    ]
    judged = judge(gates, [metric], []).gates
    assert [(gate.value, gate.judged, gate.threshold, gate.passed) for gate in judged] == [
        ("1", "1", "> 0.8", True),
        ("1", "0.5", "> 0.8", False),
        ("1", "", "> 0.8", False),
        ("1", "-1", ">= -1.2", True),
        ("1", "-1.5", ">= 0", False),
    ]


def test_gates_in_words() -> None:
    assert in_words(bound("<=", "200", suite="held-out", confidence="0.95")) == "held-out/m <= 200 (95%)"
    assert in_words(baseline(margin="0.1")) == "m not worse than baseline by more than 0.1"


@given(st.floats(), st.floats(), st.sampled_from(["<", "<=", ">", ">="]))
def test_with_confidence_a_gate_never_passes_where_the_score_itself_does_not(
    value: float, width: float, op: str
) -> None:
    width = abs(width) if math.isfinite(width) else 1.0
    metric = score(repr(value), intervals=[interval(value - width, value + width)])
    if passes(bound(op, "1", confidence="0.95"), metric):
        assert passes(bound(op, "1"), metric)
