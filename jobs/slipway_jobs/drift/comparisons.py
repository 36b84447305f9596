"""The tests that a signal may be judged by, behind one interface: counts in, statistic and effect out.

**The reference is a sample too, and the same one in every window.** Its error does not average out over time: with an
ordinary two-sample p-value, a reference that is off by two standard errors makes every window a little significant, and
evidence gathered over windows takes that for drift. So the p-value here is that of the window alone, given the
reference: all distances obey the triangle inequality, hence what is observed, less the error that the reference has
with probability 1 - `level`, is a distance between window and truth. (Square roots of PSI and KL are no metrics, but
near equality they are multiples of one.)

A test with a distribution of its own gives its p-value itself: `p_value(reference, window, level)`. The others have
None: theirs comes from the reference drawn against itself (`calibration`); `distance` is then what the triangle
inequality is applied to, and its square shrinks like 1/n.

`effect` is what must exceed a threshold for a change to matter; `floor` is the least threshold, from the literature
where there is a customary value, and `effect_order` says how it shrinks with the samples, as a power of 1/n + 1/m.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.statistics import (
    chi_square,
    jensen_shannon,
    kolmogorov_smirnov,
    kullback_leibler,
    population_stability,
)
from slipway_jobs.drift.statistics.binning import shares
from slipway_jobs.drift.statistics.distributions import (
    chi_square_quantile,
    chi_square_sf,
    kolmogorov_limit_sf,
    kolmogorov_one_sided_sf,
)

TestName = Literal[
    "kolmogorovSmirnov",
    "kolmogorovSmirnovGreater",
    "chiSquare",
    "populationStability",
    "kullbackLeibler",
    "jensenShannon",
    "wasserstein",
    "mmd",
]
Counts = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """One way to compare counts of shape (..., bins), reference first."""

    name: TestName
    statistic: Callable[[Counts, Counts], NDArray[np.float64]]
    effect: Callable[[Counts, Counts], NDArray[np.float64]]
    distance: Callable[[Counts, Counts], NDArray[np.float64]]
    floor: float
    effect_order: float
    p_value: Callable[[Counts, Counts, float], float] | None = None


def _kullback_leibler(reference: Counts, window: Counts) -> NDArray[np.float64]:
    return kullback_leibler.divergence(shares(window), shares(reference))


def _bin_steps(reference: Counts, window: Counts) -> NDArray[np.float64]:
    """Wasserstein-1 in shares of the reference: each bin is as wide as the reference's share in it.

    Free of the feature's unit, so that one floor fits all: 0.05 says that the average value moved past 5% of the
    reference.
    """
    p = reference / np.asarray(reference.sum(-1, keepdims=True), dtype=np.float64)
    q = window / np.asarray(window.sum(-1, keepdims=True), dtype=np.float64)
    widths = (p[..., 1:] + p[..., :-1]) / 2  # between the centres of neighbouring bins
    return np.asarray((np.abs(np.cumsum(p - q, -1))[..., :-1] * widths).sum(-1), dtype=np.float64)


def _kolmogorov_smirnov_p(reference: Counts, window: Counts, level: float) -> float:
    """The reference's error after Dvoretzky, Kiefer, Wolfowitz and Massart (1990)."""
    n, m = float(window.sum()), float(reference.sum())
    error = math.sqrt(math.log(2 / level) / (2 * m))
    distance = float(kolmogorov_smirnov.distances(reference, window)) - error
    return kolmogorov_limit_sf(distance, n) if distance > 0 else 1.0


def _greater_p(reference: Counts, window: Counts, level: float) -> float:
    """The same on one side, where Massart's bound is exp(-2·m·D²) for a level of at most 1/2."""
    n, m = float(window.sum()), float(reference.sum())
    error = math.sqrt(math.log(1 / min(level, 0.5)) / (2 * m))
    return kolmogorov_one_sided_sf(float(kolmogorov_smirnov.rises(reference, window)) - error, n)


def _chi_square_p(reference: Counts, window: Counts, level: float) -> float:
    """Both errors in the norm that divides by the pooled shares: its square times n is chi-square distributed."""
    first, second = chi_square.pooled(reference, window)
    n, m = float(second.sum()), float(first.sum())
    freedom = max(1, int((first + second > 0).sum()) - 1)
    norm = math.sqrt(chi_square.chi_square(first, second, rare=0).statistic * (1 / n + 1 / m))
    distance = norm - math.sqrt(chi_square_quantile(1 - level, freedom) / m)
    return chi_square_sf(n * distance**2, freedom) if distance > 0 else 1.0


def _root_of(
    statistic: Callable[[Counts, Counts], NDArray[np.float64]],
) -> Callable[[Counts, Counts], NDArray[np.float64]]:
    return lambda reference, window: np.sqrt(np.maximum(0.0, statistic(reference, window)))


COMPARISONS: dict[str, Comparison] = {
    comparison.name: comparison
    for comparison in (
        Comparison(
            "kolmogorovSmirnov",
            kolmogorov_smirnov.distances,
            kolmogorov_smirnov.distances,
            kolmogorov_smirnov.distances,
            0.05,
            0.5,
            _kolmogorov_smirnov_p,
        ),
        Comparison(
            "kolmogorovSmirnovGreater",
            kolmogorov_smirnov.rises,
            kolmogorov_smirnov.rises,
            kolmogorov_smirnov.rises,
            0.05,
            0.5,
            _greater_p,
        ),
        Comparison(
            "chiSquare", chi_square.statistics, chi_square.cohens_w, chi_square.cohens_w, 0.1, 0.5, _chi_square_p
        ),
        Comparison(
            "populationStability",
            population_stability.indices,
            population_stability.indices,
            _root_of(population_stability.indices),
            population_stability.NOTABLE,
            1.0,
        ),
        Comparison("kullbackLeibler", _kullback_leibler, _kullback_leibler, _root_of(_kullback_leibler), 0.05, 1.0),
        Comparison(
            "jensenShannon",
            jensen_shannon.distances,
            jensen_shannon.distances,
            jensen_shannon.distances,
            0.05,
            0.5,
        ),
        Comparison("wasserstein", _bin_steps, _bin_steps, _bin_steps, 0.05, 0.5),
    )
}
MMD_FLOOR = 0.05
