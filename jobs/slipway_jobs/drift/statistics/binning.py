"""Bins that follow the reference: cut at its quantiles, so that every bin holds about the same share of it.

Bins of equal width, or bins cut on both samples together, move with the window that they should judge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def quantile_edges(reference: NDArray[Any], bins: int) -> NDArray[np.float64]:
    """Inner edges, ascending and distinct, at most `bins` - 1 of them. Raises ValueError for an empty reference.

    Bin j holds the values in (edge[j-1], edge[j]]; the first and the last bin are open. Where many values are equal
    there are fewer edges; a constant reference gets one just below its value and one at it, so that both sides are
    seen.
    """
    if reference.size == 0:
        raise ValueError("the reference is empty")
    if bins < 2:
        raise ValueError("at least 2 bins are needed")
    inner = np.quantile(reference, np.arange(1, bins) / bins, method="inverted_cdf").astype(np.float64)
    edges = np.unique(inner)
    lowest = float(reference.min())
    if edges[0] <= lowest:  # a mass point at the minimum: what falls below it is news
        edges = np.concatenate([[np.nextafter(lowest, -np.inf)], edges])
    return edges


def counts_in(edges: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.int64]:
    """How many values fall into each of the len(edges) + 1 bins."""
    # Comparing sorted values with few edges is several times faster than looking each value up among the edges.
    below = np.searchsorted(np.sort(values), edges, side="right")
    return np.diff(np.concatenate([[0], below, [values.size]])).astype(np.int64)


def shares(counts: NDArray[Any], pseudo_count: float = 0.5) -> NDArray[np.float64]:
    """Shares of the last axis, with a pseudo-count in every bin: an empty bin has no logarithm."""
    smoothed = np.asarray(counts, dtype=np.float64) + pseudo_count
    return np.asarray(smoothed / smoothed.sum(-1, keepdims=True), dtype=np.float64)
