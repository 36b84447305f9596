"""Counts of a number in bins that the reference fixed. Missing and non-finite values are counted apart."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.errors import SketchError
from slipway_jobs.drift.statistics.binning import counts_in


class Histogram:
    """Bin j holds the values in (edge[j-1], edge[j]]; the first and last bin are open."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = [float(edge) for edge in edges]
        if not self.edges or any(not a < b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise SketchError("a histogram needs edges that ascend", "Build them with quantile_edges.")
        self._counts = [0] * (len(self.edges) + 1)
        self.missing = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """Shape (len(edges) + 1,)."""
        return np.array(self._counts, dtype=np.int64)

    @property
    def size(self) -> int:
        """Values counted in bins."""
        return sum(self._counts)

    def add(self, value: float | None) -> None:
        """Count one value."""
        if value is None or not math.isfinite(value):
            self.missing += 1
            return
        self._counts[bisect_left(self.edges, value)] += 1

    def add_many(self, values: NDArray[Any]) -> None:
        """Count an array."""
        finite = values[np.isfinite(values)]
        self.missing += int(values.size - finite.size)
        self._counts = (self.counts + counts_in(np.array(self.edges), finite)).tolist()

    def merged(self, other: Histogram) -> Histogram:
        """Both together. Raises SketchError if the bins differ."""
        if other.edges != self.edges:
            raise SketchError("two histograms with different bins", "Rebuild the window with the profile in use.")
        result = Histogram(self.edges)
        result._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        result.missing = self.missing + other.missing
        return result

    def state(self) -> dict[str, Any]:
        return {"edges": self.edges, "counts": self._counts, "missing": self.missing}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Histogram:
        result = cls(state["edges"])
        if len(state["counts"]) != len(result._counts):
            raise SketchError(f"{len(state['counts'])} counts for {len(result._counts)} bins")
        result._counts = [int(count) for count in state["counts"]]
        result.missing = int(state["missing"])
        return result
