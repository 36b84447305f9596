"""Chi-square test of homogeneity (Pearson 1900) for counts of categories, reference against window.

Categories that are expected fewer than 5 times on either side are pooled, the rarest first, because the chi-square
distribution is wrong for them; nothing is thrown away. The effect is Cohen's w against the reference: 0.1 is small,
0.3 medium, 0.5 large (Cohen 1988), and for a rate it is the change in units of its standard deviation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.statistics.distributions import chi_square_sf
from slipway_jobs.drift.statistics.tested import Tested

RARE = 5.0


def pooled(reference: NDArray[Any], window: NDArray[Any], rare: float = RARE) -> tuple[NDArray[Any], NDArray[Any]]:
    """The two count vectors with rare categories added up into one, in order of their common frequency."""
    total = reference + window
    share = min(float(reference.sum()), float(window.sum())) / max(1.0, float(total.sum()))
    expected = total * share
    keep = expected >= rare
    kept_reference, kept_window = reference[keep], window[keep]
    rest_reference, rest_window = reference[~keep].sum(), window[~keep].sum()
    if rest_reference + rest_window > 0:
        kept_reference = np.append(kept_reference, rest_reference)
        kept_window = np.append(kept_window, rest_window)
        if (rest_reference + rest_window) * share < rare and kept_reference.size > 2:
            # The rest is rare itself: it joins the least frequent of the others.
            least = int(np.argmin((kept_reference + kept_window)[:-1]))
            kept_reference[least] += rest_reference
            kept_window[least] += rest_window
            kept_reference, kept_window = kept_reference[:-1], kept_window[:-1]
    return kept_reference, kept_window


def chi_square(reference: NDArray[Any], window: NDArray[Any], rare: float = RARE) -> Tested:
    """The statistic and p-value for two count vectors over the same categories. Raises ValueError if one is empty.

    With `rare` 0 it equals scipy.stats.chi2_contingency(correction=False) on the categories that occur.
    """
    n, m = float(reference.sum()), float(window.sum())
    if n <= 0 or m <= 0:
        raise ValueError("both samples need at least one value")
    first, second = pooled(reference, window, rare)
    occurs = first + second > 0
    first, second = first[occurs].astype(np.float64), second[occurs].astype(np.float64)
    if first.size < 2:
        return Tested(0.0, 1.0)
    total = first + second
    expected_first, expected_second = total * n / (n + m), total * m / (n + m)
    statistic = float(
        ((first - expected_first) ** 2 / expected_first + (second - expected_second) ** 2 / expected_second).sum()
    )
    return Tested(statistic, chi_square_sf(statistic, first.size - 1))


def statistics(reference: NDArray[Any], window: NDArray[Any]) -> NDArray[np.float64]:
    """The statistic without pooling, for counts of shape (..., categories): shape (...)."""
    n = np.asarray(reference.sum(-1, keepdims=True), dtype=np.float64)
    m = np.asarray(window.sum(-1, keepdims=True), dtype=np.float64)
    shares = (reference + window) / (n + m)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, (reference / n - window / m) ** 2 / shares, 0.0)
    return np.asarray(terms.sum(-1) / (1 / n + 1 / m)[..., 0], dtype=np.float64)


def cohens_w(reference: NDArray[Any], window: NDArray[Any]) -> NDArray[np.float64]:
    """Cohen's w of the window's shares against the reference's, for counts of shape (..., categories): shape (...).

    The mixture of both sides stands in the denominator, so that a category new in the window is a large effect, not an
    infinite one.
    """
    p = reference / np.asarray(reference.sum(-1, keepdims=True), dtype=np.float64)
    q = window / np.asarray(window.sum(-1, keepdims=True), dtype=np.float64)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(middle > 0, (q - p) ** 2 / middle, 0.0)
    return np.asarray(np.sqrt(terms.sum(-1)), dtype=np.float64)
