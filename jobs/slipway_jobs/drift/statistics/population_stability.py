"""Population Stability Index: sum of (q - p)·ln(q / p) over bins, cut at the quantiles of the reference.

Its expectation without any change is not 0 but (B - 1)·(1/n + 1/m), and PSI / (1/n + 1/m) is chi-square distributed
with B - 1 degrees of freedom (Yurdakul 2018). The customary 0.1 and 0.25 are therefore far too low for small windows
and far too high for large ones; `bias_threshold` is the larger of 0.1 and the quantile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.statistics.binning import counts_in, quantile_edges, shares
from slipway_jobs.drift.statistics.distributions import chi_square_quantile, chi_square_sf
from slipway_jobs.drift.statistics.tested import Tested

BINS = 10
NOTABLE = 0.1
MAJOR = 0.25


def population_stability_index(reference: NDArray[Any], window: NDArray[Any], bins: int = BINS) -> Tested:
    """PSI and its p-value for two samples of finite numbers. Raises ValueError if one is empty."""
    edges = quantile_edges(reference, bins)
    return from_counts(counts_in(edges, reference), counts_in(edges, window))


def from_counts(reference: NDArray[Any], window: NDArray[Any]) -> Tested:
    """The same from counts in shared bins. Raises ValueError if one side is empty."""
    n, m = float(reference.sum()), float(window.sum())
    if n <= 0 or m <= 0:
        raise ValueError("both samples need at least one value")
    index = float(indices(reference, window))
    return Tested(index, chi_square_sf(index / (1 / n + 1 / m), max(1, reference.shape[-1] - 1)))


def indices(reference: NDArray[Any], window: NDArray[Any]) -> NDArray[np.float64]:
    """PSI for counts of shape (..., bins): shape (...)."""
    p, q = shares(reference), shares(window)
    return np.asarray(((q - p) * np.log(q / p)).sum(-1), dtype=np.float64)


def bias_threshold(n: int, m: int, bins: int = BINS, confidence: float = 0.99) -> float:
    """What PSI must exceed to mean anything at these sizes, and never less than 0.1."""
    return max(NOTABLE, chi_square_quantile(confidence, bins - 1) * (1 / n + 1 / m))
