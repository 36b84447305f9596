"""Kullback-Leibler divergence KL(window || reference) in nats: how badly the reference predicts the window.

Not symmetric and unbounded; a bin that the reference never saw is kept finite by the pseudo-count. 2·n·KL is chi-square
distributed with B - 1 degrees of freedom where the reference is exact, (B - 1)·(1 + n/m) is its mean where it is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.statistics.binning import counts_in, quantile_edges, shares
from slipway_jobs.drift.statistics.distributions import chi_square_sf
from slipway_jobs.drift.statistics.tested import Tested


def divergence(window: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """KL for shares that are positive in the reference: shape (..., bins) to (...). 0·ln 0 is 0."""
    p, q = np.asarray(window, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0.0)
    return np.asarray(terms.sum(-1), dtype=np.float64)


def from_counts(reference: NDArray[Any], window: NDArray[Any]) -> Tested:
    """KL and its p-value from counts in shared bins. Raises ValueError if one side is empty."""
    m, n = float(reference.sum()), float(window.sum())
    if n <= 0 or m <= 0:
        raise ValueError("both samples need at least one value")
    nats = float(divergence(shares(window), shares(reference)))
    return Tested(nats, chi_square_sf(2 * nats / (1 / n + 1 / m), max(1, reference.shape[-1] - 1)))


def kullback_leibler(reference: NDArray[Any], window: NDArray[Any], bins: int = 10) -> Tested:
    """The same from raw values, in bins of the reference's quantiles."""
    edges = quantile_edges(reference, bins)
    return from_counts(counts_in(edges, reference), counts_in(edges, window))
