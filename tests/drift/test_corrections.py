"""Corrections: the definitions, and the promise of the e-detector kept by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from slipway_jobs.drift.corrections.benjamini_hochberg import benjamini_hochberg
from slipway_jobs.drift.corrections.e_detector import advance, e_value
from slipway_jobs.drift.corrections.holm import holm

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@settings(max_examples=80)
@given(p_values)
def test_benjamini_hochberg_is_that_of_scipy(values: list[float]) -> None:
    assert benjamini_hochberg(values) == pytest.approx(stats.false_discovery_control(values).tolist(), abs=1e-12)


@settings(max_examples=80)
@given(p_values, st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if (len(values) - rank) * values[index] > alpha:
            break
        rejected.add(index)
    adjusted = holm(values)
    assert {index for index, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(a >= p for a, p in zip(adjusted, values, strict=True))


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_nothing_outside_of_0_and_1_is_a_p_value(correct: object) -> None:
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            correct([0.5, wrong])  # type: ignore[operator]


def test_the_calibrator_is_a_bet_that_wins_nothing_on_average() -> None:
    # Over u = -ln p, because much of the mean lies at tiny p: what is beyond u is 1/u.
    mean, _ = integrate.quad(lambda u: e_value(math.exp(-u)) * math.exp(-u), 0, 600, limit=500)
    assert mean == pytest.approx(1 - 1 / 600, abs=1e-3)
    assert e_value(0) > 1e100 and e_value(1) == 0.5
    grid = np.logspace(-12, 0, 500)
    assert all(a >= b for a, b in zip([e_value(p) for p in grid], [e_value(p) for p in grid[1:]], strict=False))


def test_the_first_false_alarm_comes_no_sooner_than_promised() -> None:
    """20 signals that depend on each other, without a change: the mean run length is at least 100 windows."""
    generator = np.random.default_rng(0)
    lengths = []
    for _ in range(60):
        evidence = [0.0] * 20
        length = 0
        while length < 300:
            length += 1
            common = generator.normal()
            normal = 0.7 * common + (1 - 0.49) ** 0.5 * generator.normal(size=20)
            adjusted = holm((2 * stats.norm.sf(np.abs(normal))).tolist())
            evidence = [advance(before, p) for before, p in zip(evidence, adjusted, strict=True)]
            if max(evidence) >= 100:
                break
        lengths.append(length)
    assert np.mean(lengths) > 100


def test_weak_evidence_adds_up_and_no_evidence_fades() -> None:
    evidence, windows = 0.0, 0
    while evidence < 200:
        evidence, windows = advance(evidence, 0.01), windows + 1
    assert 2 < windows < 6
    for _ in range(20):
        evidence = advance(evidence, 1.0)
    assert evidence < 1.01
