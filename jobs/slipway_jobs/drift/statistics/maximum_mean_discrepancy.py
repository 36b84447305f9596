"""Maximum mean discrepancy (Gretton et al. 2012): do two sets of embeddings come from one distribution?

Unbiased estimator with a Gaussian kernel whose width is the median distance of the pooled sample. Quadratic in the
number of vectors, so both sides are bounded by the caller (the detector uses a few hundred). The p-value is by
permutation: exact for any dimension, and no smaller than 1/(permutations + 1); `gamma_p_value` fits a gamma
distribution to the same permutations for the tail beyond that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.statistics.distributions import gamma_sf
from slipway_jobs.drift.statistics.tested import Tested


def squared_distances(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Squared Euclidean distances of shape (len(first), len(second)) between rows."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    return np.asarray(np.maximum(0.0, (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T), dtype=np.float64)


def kernel(pooled: NDArray[Any], bandwidth: float | None = None) -> NDArray[np.float64]:
    """The Gaussian kernel matrix of the rows; `bandwidth` defaults to the median distance of distinct rows."""
    squared = squared_distances(pooled, pooled)
    if bandwidth is None:
        median = float(np.median(squared[np.triu_indices(len(pooled), 1)])) if len(pooled) > 1 else 0.0
        bandwidth = median**0.5
    if bandwidth <= 0:  # more than half of all rows are the same
        return np.asarray(squared == 0, dtype=np.float64)
    return np.asarray(np.exp(-squared / (2 * bandwidth**2)), dtype=np.float64)


def unbiased(matrix: NDArray[np.float64], members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """MMD² for membership masks of shape (splits, rows): shape (splits,). True marks the first sample."""
    first = members.astype(np.float64)
    n = first.sum(1)
    m = matrix.shape[0] - n
    # With s = 1 for the first sample: the sums over blocks follow from K·s alone.
    row_sums = matrix.sum(1)
    diagonal = np.diag(matrix)
    product = first @ matrix
    within_first = (product * first).sum(1)
    across = (product * (1 - first)).sum(1)
    within_second = row_sums.sum() - within_first - 2 * across
    within_first = within_first - first @ diagonal
    within_second = within_second - (1 - first) @ diagonal
    return np.asarray(
        within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * across / (n * m), dtype=np.float64
    )


def null_sample(
    matrix: NDArray[np.float64], first_rows: int, permutations: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """MMD² of `permutations` random splits of the rows."""
    rows = matrix.shape[0]
    order = generator.random((permutations, rows)).argsort(1)
    return unbiased(matrix, order < first_rows)


def maximum_mean_discrepancy(
    reference: NDArray[Any],
    window: NDArray[Any],
    generator: np.random.Generator,
    permutations: int = 200,
    bandwidth: float | None = None,
) -> Tested:
    """MMD² and its permutation p-value for rows of embeddings. Raises ValueError for fewer than 2 rows on a side."""
    n, m = len(reference), len(window)
    if n < 2 or m < 2:
        raise ValueError("both samples need at least two rows")
    matrix = kernel(np.concatenate([reference, window]), bandwidth)
    members = np.arange(n + m)[None, :] < n
    statistic = float(unbiased(matrix, members)[0])
    null = null_sample(matrix, n, permutations, generator)
    return Tested(statistic, (1 + int((null >= statistic - 1e-12).sum())) / (permutations + 1))


def gamma_p_value(statistic: float, null: NDArray[np.float64]) -> float:
    """The tail of a gamma distribution with the mean, spread and lowest value of the permutations' statistics."""
    low = float(null.min()) - float(null.std())
    mean, variance = float(null.mean()) - low, float(null.var())
    if variance <= 0:
        return 1.0 if statistic <= float(null.mean()) else 0.0
    return gamma_sf(statistic - low, mean**2 / variance, variance / mean)
