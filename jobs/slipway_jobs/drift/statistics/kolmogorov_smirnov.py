"""Kolmogorov-Smirnov: the largest distance between two empirical distribution functions, for numbers with an order.

The p-value is that of the one-sample statistic at the effective size n·m/(n+m), as scipy.stats.ks_2samp(method="asymp")
gives it. With ties, or from binned counts, the true p-value is smaller: binning makes the test more careful, never
less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.statistics.distributions import kolmogorov_limit_sf, kolmogorov_sf
from slipway_jobs.drift.statistics.tested import Tested


def kolmogorov_smirnov(reference: NDArray[Any], window: NDArray[Any]) -> Tested:
    """D and its two-sided p-value for two samples of finite numbers. Raises ValueError if one is empty."""
    n, m = reference.size, window.size
    if n == 0 or m == 0:
        raise ValueError("both samples need at least one value")
    together = np.concatenate([np.sort(reference), np.sort(window)])
    order = np.argsort(together, kind="stable")  # two ascending runs: merged in linear time
    of_reference = np.cumsum(order < n)
    gap = np.abs(of_reference / n - (np.arange(1, n + m + 1) - of_reference) / m)
    together = together[order]
    gap[:-1][together[1:] == together[:-1]] = 0  # among equal values only the last one has the full step of both
    distance = float(gap.max())
    return Tested(distance, kolmogorov_sf(distance, max(1, round(n * m / (n + m)))))


def from_counts(reference: NDArray[Any], window: NDArray[Any]) -> Tested:
    """The same from counts in shared, ordered bins (any last axis). Raises ValueError if one side is empty."""
    distance = float(distances(reference, window))
    n, m = float(reference.sum()), float(window.sum())
    return Tested(distance, kolmogorov_limit_sf(distance, n * m / (n + m)))


def distances(reference: NDArray[Any], window: NDArray[Any]) -> NDArray[np.float64]:
    """D for counts of shape (..., bins): shape (...)."""
    n, m = reference.sum(-1, keepdims=True), window.sum(-1, keepdims=True)
    if not (np.all(n > 0) and np.all(m > 0)):
        raise ValueError("both samples need at least one value")
    return np.asarray(np.abs(np.cumsum(reference, -1) / n - np.cumsum(window, -1) / m).max(-1), dtype=np.float64)


def rises(reference: NDArray[Any], window: NDArray[Any]) -> NDArray[np.float64]:
    """D+, the one-sided distance: how far the reference's distribution function is above the window's, at most.

    Counts of shape (..., bins) as for `distances`. Only values that have become larger make it large: it is 0 where the
    window is nowhere larger. (scipy.stats.ks_2samp(window, reference, alternative="less").)
    """
    n, m = reference.sum(-1, keepdims=True), window.sum(-1, keepdims=True)
    if not (np.all(n > 0) and np.all(m > 0)):
        raise ValueError("both samples need at least one value")
    return np.asarray((np.cumsum(reference, -1) / n - np.cumsum(window, -1) / m).max(-1), dtype=np.float64)
