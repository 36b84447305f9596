"""Benjamini and Hochberg's step-up correction (1995): the expected share of false ones among the alarms raised.

For independent or positively dependent tests. The detector uses Holm, because with some twenty signals a single false
alarm already costs a retrain; this one is for reports over very many features.
"""

from __future__ import annotations

from collections.abc import Sequence


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: reject where it is at most the rate. Raises ValueError outside [0, 1]."""
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError("p-values lie between 0 and 1")
    count = len(p_values)
    adjusted = [0.0] * count
    smallest = 1.0
    descending = sorted(range(count), key=p_values.__getitem__, reverse=True)
    for rank, index in zip(range(count, 0, -1), descending, strict=True):
        smallest = min(smallest, p_values[index] * count / rank)
        adjusted[index] = smallest
    return adjusted
