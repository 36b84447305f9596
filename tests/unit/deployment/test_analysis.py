"""The comparison that rolls back: against simulated traffic, and at its edges."""

from __future__ import annotations

import random

import pytest

from slipway_api import conditions as c
from slipway_api.deployment import Analysis
from slipway_operator.controllers.deployment.analysis import Tally, Worse, error_rate_interval, worse


def test_before_any_request_nothing_is_ruled_out() -> None:
    assert error_rate_interval(0, 0, 0.05) == (0.0, 1.0)


@pytest.mark.parametrize(("errors", "requests"), [(0, 10), (10, 10), (1, 1), (37, 1000), (0, 10**9)])
def test_the_interval_holds_the_observed_rate_and_stays_within_0_and_1(errors: int, requests: int) -> None:
    low, high = error_rate_interval(errors, requests, 0.025)
    assert 0.0 <= low <= errors / requests <= high <= 1.0
    assert (low == 0.0) == (errors == 0)
    assert (high == 1.0) == (errors == requests)


def test_more_requests_narrow_it() -> None:
    widths = []
    for requests in (100, 1000, 10_000, 100_000):
        low, high = error_rate_interval(requests // 20, requests, 0.05)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01


def test_it_covers_the_true_rate_at_all_times_together() -> None:
    """Ville's bound: over a whole stream that is looked at after every request, at most alpha of the streams leave."""
    draws, alpha, rate = random.Random(0), 0.1, 0.05
    left = 0
    for _ in range(300):
        errors = 0
        for n in range(1, 301):
            errors += draws.random() < rate
            low, high = error_rate_interval(errors, n, alpha) if n % 5 == 0 else (0.0, 1.0)
            if not low <= rate <= high:
                left += 1
                break
    assert left / 300 <= alpha


def test_a_candidate_like_the_stable_version_is_never_rolled_back_by_looking_often() -> None:
    draws = random.Random(1)
    rejected = 0
    for _ in range(100):
        counts = [[0, 0], [0, 0]]
        for n in range(400):
            for side in counts:
                side[0] += 1
                side[1] += draws.random() < 0.03
            if n % 10 == 0 and worse(Tally(*counts[0]), Tally(*counts[1]), Analysis(error_margin="0")):
                rejected += 1
                break
    assert rejected <= 5


def test_a_broken_candidate_is_found_within_a_few_requests() -> None:
    found = worse(Tally(10, 10), Tally(500, 0), Analysis())
    assert found is not None
    assert found.reason == c.ERROR_RATE_TOO_HIGH
    assert "10 of 10 requests failed, 0 of 500" in found.message


def test_answers_that_clients_judge_bad_count_like_errors() -> None:
    candidate, stable = Tally(1000, 0, judged=60, bad=40), Tally(1000, 0, judged=200, bad=20)
    found = worse(candidate, stable, Analysis())
    assert found is not None
    assert found.reason == c.QUALITY_TOO_LOW
    assert "40 of 60 answers with feedback were bad, 20 of 200 with the stable version" in found.message
    assert "qualityMargin 0.05" in found.message
    assert worse(candidate, Tally(1000, 0), Analysis()) is None, "nobody has judged the stable version"
    assert worse(Tally(1000, 0), stable, Analysis()) is None
    assert worse(candidate, stable, Analysis(quality_margin="0.9")) is None


def test_both_rates_together_keep_the_confidence() -> None:
    draws = random.Random(2)
    rejected = 0
    for _ in range(100):
        sides = [[0, 0, 0, 0], [0, 0, 0, 0]]
        for n in range(300):
            for side in sides:
                side[0] += 1
                side[1] += draws.random() < 0.05
                side[2] += 1
                side[3] += draws.random() < 0.3
            if n % 10 == 0:
                candidate, stable = (Tally(one[0], one[1], judged=one[2], bad=one[3]) for one in sides)
                if worse(candidate, stable, Analysis(error_margin="0", quality_margin="0")):
                    rejected += 1
                    break
    assert rejected <= 5


def test_the_margin_is_granted() -> None:
    tallies = Tally(2000, 60), Tally(2000, 2)
    assert worse(*tallies, Analysis(error_margin="0")) is not None
    assert worse(*tallies, Analysis(error_margin="0.05")) is None


def test_latency_counts_only_with_enough_requests_on_both_sides() -> None:
    analysis = Analysis(min_requests=50)

    def judged(requests: int, sure: float | None, stable: float | None, asked: Analysis = analysis) -> Worse | None:
        candidate = Tally(requests, 0, latency_p99_ms=900.0, latency_p99_at_least_ms=sure)
        return worse(candidate, Tally(60, 0, latency_p99_ms=stable), asked)

    slow = judged(60, 601.0, 300.0)
    assert slow is not None
    assert slow.reason == c.LATENCY_TOO_HIGH
    assert "900 ms, with 99 % confidence above 601 ms, against 300 ms" in slow.message
    assert judged(49, 601.0, 300.0) is None
    assert judged(60, 601.0, None) is None
    assert judged(60, None, 300.0) is None
    assert judged(60, 600.0, 300.0) is None, "measured 900 ms, but that may be chance"
    assert judged(60, 601.0, 300.0, Analysis(max_latency_ratio="0")) is None
