"""Jensen-Shannon divergence (Lin 1991): symmetric, bounded by ln 2, finite where a bin is empty on one side.

`distances` is its square root in base 2, the metric that scipy.spatial.distance.jensenshannon(base=2) computes: from 0
(equal) to 1 (nothing in common).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.statistics.binning import counts_in, quantile_edges
from slipway_jobs.drift.statistics.distributions import chi_square_sf
from slipway_jobs.drift.statistics.kullback_leibler import divergence
from slipway_jobs.drift.statistics.tested import Tested


def divergences(reference: NDArray[Any], window: NDArray[Any]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence in nats for counts of shape (..., bins): shape (...)."""
    p = reference / np.asarray(reference.sum(-1, keepdims=True), dtype=np.float64)
    q = window / np.asarray(window.sum(-1, keepdims=True), dtype=np.float64)
    middle = (p + q) / 2
    return np.asarray(np.maximum(0.0, (divergence(p, middle) + divergence(q, middle)) / 2), dtype=np.float64)


def distances(reference: NDArray[Any], window: NDArray[Any]) -> NDArray[np.float64]:
    """The square root of the divergence in base 2, between 0 and 1."""
    return np.asarray(np.sqrt(divergences(reference, window) / math.log(2)), dtype=np.float64)


def from_counts(reference: NDArray[Any], window: NDArray[Any]) -> Tested:
    """The distance and its p-value from counts in shared bins. Raises ValueError if one side is empty.

    8·JS / (1/n + 1/m) is asymptotically chi-square distributed with B - 1 degrees of freedom: near equality JS is an
    eighth of the chi-square distance.
    """
    n, m = float(reference.sum()), float(window.sum())
    if n <= 0 or m <= 0:
        raise ValueError("both samples need at least one value")
    nats = float(divergences(reference, window))
    p_value = chi_square_sf(8 * nats / (1 / n + 1 / m), max(1, reference.shape[-1] - 1))
    return Tested(math.sqrt(nats / math.log(2)), p_value)


def jensen_shannon(reference: NDArray[Any], window: NDArray[Any], bins: int = 10) -> Tested:
    """The same from raw values, in bins of the reference's quantiles."""
    edges = quantile_edges(reference, bins)
    return from_counts(counts_in(edges, reference), counts_in(edges, window))
