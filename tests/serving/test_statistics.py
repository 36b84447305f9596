"""Percentiles of latency, and how sure they are."""

from __future__ import annotations

import random

import pytest
from scipy.stats import binom

from slipway_serving.statistics import Recent


def of(values: list[float]) -> Recent:
    recent = Recent()
    for value in values:
        recent.add(value)
    return recent


def test_nothing_is_known_of_nothing() -> None:
    assert Recent().percentile(99) is None
    assert Recent().percentile_at_least(99, 0.99) is None


@pytest.mark.parametrize("count", [1, 7, 50, 99, 460, 1024])
@pytest.mark.parametrize(("percent", "confidence"), [(99, 0.99), (99, 0.9), (50, 0.95)])
def test_it_is_the_highest_order_statistic_that_is_sure_enough(count: int, percent: float, confidence: float) -> None:
    found = of([float(n) for n in range(1, count + 1)]).percentile_at_least(percent, confidence)
    # Of n values, the k-th smallest is below the percentile when at least k of them are.
    sure = [k for k in range(1, count + 1) if binom.sf(k - 1, count, percent / 100) >= confidence - 1e-9]
    assert found == (max(sure) if sure else None)


def test_one_slow_answer_of_fifty_proves_nothing() -> None:
    assert of([0.05] * 47 + [1.0] * 3).percentile_at_least(99, 0.99) == 0.05
    assert of([0.05] * 46 + [1.0] * 4).percentile_at_least(99, 0.99) == 1.0


def test_it_is_wrong_as_seldom_as_it_says() -> None:
    draws = random.Random(1)
    wrong = sum(
        (of([draws.random() for _ in range(100)]).percentile_at_least(99, 0.9) or 0) > 0.99 for _ in range(2000)
    )
    assert wrong <= 230  # a tenth of them, and twice the deviation
