"""Wasserstein-1, the earth mover's distance: how far the average value has to be carried, in the feature's own unit.

It has no distribution-free p-value: the detector gets one from the reference drawn against itself (`calibration`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def wasserstein(reference: NDArray[Any], window: NDArray[Any]) -> float:
    """The distance between two samples of finite numbers. Raises ValueError if one is empty."""
    if reference.size == 0 or window.size == 0:
        raise ValueError("both samples need at least one value")
    first = np.sort(reference).astype(np.float64)
    second = np.sort(window).astype(np.float64)
    if first.size == second.size:  # sorted values are carried in order
        return float(np.abs(first - second).mean())
    together = np.concatenate([first, second])
    together.sort(kind="stable")  # two ascending runs: merged in linear time
    widths = np.diff(together)
    gap = np.abs(
        np.searchsorted(first, together[:-1], "right") / first.size
        - np.searchsorted(second, together[:-1], "right") / second.size
    )
    return float((gap * widths).sum())


def from_counts(reference: NDArray[Any], window: NDArray[Any], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance where every value of a bin stands at its centre, for counts of shape (..., bins): shape (...)."""
    n = np.asarray(reference.sum(-1, keepdims=True), dtype=np.float64)
    m = np.asarray(window.sum(-1, keepdims=True), dtype=np.float64)
    gap = np.abs(np.cumsum(reference, -1) / n - np.cumsum(window, -1) / m)[..., :-1]
    return np.asarray((gap * np.diff(centres)).sum(-1), dtype=np.float64)
