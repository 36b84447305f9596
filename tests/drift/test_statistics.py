"""Every statistic equals the reference implementation, or its definition where there is none."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from slipway_jobs.drift.comparisons import COMPARISONS
from slipway_jobs.drift.statistics import (
    binning,
    chi_square,
    jensen_shannon,
    kolmogorov_smirnov,
    kullback_leibler,
    population_stability,
)
from slipway_jobs.drift.statistics.distributions import kolmogorov_one_sided_sf, kolmogorov_sf
from slipway_jobs.drift.statistics.maximum_mean_discrepancy import (
    gamma_p_value,
    kernel,
    maximum_mean_discrepancy,
    null_sample,
    unbiased,
)
from slipway_jobs.drift.statistics.wasserstein import wasserstein

values = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 1.5]), min_size=1, max_size=60).map(np.array)
count_pairs = st.integers(2, 8).flatmap(
    lambda k: st.tuples(
        st.lists(st.integers(0, 50), min_size=k, max_size=k).map(np.array).filter(lambda x: x.sum() > 0),
        st.lists(st.integers(0, 50), min_size=k, max_size=k).map(np.array).filter(lambda x: x.sum() > 0),
    )
)
fast = settings(max_examples=80)


@fast
@given(values, values)
def test_kolmogorov_smirnov_is_that_of_scipy(first: Any, second: Any) -> None:
    ours, theirs = kolmogorov_smirnov.kolmogorov_smirnov(first, second), stats.ks_2samp(first, second, method="asymp")
    assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-12)
    if math.isnan(theirs.pvalue):  # scipy rounds the effective size of one value against one to 0
        assert (first.size, second.size) == (1, 1) and 0 <= ours.p_value <= 1
    else:
        assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-9)


@pytest.mark.parametrize("size", [50_000, 100_000])
@pytest.mark.parametrize("square", [4.0, 4.7, 6.0, 9.0, 20.0])
def test_the_tail_of_many_values_is_that_of_scipy(size: int, square: float) -> None:
    distance = math.sqrt(square / size)
    assert kolmogorov_sf(distance, size) == pytest.approx(stats.kstwo.sf(distance, size), abs=1e-9)


@fast
@given(values, values)
def test_wasserstein_is_that_of_scipy(first: Any, second: Any) -> None:
    assert wasserstein(first, second) == pytest.approx(stats.wasserstein_distance(first, second), rel=1e-9, abs=1e-9)


@fast
@given(count_pairs)
def test_chi_square_is_that_of_scipy_and_pooling_keeps_every_count(pair: Any) -> None:
    first, second = pair
    occurs = first + second > 0
    if occurs.sum() >= 2:
        theirs = stats.chi2_contingency(np.stack([first, second])[:, occurs], correction=False)
        ours = chi_square.chi_square(first, second, rare=0)
        assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-9)
        assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-9)
        assert float(chi_square.statistics(first, second)) == pytest.approx(theirs.statistic, abs=1e-9)
    one, other = chi_square.pooled(first, second)
    assert (one.sum(), other.sum()) == (first.sum(), second.sum())


@fast
@given(count_pairs)
def test_divergences_are_those_of_scipy(pair: Any) -> None:
    first, second = pair
    assert float(jensen_shannon.distances(first, second)) == pytest.approx(jensenshannon(first, second, 2), abs=1e-9)
    p, q = (first + 0.5) / (first + 0.5).sum(), (second + 0.5) / (second + 0.5).sum()
    assert kullback_leibler.from_counts(first, second).statistic == pytest.approx(stats.entropy(q, p), abs=1e-9)
    both_ways = stats.entropy(q, p) + stats.entropy(p, q)
    assert population_stability.from_counts(first, second).statistic == pytest.approx(both_ways, abs=1e-9)


@fast
@given(values, st.integers(2, 20))
def test_bins_hold_what_their_definition_says(sample: Any, bins: int) -> None:
    edges = binning.quantile_edges(sample, bins)
    assert len(edges) <= bins and all(a < b for a, b in pairwise(edges))
    counts = binning.counts_in(edges, sample)
    borders = [-math.inf, *edges, math.inf]
    assert counts.tolist() == [int(((sample > low) & (sample <= high)).sum()) for low, high in pairwise(borders)]


def test_a_constant_reference_sees_both_sides() -> None:
    edges = binning.quantile_edges(np.full(50, 3.0), 10)
    assert binning.counts_in(edges, np.array([2.0, 3.0, 4.0])).tolist() == [1, 1, 1]


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5])
def test_only_a_rise_counts_on_one_side(shift: float) -> None:
    generator = np.random.default_rng(11)
    first, second = generator.normal(size=4000), generator.normal(shift, size=500)
    edges = np.sort(np.concatenate([first, second]))  # a bin for each value: nothing is lost
    counts = binning.counts_in(edges, first), binning.counts_in(edges, second)
    rise = float(kolmogorov_smirnov.rises(*counts))
    theirs = stats.ks_2samp(second, first, alternative="less", method="asymp")
    assert rise == pytest.approx(theirs.statistic, abs=1e-12)
    p_value = COMPARISONS["kolmogorovSmirnovGreater"].p_value
    assert p_value is not None
    judged = p_value(*counts, 0.05)
    assert judged >= theirs.pvalue, "given the reference it has to be more careful"
    assert (judged < 1e-6) == (shift > 0)
    assert kolmogorov_one_sided_sf(0.1, 200) == pytest.approx(stats.ksone.sf(0.1, 200), rel=0.1)


def test_binned_kolmogorov_smirnov_never_exceeds_the_exact_one() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        first, second = generator.normal(size=300), generator.normal(0.2, 1, size=200)
        edges = binning.quantile_edges(first, 32)
        binned = kolmogorov_smirnov.from_counts(binning.counts_in(edges, first), binning.counts_in(edges, second))
        exact = kolmogorov_smirnov.kolmogorov_smirnov(first, second)
        assert binned.statistic <= exact.statistic + 1e-12
        assert binned.statistic >= 0.6 * exact.statistic


def brute_mmd(matrix: Any, n: int) -> float:
    """The double sums of the definition."""
    m = len(matrix) - n
    first = sum(matrix[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    second = sum(matrix[n + i, n + j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(matrix[i, n + j] for i in range(n) for j in range(m)) / (n * m)
    return float(first + second - 2 * across)


def test_mmd_is_its_definition_and_sees_a_shift() -> None:
    generator = np.random.default_rng(1)
    first, same, moved = generator.normal(size=(60, 5)), generator.normal(size=(50, 5)), generator.normal(1, 1, (50, 5))
    matrix = kernel(np.concatenate([first, same]))
    members = np.arange(110)[None, :] < 60
    assert unbiased(matrix, members)[0] == pytest.approx(brute_mmd(matrix, 60), abs=1e-9)
    assert maximum_mean_discrepancy(first, same, generator).p_value > 0.05
    shifted = maximum_mean_discrepancy(first, moved, generator)
    assert shifted.p_value == pytest.approx(1 / 201)
    null = null_sample(kernel(np.concatenate([first, moved])), 60, 200, generator)
    assert gamma_p_value(shifted.statistic, null) < 1e-6
    assert gamma_p_value(float(np.median(null)), null) > 0.2


def test_the_bias_threshold_of_psi_grows_where_windows_are_small() -> None:
    small, large = population_stability.bias_threshold(100, 100), population_stability.bias_threshold(10**6, 10**6)
    assert large == 0.1
    assert small == pytest.approx(stats.chi2.ppf(0.99, 9) * 0.02, abs=1e-9)
    generator = np.random.default_rng(2)
    indices = [
        population_stability.population_stability_index(
            generator.normal(size=100), generator.normal(size=100)
        ).statistic
        for _ in range(200)
    ]
    assert np.mean(np.array(indices) > 0.1) > 0.5  # the customary threshold, without any change
    assert np.mean(np.array(indices) > small) < 0.06


@pytest.mark.parametrize("name", sorted(COMPARISONS))
def test_a_comparison_does_not_see_order_and_sees_a_change(name: str) -> None:
    generator = np.random.default_rng(3)
    test = COMPARISONS[name]
    reference = generator.multinomial(4000, [0.2] * 5)
    same, other = generator.multinomial(500, [0.2] * 5), generator.multinomial(500, [0.1, 0.1, 0.1, 0.3, 0.4])
    assert float(test.effect(reference, other)) > test.floor > float(test.effect(reference, same)) - 0.05
    assert float(test.statistic(reference, other)) > float(test.statistic(reference, same))
    assert float(test.distance(reference, reference)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    "function", [kolmogorov_smirnov.from_counts, jensen_shannon.from_counts, chi_square.chi_square]
)
def test_an_empty_side_is_an_error(function: Any) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        function(np.zeros(3, dtype=int), np.ones(3, dtype=int))
