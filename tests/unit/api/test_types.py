"""Quantities, conditions, tokens, exit codes and parameter counts."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_api import conditions as c
from slipway_api.quantity import format_bytes, parse_quantity
from slipway_api.run import ExitCode, Outcome, report_token


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", "1"), ("1500m", "1.5"), ("2Gi", str(2**31)), ("0.5", "0.5"), ("1e3", "1000"), ("3M", "3000000"), (4, "4")],
)
def test_quantity(text: str | int, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Gi", "one", "1GiB", "nan", "1 2"])
def test_not_a_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        parse_quantity(text)


@given(st.integers(0, 2**50))
def test_a_formatted_byte_count_is_within_a_tenth_of_a_percent(count: int) -> None:
    assert float(parse_quantity(format_bytes(count))) == pytest.approx(count, rel=1e-3)


def test_a_condition_keeps_its_transition_time_until_its_status_changes() -> None:
    first = c.set_condition([], c.RUNNING, "True", "A", "a", generation=1, now="t1")
    same = c.set_condition(first, c.RUNNING, "True", "B", "b", generation=2, now="t2")
    other = c.set_condition(same, c.RUNNING, "False", "C", "c", generation=3, now="t3")
    assert [x[0]["lastTransitionTime"] for x in (first, same, other)] == ["t1", "t1", "t3"]
    assert same[0]["observedGeneration"] == 2
    assert first[0]["reason"] == "A", "the input is left as it was"


def test_exit_codes_stand_for_outcomes_both_ways() -> None:
    for outcome in Outcome:
        assert ExitCode.outcome(ExitCode.of(outcome)) is outcome
    assert ExitCode.outcome(1) is Outcome.INFRASTRUCTURE
    assert ExitCode.outcome(-9) is Outcome.INFRASTRUCTURE


def test_a_report_token_is_good_for_one_attempt_under_one_key() -> None:
    tokens = {report_token(key, uid, n) for key in (b"a", b"b") for uid in ("u", "v") for n in (1, 2)}
    assert len(tokens) == 8
